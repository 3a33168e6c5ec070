"""Types of values that are only checked when they are read."""

from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]
"""A JSON object."""

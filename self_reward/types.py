"""Types of values that are only checked when they are read."""

from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]
"""A JSON object."""
Tokenizer: TypeAlias = Any
"""A transformers.PreTrainedTokenizerBase; to import that takes seconds, and its own types are too wide to be of use."""

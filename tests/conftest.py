"""Fixtures of several files."""

from pathlib import Path

import pytest

from tests.support.tiny import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """The tiny model as it is made, which no test may change."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")

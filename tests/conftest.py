"""Fixtures of several files."""

from pathlib import Path

import pytest

from tests.support.stage_program import make_repo
from tests.support.tiny import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """The tiny model as it is made, which no test may change."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def scored_repo(tmp_path) -> Path:
    """A local data repository with scores, for stage_program.py."""
    return make_repo(tmp_path / "data")

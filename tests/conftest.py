"""Fixtures of several files."""

from pathlib import Path

import pytest

from tests.hard import disk_full
from tests.support.running import running
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


@pytest.fixture(params=["fake", "real"])
def server(request, tmp_path):
    """An Oxen server of each kind, for one test."""
    with running(request.param, tmp_path / "server") as server:
        yield server


@pytest.fixture
def no_token(monkeypatch, tmp_path):
    """No token and no Oxen configuration of whoever runs the tests."""
    for variable in ("OXEN_TOKEN", "OXEN_TOKEN_FILE", "SEED_OXEN_TOKEN", "SEED_OXEN_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OXEN_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture(scope="session")
def mount_namespace() -> list[str]:
    """The words that begin a command in which file systems can be mounted."""
    words = disk_full.in_own_namespace()
    if words is None:
        pytest.skip("no file system can be mounted here: neither as root nor in a user namespace")
    return words

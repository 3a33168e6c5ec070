"""The native half of the package oxenai, as far as it is used here."""

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from self_reward.errors import UserError
from self_reward.store.local import index


class OxenCommit(Protocol):
    id: str
    message: str
    author: str
    timestamp: object
    parent_ids: list[str]


class OxenBranch(Protocol):
    name: str
    commit_id: str


class OxenStatus(Protocol):
    def added_files(self) -> list[str]: ...
    def modified_files(self) -> list[str]: ...
    def removed_files(self) -> list[str]: ...


class Oxen(Protocol):
    """A repository that Oxen has opened. It holds a database lock until this process exits."""

    def init(self) -> None: ...
    def log(self) -> list[OxenCommit]: ...
    def add(self, path: str) -> None: ...
    def rm(self, path: str, recursive: bool, staged: bool, remove_from_disk: bool) -> None: ...
    def status(self) -> OxenStatus: ...
    def commit(self, message: str) -> OxenCommit: ...
    def restore(self, path: str, staged: bool, source: str) -> None: ...
    def current_branch(self) -> OxenBranch | None: ...
    def list_branches(self) -> list[OxenBranch]: ...
    def branch_exists(self, name: str) -> bool: ...
    def checkout(self, branch: str, create: bool) -> None: ...


@dataclass
class Repo:
    """A local repository in one operation. `notes`: what was done to it on the way, for the log."""

    root: Path
    oxen: Oxen
    notes: list[str] = field(default_factory=list)


def open_oxen(root: Path) -> Oxen:
    module = _native()
    config = os.environ.setdefault("OXEN_CONFIG_DIR", str(index.folder(root) / "config"))
    user = Path(config) / "user_config.toml"
    if not user.exists():
        user.parent.mkdir(parents=True, exist_ok=True)
        module.user.config_user("self-reward", "self-reward@localhost", str(user))
    return module.PyRepo(str(root))


def _native() -> Any:
    """`import oxen` would take 0.7 s for polars and requests; this takes 0.05 s."""
    spec = importlib.util.find_spec("oxen")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the package oxenai is not installed: pip install oxenai==0.65.1")
    library = next(Path(spec.submodule_search_locations[0]).glob("oxen_py*.so"))
    extension = importlib.util.spec_from_file_location("oxen_py", library)
    assert extension and extension.loader
    module = importlib.util.module_from_spec(extension)
    extension.loader.exec_module(module)
    return module

"""The data repository behind one facade. Stages call `open_store`; which backend answers depends on the address.

A store has three operations: `resolve` names a commit and lists its files, `pull` copies files of a commit out of the
repository, `push` makes one commit. Nothing else of Oxen is visible to a stage.
"""

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from self_reward.errors import UserError

if TYPE_CHECKING:
    from self_reward.store.local import LocalStore


@dataclass(frozen=True)
class Commit:
    """One commit: `message` without its last line, and the `key` that this last line holds (None: not a stage's)."""

    id: str
    message: str
    key: str | None


@dataclass(frozen=True)
class Snapshot:
    """What one commit holds."""

    commit: str
    files: dict[str, int]
    """path -> size in bytes"""
    log: list[Commit]
    """The branch's commits, newest first; `commit` is one of them."""
    small: dict[str, bytes]
    """Contents of the files that end in one of SMALL."""
    head: str = ""
    """The branch's newest commit; differs from `commit` where an older revision was asked for."""
    sha256: dict[str, str] = field(default_factory=dict)
    """path -> SHA-256 of the content as committed"""
    notes: list[str] = field(default_factory=list)
    """What was done to the repository on the way, for the log."""


SMALL = (".manifest.json", "final_checkpoint/self_reward.json", "final_checkpoint/adapter_config.json")


def open_store(data_repo: str, *, branch: str, lock_timeout: float, store_timeout: float) -> "LocalStore":
    """The store at `data_repo`, a folder. `lock_timeout` and `store_timeout` are seconds."""
    if "://" in data_repo:
        raise UserError(f"data_repo {data_repo}: remote repositories come later; give the path of a folder")
    from self_reward.store.local import LocalStore

    return LocalStore(data_repo, branch=branch, lock_timeout=lock_timeout, store_timeout=store_timeout)


def is_manifest(path: str) -> bool:
    """Whether `path` is where a stage writes its manifest; a user's file of a similar name is the user's."""
    return re.fullmatch(r"M\d+/\w+\.manifest\.json", path) is not None


def recorded_sha256(small: dict[str, bytes]) -> dict[str, str]:
    """SHA-256 by path of the files that stages wrote, from the manifests among `small`."""
    found: dict[str, str] = {}
    for path, content in small.items():
        if is_manifest(path):
            outputs = json.loads(content).get("outputs", {})
            found |= {name: output["sha256"] for name, output in outputs.items()}
    return found

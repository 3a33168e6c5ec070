"""The data repository behind one facade. Stages call `open_store`; which backend answers depends on the address.

A store has three operations: `resolve` names a commit and lists its files, `pull` copies files of a commit out of the
repository, `push` makes one commit. Nothing else of Oxen is visible to a stage.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_reward.errors import UserError
from self_reward.store.errors import Corrupt, NotFound

if TYPE_CHECKING:
    from self_reward.store.local.store import LocalStore
    from self_reward.store.remote.store import RemoteStore


@dataclass(frozen=True)
class Commit:
    """One commit: `message` without its last line, and the `key` that this last line holds (None: not a stage's)."""

    id: str
    message: str
    key: str | None
    author: str = ""
    time: str = ""
    """When it was made, as ISO 8601 in UTC."""


def commit(id: str, message: str, author: str, time: str) -> Commit:
    """A commit as Oxen tells it; the key is the last line of a stage's message."""
    text, _, last = message.rstrip().rpartition("\n")
    if match := re.fullmatch(r"key: ([0-9a-f]+)", last):
        return Commit(id, text.strip(), match[1], author, time)
    return Commit(id, message.strip(), None, author, time)


@dataclass(frozen=True)
class Snapshot:
    """What one commit holds."""

    commit: str
    files: dict[str, int]
    """path -> size in bytes"""
    blobs: dict[str, str]
    """path -> Oxen's name for the content: XXH3-128 in hex without leading zeros"""
    log: list[Commit]
    """The branch's commits, newest first; `commit` is one of them."""
    small: dict[str, bytes]
    """Contents of the files that end in one of SMALL."""
    head: str = ""
    """The branch's newest commit; differs from `commit` where an older revision was asked for."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """path -> SHA-256 of the content as committed; of a remote user file it is found out when it is asked for"""
    notes: list[str] = field(default_factory=list)
    """What was done to the repository on the way, for the log."""


def commits_after(snapshot: Snapshot) -> list[Commit]:
    """The branch's commits after the snapshot's, newest first."""
    return list(itertools.takewhile(lambda commit: commit.id != snapshot.commit, snapshot.log))


SMALL = (".manifest.json", "final_checkpoint/self_reward.json", "final_checkpoint/adapter_config.json")


def is_remote(data_repo: str) -> bool:
    """Whether `data_repo` is the address of a repository on a server; else it is a folder of this machine."""
    return "://" in data_repo


def open_store(
    data_repo: str,
    *,
    branch: str,
    lock_timeout: float,
    store_timeout: float,
    cache_dir: str | Path = "~/.cache/self-reward",
) -> "LocalStore | RemoteStore":
    """The store at `data_repo`, a folder or a server's address. `lock_timeout` and `store_timeout` are seconds;
    `cache_dir`: where a remote store keeps small contents by their hash."""
    if is_remote(data_repo):
        from self_reward.store.remote.store import RemoteStore

        return RemoteStore(data_repo, branch=branch, store_timeout=store_timeout, cache_dir=Path(cache_dir))
    from self_reward.store.local.store import LocalStore

    return LocalStore(data_repo, branch=branch, lock_timeout=lock_timeout, store_timeout=store_timeout)


def is_manifest(path: str) -> bool:
    """Whether `path` is where a stage writes its manifest; a user's file of a similar name is the user's."""
    return re.fullmatch(r"M\d+/\w+\.manifest\.json", path) is not None


def outputs(path: str, manifest: bytes) -> dict[str, dict[str, Any]]:
    """What the manifest at `path` records of each file that its stage wrote: sha256, size and, since version 0.1, xxh3.
    Raises Corrupt for a manifest that no stage wrote so."""
    try:
        whole = json.loads(manifest)
        found, inputs = whole["outputs"], [*whole.get("inputs", {}).values(), whole.get("inputs_xxh3", {})]
        if all(isinstance(output["sha256"], str) and isinstance(output["size"], int) for output in found.values()) and (
            all(isinstance(files, dict) for files in inputs)
        ):
            return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise Corrupt(
        f"{path} is no manifest as stages write them; bring the one of an older commit back, or remove it together "
        "with the files that its stage wrote, and run that stage again"
    )


def recorded_sha256(small: dict[str, bytes]) -> dict[str, str]:
    """SHA-256 by path of the files that stages wrote, from the manifests among `small`."""
    manifests = [(path, content) for path, content in small.items() if is_manifest(path)]
    return {name: output["sha256"] for one in manifests for name, output in outputs(*one).items()}


def refuse_names(paths: Iterable[str]) -> None:
    """Raise UserError for paths under which no data can be put: a server would keep some under another name."""
    problems = [
        f"{path!r} is no path for data: it must be relative, no part of it empty or beginning with a dot, without "
        'backslash, " and control characters'
        for path in paths
        if any(part[:1] in ("", ".") for part in path.split("/")) or re.search(r'[\\"]', path) or not path.isprintable()
    ]
    if problems:
        raise UserError(problems)


def find_revision(revision: str, branch: str, log: Sequence[Any]) -> str:
    """The id of the one commit in `log` (newest first) that `revision` means: its id, or six digits of it or more."""
    found = [c.id for c in log if c.id == revision] or [
        c.id for c in log if len(revision) >= 6 and c.id.startswith(revision)
    ]
    if len(found) == 1:
        return found[0]
    newest = ", ".join(f"{c.id[:12]} ({first_line(c.message)})" for c in log[:5])
    problem = "means several commits" if found else "is no commit"
    raise NotFound(f"revision {revision} {problem} of branch {branch}; its newest are {newest}")


def first_line(message: str) -> str:
    """A commit's message in one line."""
    return (message.strip().splitlines() or [""])[0]

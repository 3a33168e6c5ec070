"""What a data repository is to the rest of the product, whether it is a folder or on a server."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

Progress = Callable[[int, int, str], None]
"""Called with (done, total, unit)."""


@dataclass(frozen=True)
class Commit:
    """One commit: `message` without its last line, and the `key` in that last line (None: not a stage's commit)."""

    id: str
    message: str
    key: str | None
    author: str = ""
    time: str = ""
    """When it was made, as ISO 8601 in UTC."""


def parse_commit(id: str, message: str, author: str, time: str) -> Commit:
    """A commit as Oxen reports it, where the last line of a stage's message holds the key."""
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
    contents: dict[str, bytes]
    """path -> content of each file whose name ends in one of WITH_CONTENTS"""
    head: str = ""
    """The branch's newest commit; differs from `commit` where an older revision was asked for."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """path -> SHA-256 of the content as committed; for a user's file on a server it is found out when asked for"""
    notes: list[str] = field(default_factory=list)
    """What resolving changed in the repository, for the log."""


class Store(Protocol):
    """A branch of a data repository. Every method raises the errors of store.errors; TryAgain where the repository is
    locked, or its server or the network fails, for longer than the time allowed."""

    branch: str

    def exists(self) -> bool:
        """Whether the repository exists; a folder exists when anything is in it."""

    def create(self) -> None:
        """Make the repository; one that exists stays as it is."""

    def branches(self, prefix: str = "") -> dict[str, str]:
        """The branches that can be read without changing anything, with their newest commits: those on a server whose
        names begin with `prefix`. For a folder there are none, since its working tree shows one branch at a time."""

    def on(self, branch: str) -> "Store":
        """The same repository, another branch."""

    def make_branch(self, name: str, commit: str) -> None:
        """Make a branch that begins at `commit`; one that exists stays as it is. Raises UserError for a folder."""

    def remove_branch(self, name: str) -> None:
        """Remove a branch if it exists. Raises UserError for a folder."""

    def check_writable(self) -> None:
        """Raise UserError where nothing can be committed, such as for a token that may only read."""

    def resolve(self, revision: str | None = None) -> Snapshot:
        """The commit that `revision` means (None: the branch's newest). Makes a missing branch from main's newest
        commit. Raises NotFound for a repository without data and for a revision that is not on the branch, UserError
        for files that were changed behind their stage's manifest."""

    def pull(self, snapshot: Snapshot, paths: list[str], to: Path, progress: Progress | None = None) -> dict[str, str]:
        """Copy files or whole folders of the snapshot's commit to `to`/<path>; returns their SHA-256 by path.

        Each file is checked against what was recorded at its commit and in its stage's manifest; Corrupt names the
        files that differ. A file that already exists with the right content is kept.
        """

    def push(
        self,
        files: dict[str, Path],
        *,
        key: str,
        message: str,
        expected_head: str,
        progress: Progress | None = None,
    ) -> str:
        """Make one commit of `files` (repository path -> local file or folder) and return its id.

        A folder replaces the old folder: files missing from the new one are removed. When the branch's head already
        has this key, that commit is returned and none is made. Raises Conflict when the head is not `expected_head`.
        """

    def put(self, files: dict[str, Path], *, message: str) -> str | None:
        """Commit the user's own `files` (repository path -> local file or folder); returns the commit's id, or None
        where the head has them all already. Raises UserError for a path that a stage writes."""

    def accept(self, paths: list[str]) -> tuple[str, list[str]]:
        """Commit generated files that the user changed on purpose as what their stages wrote; returns the newest
        commit and notes. Raises UserError for a path that no stage wrote."""

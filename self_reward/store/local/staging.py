"""One commit of files that lie in the working tree: staged, checked, committed.

Oxen commits a staged entry even when a kill left its content unwritten, so what is staged, and that its content is
stored, is checked before each commit.
"""

import errno
import functools
import glob
import os
from pathlib import Path

from self_reward.errors import TryAgain
from self_reward.store import few
from self_reward.store.content import Entry, blob_of, hash_file, walk
from self_reward.store.errors import NoChanges
from self_reward.store.local import index, journal
from self_reward.store.local.index import Tree
from self_reward.store.local.oxen import Repo


def commit(repo: Repo, tree: Tree, adds: Tree, removes: list[str], message: str, ignored_allowed: bool = False) -> str:
    """Commit `adds` and `removes` on top of `tree`, and return the commit's id.

    `ignored_allowed`: files that .oxenignore keeps out of the commit are not an error.
    """
    root, oxen = repo.root, repo.oxen
    for path in _together(root, adds, removes):
        _add(repo, path)
    for path in removes:
        oxen.rm(glob.escape(str(root / path)), False, False, True)
    expected = {path for path, entry in adds.items() if path not in tree or tree[path].blob != entry.blob}
    staged_adds, staged_removes = _staged(repo)
    if unseen := [path for path in expected - staged_adds if path in tree]:
        for path in unseen:  # Oxen takes a file of the same size and time for unchanged
            os.utime(root / path)
            _add(repo, path)
        staged_adds, staged_removes = _staged(repo)
    if staged_adds - expected or (expected - staged_adds and not ignored_allowed) or staged_removes != set(removes):
        raise TryAgain(
            "Oxen staged other files than were given to it: "
            f"{few(sorted((staged_adds ^ expected) | (staged_removes ^ set(removes))))}; "
            "were they changed meanwhile, or named in .oxenignore?"
        )
    for path in staged_adds:
        if not _is_stored(root, adds[path]):
            _add(repo, path)  # of a folder's files Oxen silently leaves out those it could not store: alone it says why
        if not _is_stored(root, adds[path]):
            if hash_file(root / path) == adds[path]:
                raise OSError(errno.ENOSPC, f"Oxen did not store {path} whole")
            raise TryAgain(f"{path} was changed while it was being committed; run again")
    if not staged_adds and not staged_removes:
        raise NoChanges("there is nothing to commit")
    id = oxen.commit(message).id
    new_tree = {**{p: e for p, e in tree.items() if p not in removes}, **{p: adds[p] for p in staged_adds}}
    index.write_tree(root, id, new_tree)
    journal.remove(root)
    stats = {path: seen for path, seen in index.read_stats(root).items() if path in new_tree}
    for path in staged_adds:
        index.remember(root, path, adds[path], stats)
    index.write_stats(root, stats)
    return id


def _add(repo: Repo, path: str) -> None:
    repo.oxen.add(glob.escape(str(repo.root / path)))


def _staged(repo: Repo) -> tuple[set[str], set[str]]:
    """Paths that are staged as new or changed, and as removed."""
    status = repo.oxen.status()
    adds = {Path(path).as_posix() for path in [*status.added_files(), *status.modified_files()]}
    return adds, {Path(path).as_posix() for path in status.removed_files()}


def _is_stored(root: Path, entry: Entry) -> bool:
    stored = index.blob_path(root, entry.blob)
    return stored.exists() and blob_of(stored) == entry.blob


def _together(root: Path, adds: Tree, removes: list[str]) -> list[str]:
    """What to call Oxen's add with: a folder whose files are all new or changed is added at once, in parallel."""
    is_all = functools.cache(lambda folder: _is_all_of(root, folder, adds, removes))  # once per folder, not per file
    chosen: list[str] = []
    for path in sorted(adds):
        if chosen and path.startswith(chosen[-1] + "/"):
            continue
        chosen.append(next(filter(is_all, _above(path)), path))
    return chosen


def _above(path: str) -> list[str]:
    """The folders above `path`, the highest first, without the repository's own."""
    return [folder.as_posix() for folder in reversed(Path(path).parents) if folder.name]


def _is_all_of(root: Path, folder: str, adds: Tree, removes: list[str]) -> bool:
    if any(path.startswith(folder + "/") for path in removes):
        return False
    return all(f"{folder}/{rest}" in adds for rest in walk(root / folder, skip_hidden=False))

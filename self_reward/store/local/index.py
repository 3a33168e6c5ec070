"""What this product knows about a local repository beyond Oxen's own files, in `.oxen/self_reward/`.

- `trees/<commit>.json`: the files of a commit with size, SHA-256 and the name of their content in Oxen's version store.
  Oxen 0.65 cannot list or read an older commit without writing into the working tree; this can. A commit that another
  program made has no such file until `trees.py` has looked into it once.
- `stats.json`: size, modification time and inode of each working file when it was hashed, so that a file is hashed
  again only when it was touched.

No Oxen here: everything is plain files.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from self_reward import files
from self_reward.store.content import Entry, blob_of, hash_file, walk

TEMPORARY = ".self_reward-tmp-"  # hard links on their way; older versions: every file on its way into a working tree
RACY_NS = 100_000_000  # a file changed this recently may change again without a new modification time

Tree = dict[str, Entry]
"""path -> content"""
Stats = dict[str, list]
"""path -> [size, mtime_ns, inode, SHA-256, Oxen's name for the content]"""


def folder(repo: Path) -> Path:
    return repo / ".oxen" / "self_reward"


def blob_path(repo: Path, blob: str) -> Path:
    return repo / ".oxen" / "versions" / "files" / blob[:2] / blob[2:] / "data"


def remove_blob(repo: Path, blob: str) -> None:
    """Remove a content from the version store, where nothing refers to it."""
    where = blob_path(repo, blob).parent
    shutil.rmtree(where, ignore_errors=True)
    with contextlib.suppress(OSError):  # others begin with the same two digits
        where.parent.rmdir()


def write_json(path: Path, value: object) -> None:
    files.write_whole(path, json.dumps(value))


def read_json(path: Path) -> Any:
    """The content of a file that `write_json` wrote; None where it is missing or damaged (it can be made again)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def write_tree(repo: Path, commit: str, tree: Tree) -> None:
    write_json(folder(repo) / "trees" / f"{commit}.json", tree)


def read_tree(repo: Path, commit: str) -> Tree | None:
    tree = read_json(folder(repo) / "trees" / f"{commit}.json")
    return None if tree is None else as_tree(tree)


def as_tree(read: dict[str, list]) -> Tree:
    """A tree as it comes out of JSON."""
    return {path: Entry(*entry) for path, entry in read.items()}


def read_stats(repo: Path) -> Stats:
    return read_json(folder(repo) / "stats.json") or {}


def write_stats(repo: Path, stats: Stats) -> None:
    write_json(folder(repo) / "stats.json", stats)


def hash_working_file(repo: Path, path: str, stats: Stats) -> Entry:
    """Hash `path` of the working tree, or take what `stats` remembers of it; remembers it."""
    state = os.stat(repo / path)
    seen = [state.st_size, state.st_mtime_ns, state.st_ino]
    known = stats.get(path)
    if known and known[:3] == seen:
        return Entry(state.st_size, known[3], known[4])
    entry = hash_file(repo / path)
    remember(repo, path, entry, stats)
    return entry


def remember(repo: Path, path: str, entry: Entry, stats: Stats) -> None:
    """Note in `stats` that the working file `path` is known to hold `entry`."""
    state = os.stat(repo / path)
    stats.pop(path, None)
    if state.st_mtime_ns < time.time_ns() - RACY_NS and entry.size == state.st_size:
        stats[path] = [state.st_size, state.st_mtime_ns, state.st_ino, entry.sha256, entry.blob]


def compare(repo: Path, tree: Tree, stats: Stats) -> tuple[Tree, list[str]]:
    """How the working tree differs from a commit's: files that are new or have other content, and missing ones."""
    present = set(walk(repo))
    present.update(path for path in tree if path not in present and (repo / path).is_file())
    found = {path: hash_working_file(repo, path, stats) for path in sorted(present)}
    changed = {path: entry for path, entry in found.items() if path not in tree or tree[path] != entry}
    return changed, sorted(path for path in tree if path not in present)


def restore_files(repo: Path, paths: Iterable[str], tree: Tree, ours: list[Tree]) -> None:
    """Make working files as `tree` has them (absent where it has none). A file whose content is in none of the trees
    `ours` was written by a person meanwhile and is left alone."""
    for path in paths:
        target = repo / path
        if target.is_file():
            entry = hash_file(target)
            if entry == tree.get(path) or entry not in [other.get(path) for other in ours]:
                continue
            if path not in tree:
                remove_file(repo, path)
        if path in tree:
            copy_blob(repo, tree[path], target)


def copy_blob(repo: Path, entry: Entry, target: Path) -> Entry:
    """Copy content out of the version store to `target`. Returns what the version store has; `target` is written only
    when that is `entry`."""
    stored = blob_path(repo, entry.blob)
    if blob_of(stored) != entry.blob:
        return hash_file(stored)
    with files.whole_file(target, durable=False) as part:
        shutil.copyfile(stored, part)  # inside the kernel: a fifth of the time of reading and writing
        os.chmod(part, 0o644)
    return entry


def link_or_copy(source: Path, target: Path, *, link: bool = True) -> None:
    """Put a file into the working tree: a hard link where possible (and `link`), else a copy."""
    if link:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not files.partial: what a killed process left there is written to, and that would be the source.
        temporary = target.with_name(f"{TEMPORARY}link")
        temporary.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), temporary)
        except OSError:  # another file system, or one without hard links
            return link_or_copy(source, target, link=False)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)  # does nothing when both are links to the same file
        temporary.unlink(missing_ok=True)
        return
    with files.whole_file(target, durable=False) as part:
        shutil.copyfile(source, part)
        os.chmod(part, 0o644)


def remove_file(repo: Path, path: str) -> None:
    """Remove a working file and the folders that this leaves empty."""
    (repo / path).unlink(missing_ok=True)
    for parent in Path(path).parents:
        try:
            (repo / parent).rmdir()
        except OSError:
            return

"""What the product knows about a local repository beyond Oxen's own files, in `.oxen/self_reward/`.

- `trees/<commit>.json`: the files of a commit with size, SHA-256 and the name of their content in Oxen's version store.
  Oxen 0.65 offers no way to list or read an older commit without writing into the working tree; this does. A commit
  that another program made has no such file until `child.py` has looked into it once.
- `stats.json`: size, modification time and inode of each working file at the time it was hashed, so that a file is
  hashed again only when it was touched.

No Oxen here: everything is plain files, written whole and renamed.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

TEMPORARY = ".self_reward-tmp-"  # hidden, so never taken for data
RACY_NS = 100_000_000  # a file changed this recently may change again without a new modification time


class Entry(NamedTuple):
    """One file of a commit."""

    size: int
    sha256: str
    blob: str
    """Oxen's name for the content: XXH3-128 in hex without leading zeros."""


Tree = dict[str, Entry]


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


def hash_file(path: Path) -> Entry:
    """Hash a file in one pass."""
    sha256, blob, size = hashlib.sha256(), xxhash.xxh3_128(), 0
    for block in _blocks(path):
        sha256.update(block)
        blob.update(block)
        size += len(block)
    return Entry(size, sha256.hexdigest(), format(blob.intdigest(), "x"))


def blob_of(path: Path) -> str:
    """Oxen's name for a file's content.

    Thirty times as fast as SHA-256, and its 128 bits tell damage as surely; against forgery neither would help, since
    who can write the repository can write its manifests.
    """
    blob = xxhash.xxh3_128()
    for block in _blocks(path):
        blob.update(block)
    return format(blob.intdigest(), "x")


def _blocks(path: Path) -> Iterator[memoryview]:
    """The file in pieces, all in one piece of memory: a new one each time would cost more than the reading."""
    memory = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(memory):
            yield memory[:count]


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
    return None if tree is None else {path: Entry(*entry) for path, entry in tree.items()}


def read_stats(repo: Path) -> dict[str, list]:
    return read_json(folder(repo) / "stats.json") or {}


def write_stats(repo: Path, stats: dict[str, list]) -> None:
    write_json(folder(repo) / "stats.json", stats)


def walk(repo: Path, skip_hidden: bool = True) -> Iterator[str]:
    """Paths of the files below `repo`, relative and sorted within their folder. A link to a file stands for that file;
    links to folders are left out (Oxen does not follow them); hidden files are nobody's data."""
    for where, folders, names in os.walk(repo):
        folders[:] = sorted(name for name in folders if not (skip_hidden and name.startswith(".")))
        for name in sorted(names):
            path = Path(where, name)
            if not (skip_hidden and name.startswith(".")) and path.is_file():
                yield path.relative_to(repo).as_posix()


def hash_working_file(repo: Path, path: str, stats: dict[str, list]) -> Entry:
    """Hash `path` of the working tree, or take what `stats` remembers of it; remembers it."""
    state = os.stat(repo / path)
    seen = [state.st_size, state.st_mtime_ns, state.st_ino]
    known = stats.get(path)
    if known and known[:3] == seen:
        return Entry(state.st_size, known[3], known[4])
    entry = hash_file(repo / path)
    remember(repo, path, entry, stats)
    return entry


def remember(repo: Path, path: str, entry: Entry, stats: dict[str, list]) -> None:
    """Note in `stats` that the working file `path` is known to hold `entry`."""
    state = os.stat(repo / path)
    stats.pop(path, None)
    if state.st_mtime_ns < time.time_ns() - RACY_NS and entry.size == state.st_size:
        stats[path] = [state.st_size, state.st_mtime_ns, state.st_ino, entry.sha256, entry.blob]


def compare(repo: Path, tree: Tree, stats: dict[str, list]) -> tuple[Tree, list[str]]:
    """How the working tree differs from a commit's: files that are new or have other content, and missing ones."""
    present = set(walk(repo))
    present.update(path for path in tree if path not in present and (repo / path).is_file())
    found = {path: hash_working_file(repo, path, stats) for path in sorted(present)}
    changed = {path: entry for path, entry in found.items() if path not in tree or tree[path] != entry}
    return changed, sorted(path for path in tree if path not in present)


def lay(repo: Path, paths: Iterable[str], tree: Tree, ours: list[Tree]) -> None:
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
    """Copy content out of the version store to `target`; returns what was found there. `target` is written only when
    that is `entry`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}")
    try:
        shutil.copyfile(blob_path(repo, entry.blob), temporary)  # inside the kernel: a fifth of reading and writing
        if blob_of(temporary) != entry.blob:
            return hash_file(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
        return entry
    finally:
        temporary.unlink(missing_ok=True)


def place(source: Path, target: Path, *, link: bool = True) -> None:
    """Put a file into the working tree: a hard link where possible (and `link`), else a copy, by way of a rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}")
    temporary.unlink(missing_ok=True)
    try:
        if link:
            os.link(source.resolve(), temporary)
    except OSError:  # another file system, or one without hard links
        link = False
    if not link:
        shutil.copyfile(source, temporary)
    os.chmod(temporary, 0o644)
    os.replace(temporary, target)  # does nothing when both are links to one file
    temporary.unlink(missing_ok=True)


def remove_file(repo: Path, path: str) -> None:
    """Remove a working file and the folders that this leaves empty."""
    (repo / path).unlink(missing_ok=True)
    for parent in Path(path).parents:
        try:
            (repo / parent).rmdir()
        except OSError:
            return


def expand(files: Mapping[str, Path]) -> dict[str, Path]:
    """Every single file: repository path -> source."""
    sources: dict[str, Path] = {}
    for name, local in files.items():
        if local.is_dir():
            inside = {f"{name}/{rest}": local / rest for rest in walk(local, skip_hidden=False)}
            if not inside:
                raise ValueError(f"nothing to commit in {local}")
            sources |= inside
        elif local.is_file():
            sources[name] = local
        else:
            raise FileNotFoundError(f"{local}, to be committed as {name}")
    return sources

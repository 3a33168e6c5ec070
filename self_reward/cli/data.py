"""Files of a data repository: list them, copy them out of it, list commits, add files. `self-reward data` calls this.

Everything goes through the store, so a folder and a server are the same here.
"""

import difflib
import json
import re
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from self_reward.cli.text import aligned, human, to_a_reader_that_may_leave, when
from self_reward.errors import UserError
from self_reward.run.stage import in_words
from self_reward.store import Commit, Progress, Snapshot, Store, first_line, is_manifest
from self_reward.store.content import blob_of, walk
from self_reward.store.errors import NotFound
from self_reward.types import Json

MANY = 20  # a folder with more files is shown as one line
MODEL = ("config.json", "adapter_config.json")  # a folder with one of these holds a model


# ---- ls


class Written(NamedTuple):
    """Which stage wrote a file, and what its manifest says about the whole stage."""

    stage: str
    when: str
    counts: Json
    by_hand: bool


def ls(snapshot: Snapshot, path: str = "", *, every: bool = False) -> list[str]:
    """The files of a commit below `path`, one line each, in the order in which a run writes them: size, number of
    files, who wrote it, when, and the stage's counts. Unless `every`, manifests are left out, and a folder is one line
    if it holds a model or more than MANY files. Raises NotFound if nothing is at `path`."""
    path = "" if path == "." else path.strip("/").removeprefix("./")
    files = below(snapshot, path)
    units = {name: name for name in files} if every else folded(files, path)
    written = by_stage(snapshot)
    shown: dict[str, list[str]] = {}
    for name in sorted(files, key=lambda name: _order(name, written)):
        if every or not is_manifest(name) or name == path:
            shown.setdefault(units[name], []).append(name)
    rows, counted = [], set()
    for unit, names in shown.items():
        by = written.get(names[0])
        stage, counts = (by.stage + (", changed by hand" if by.by_hand else ""), by.counts) if by else ("you", {})
        text = "" if stage in counted else in_words(counts)  # once per stage
        counted.add(stage)
        size = sum(files[name] for name in names)
        where = unit + (f"  ({text})" if text else "")
        rows.append((human(size), str(len(names)), stage, by.when if by else "", where))
    commit = next((commit for commit in snapshot.log if commit.id == snapshot.commit), None)
    head = f"commit {snapshot.commit[:12]}" + (f", {when(commit)}: {first_line(commit.message)}" if commit else "")
    hidden = sum(map(is_manifest, files)) - sum(is_manifest(name) for names in shown.values() for name in names)
    foot = f"{human(sum(files.values()))} in {len(files)} files"
    foot += f"; {hidden} manifests are not shown (--all shows every file)" if hidden else ""
    return [head, *aligned([("size", "files", "written by", "when", "path"), *rows], right=2), foot]


def below(snapshot: Snapshot, path: str) -> dict[str, int]:
    """The files of a commit that are `path` or below it, with their sizes. Raises NotFound if none exist."""
    files = {
        name: size
        for name, size in snapshot.files.items()
        if not path or name == path or name.startswith(path.rstrip("/") + "/")
    }
    if not files and path:
        raise NotFound(f"{path} is not in commit {snapshot.commit}{_near(path, snapshot.files)}")
    return files


def _near(path: str, files: Collection[str]) -> str:
    """A hint for a `path` that does not exist: similar names, else the contents of the nearest folder above it."""
    names = {*files, *(folder.as_posix() for name in files for folder in Path(name).parents)} - {"."}
    if close := difflib.get_close_matches(path, names, n=3):
        return f"; did you mean {' or '.join(close)}?"
    for folder in Path(path).parents:
        where = "" if folder.as_posix() == "." else f"{folder.as_posix()}/"
        inside = sorted({where + name.removeprefix(where).split("/")[0] for name in files if name.startswith(where)})
        if inside := [name for name in inside if name[0] != "."]:
            return f"; it has {', '.join(inside[:8])}{' ...' if len(inside) > 8 else ''}"
    return ""


def folded(files: Collection[str], path: str = "") -> dict[str, str]:
    """The line on which each file is shown: its own name, or that of a folder (with a slash) below `path`."""
    inside: dict[str, list[str]] = {}
    for name in files:
        inside.setdefault(name.rpartition("/")[0], []).append(name.rpartition("/")[2])
    folders = {
        folder
        for folder, names in inside.items()
        if folder and folder != path and (len(names) > MANY or any(name in MODEL for name in names))
    }
    units = {}
    for name in files:
        above = [folder.as_posix() for folder in reversed(Path(name).parents)]
        units[name] = next((f"{folder}/" for folder in above if folder in folders), name)
    return units


def by_stage(snapshot: Snapshot) -> dict[str, Written]:
    """Which stage wrote each file, from the manifests; the manifest itself counts as written by its stage."""
    written = {}
    for path, content in snapshot.contents.items():
        if is_manifest(path):
            manifest = json.loads(content)
            commit = next((commit for commit in snapshot.log if commit.key == manifest.get("key")), None)
            stage = f"{path.split('/')[0]} {manifest.get('stage') or path.split('/')[1].split('.')[0]}"
            outputs = {path: {}, **manifest.get("outputs", {})}
            for name, output in outputs.items():
                by_hand = output.get("changed_by_hand", False)
                written[name] = Written(stage, when(commit) if commit else "", manifest.get("counts", {}), by_hand)
    return written


def _order(name: str, written: dict[str, Written]) -> tuple[int, str, bool, str]:
    """The order of files: iterations by number; in each the user's files, then those of the stages in their order."""
    iteration = re.match(r"M(\d+)/", name)
    by = written.get(name)
    return int(iteration[1]) if iteration else -1, by.stage.split()[1] if by else "", is_manifest(name), name


# ---- get


def get(store: Store, snapshot: Snapshot, path: str, to: str, progress: Progress | None = None) -> list[str]:
    """Copy a file or folder out of a commit, checked, and report where it is. `to`: a new name, a folder to put it
    into, or "-" for standard output. Existing files are kept if they are equal; UserError names those that differ."""
    path = "" if path == "." else path.strip("/").removeprefix("./")
    names = list(below(snapshot, path))
    is_file = path in snapshot.files
    if to == "-":
        if not is_file:
            raise UserError(f"{path} is a folder of {len(names)} files; --to - is for one file")
        _print(store, snapshot, path, progress)
        return []
    target = Path(to).expanduser()
    if path and (target.is_dir() or to.endswith("/")):
        target = target / Path(path).name
    targets = {name: target if is_file else target / name.removeprefix(path).strip("/") for name in names}
    problems = [
        f"{place} exists and is not {name} of commit {snapshot.commit[:12]}; move it away, or give another --to"
        for name, place in targets.items()
        if place.exists() and not (place.is_file() and blob_of(place) == snapshot.blobs[name])
    ]
    if problems:
        raise UserError(problems)
    wanted = [name for name, place in targets.items() if not place.exists()]
    # an interrupted download resumes from here
    beside = target / ".part" if target.is_dir() else target.with_name(f".{target.name}.part")
    if wanted:
        store.pull(snapshot, wanted, beside, progress)
        for name in wanted:
            targets[name].parent.mkdir(parents=True, exist_ok=True)
            (beside / name).replace(targets[name])
        shutil.rmtree(beside)
    size = human(sum(snapshot.files[name] for name in names))
    kept = f", {len(names) - len(wanted)} of them existed already" if len(wanted) < len(names) else ""
    number = "1 file" if len(names) == 1 else f"{len(names)} files"
    return [f"{target}: {number}, {size}, of commit {snapshot.commit}{kept}"]


def _print(store: Store, snapshot: Snapshot, path: str, progress: Progress | None) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store.pull(snapshot, [path], Path(folder), progress)
        with open(Path(folder, path), "rb") as file:
            if sys.stdout.isatty() and b"\0" in file.read(8192):
                raise UserError(f"{path} is not a text file; give --to FILE")
            file.seek(0)
            with to_a_reader_that_may_leave():
                shutil.copyfileobj(file, sys.stdout.buffer)


# ---- log


def history(commits: list[Commit], most: int) -> list[str]:
    """The newest `most` commits, one line each, newest first."""
    rows = []
    for commit in commits[:most]:
        author = "" if commit.author.startswith("self-reward") else f"  ({commit.author})"
        rows.append((commit.id[:12], when(commit), first_line(commit.message) + author))
    more = [f"and {len(commits) - most} older commits (-n {len(commits)})"] if len(commits) > most else []
    return aligned(rows) + more


# ---- put


def put(store: Store, paths: list[str], to: str, message: str) -> tuple[list[str], str | None]:
    """Commit local files, and the contents of local folders, below the folder `to` of the repository. Returns their
    paths there, and the commit (None: nothing changed). A single file gets a new name from a `to` with its suffix."""
    files: dict[str, Path] = {}
    problems = []
    to = "" if to == "." else to.removeprefix("./")
    for word in paths:
        local = Path(word).expanduser()
        if local.is_dir():
            inside = {name: local / name for name in walk(local)}
            if not inside:
                problems.append(f"{word} has no files")
        elif local.is_file():
            named = len(paths) == 1 and not to.endswith("/") and local.suffix and Path(to).suffix == local.suffix
            inside = {"": local} if named else {local.name: local}
        else:
            problems.append(f"{word} is not a file or folder")
            continue
        for name, file in inside.items():
            path = f"{to.strip('/')}/{name}".strip("/")
            if path in files:
                problems.append(f"{files[path]} and {file} would both be {path}; put them into different folders")
            files[path] = file
    if problems:
        raise UserError(problems)
    names = list(files)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return names, store.put(files, message=message or f"user data: {', '.join(names[:5])}{more}")

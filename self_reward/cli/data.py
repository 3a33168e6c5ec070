"""Look at a data repository, fetch from it, and bring data to it: what `self-reward data` and seed_data do.

All of it goes through the store's facade, so a folder and a server are the same here. compare.py says what differs.
"""

import difflib
import json
import logging
import re
import shutil
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from self_reward.errors import UserError
from self_reward.repository import artifacts
from self_reward.store import Commit, Progress, Snapshot, Store, first_line, is_manifest, is_remote, open_store
from self_reward.store.content import blob_of, walk
from self_reward.store.errors import NotFound

log = logging.getLogger("self_reward")

SEEDED = ("M0/train", "M0/eval")
MANY = 20  # files in one folder above which it is shown as one line
MODEL = ("config.json", "adapter_config.json")  # what makes a folder a model's


# ---- ls


class Written(NamedTuple):
    """Which stage wrote a file, and what its manifest says of the whole stage."""

    stage: str
    when: str
    counts: dict[str, Any]
    by_hand: bool


def ls(snapshot: Snapshot, path: str = "", *, every: bool = False) -> list[str]:
    """The files of a commit below `path`, one line each, in the order in which a run makes them: size, number of files,
    who wrote it, when, and the stage's counts. A model's folder, and one of more than MANY files, is one line, and
    manifests are left out, unless `every`. Raises NotFound where nothing is at `path`."""
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
        text = "" if stage in counted else in_words(counts)  # of a stage that wrote several files, once
        counted.add(stage)
        size = sum(files[name] for name in names)
        rows.append(
            (human(size), str(len(names)), stage, by.when if by else "", unit + (f"  ({text})" if text else ""))
        )
    this = next((one for one in snapshot.log if one.id == snapshot.commit), None)
    head = f"commit {snapshot.commit[:12]}" + (f", {when(this)}: {first_line(this.message)}" if this else "")
    left = sum(is_manifest(name) for name in files) - sum(
        is_manifest(name) for names in shown.values() for name in names
    )
    foot = f"{human(sum(files.values()))} in {len(files)} files"
    foot += f"; {left} manifests are not shown (--all shows every file)" if left else ""
    return [head, *aligned([("size", "files", "written by", "when", "path"), *rows], right=2), foot]


def below(snapshot: Snapshot, path: str) -> dict[str, int]:
    """The files of a commit that are `path` or below it, with their sizes. Raises NotFound where there is none."""
    files = {
        name: size
        for name, size in snapshot.files.items()
        if not path or name == path or name.startswith(path.rstrip("/") + "/")
    }
    if not files and path:
        raise NotFound(f"{path} is not in commit {snapshot.commit}{_near(path, snapshot.files)}")
    return files


def _near(path: str, files: Collection[str]) -> str:
    """What there is instead of `path`: names like it, else what the nearest folder above it has."""
    names = {*files, *(folder.as_posix() for name in files for folder in Path(name).parents)} - {"."}
    if close := difflib.get_close_matches(path, names, n=3):
        return f"; did you mean {' or '.join(close)}?"
    for folder in Path(path).parents:
        where = "" if folder.as_posix() == "." else f"{folder.as_posix()}/"
        there = sorted({where + name.removeprefix(where).split("/")[0] for name in files if name.startswith(where)})
        if there := [name for name in there if name[0] != "."]:
            return f"; there is {', '.join(there[:8])}{' ...' if len(there) > 8 else ''}"
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
    """Who wrote each file that a stage wrote, from the manifests; a manifest is its stage's too."""
    found = {}
    for path, content in snapshot.contents.items():
        if is_manifest(path):
            manifest = json.loads(content)
            commit = next((one for one in snapshot.log if one.key == manifest.get("key")), None)
            stage = f"{path.split('/')[0]} {manifest.get('stage') or path.split('/')[1].split('.')[0]}"
            outputs = {path: {}, **manifest.get("outputs", {})}
            for name, output in outputs.items():
                by_hand = output.get("changed_by_hand", False)
                found[name] = Written(stage, when(commit) if commit else "", manifest.get("counts", {}), by_hand)
    return found


def _order(name: str, written: dict[str, Written]) -> tuple[int, str, bool, str]:
    """Iterations by number, in each the user's files first and then the stages' in their order."""
    iteration = re.match(r"M(\d+)/", name)
    by = written.get(name)
    return int(iteration[1]) if iteration else -1, by.stage.split()[1] if by else "", is_manifest(name), name


# ---- get


def get(store: Store, snapshot: Snapshot, path: str, to: str, progress: Progress | None = None) -> list[str]:
    """Copy a file or folder out of a commit, checked, and say where it is. `to`: a new name, a folder to put it into,
    or "-" for standard output. What is there already is kept where it is equal; UserError names what differs."""
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
        f"{place} is there already and is not {name} of commit {snapshot.commit[:12]}; move it away, or give another "
        "--to"
        for name, place in targets.items()
        if place.exists() and not (place.is_file() and blob_of(place) == snapshot.blobs[name])
    ]
    if problems:
        raise UserError(problems)
    wanted = [name for name, place in targets.items() if not place.exists()]
    # what an interrupted get left there is gone on from
    beside = target / ".part" if target.is_dir() else target.with_name(f".{target.name}.part")
    if wanted:
        store.pull(snapshot, wanted, beside, progress)
        for name in wanted:
            targets[name].parent.mkdir(parents=True, exist_ok=True)
            (beside / name).replace(targets[name])
        shutil.rmtree(beside)
    size = human(sum(snapshot.files[name] for name in names))
    there = f", {len(names) - len(wanted)} of them there already" if len(wanted) < len(names) else ""
    number = "1 file" if len(names) == 1 else f"{len(names)} files"
    return [f"{target}: {number}, {size}, of commit {snapshot.commit}{there}"]


def _print(store: Store, snapshot: Snapshot, path: str, progress: Progress | None) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store.pull(snapshot, [path], Path(folder), progress)
        with open(Path(folder, path), "rb") as file:
            if sys.stdout.isatty() and b"\0" in file.read(8192):
                raise UserError(f"{path} is no text; give --to FILE")
            file.seek(0)
            sys.stdout.flush()
            shutil.copyfileobj(file, sys.stdout.buffer)


# ---- log


def history(commits: list[Commit], most: int) -> list[str]:
    """The newest `most` commits, one line each, newest first."""
    rows = []
    for one in commits[:most]:
        author = "" if one.author.startswith("self-reward") else f"  ({one.author})"
        rows.append((one.id[:12], when(one), first_line(one.message) + author))
    more = [f"and {len(commits) - most} older ones (-n {len(commits)})"] if len(commits) > most else []
    return aligned(rows) + more


# ---- put


def put(store: Store, paths: list[str], to: str, message: str) -> tuple[list[str], str | None]:
    """Commit local files, and the contents of local folders, below the folder `to` of the repository; the paths there,
    and the commit (None: they are there already). One file can be given a new name: `to` with its suffix."""
    files: dict[str, Path] = {}
    problems = []
    to = "" if to == "." else to.removeprefix("./")
    for word in paths:
        local = Path(word).expanduser()
        if local.is_dir():
            found = {name: local / name for name in walk(local)}
            if not found:
                problems.append(f"{word} has no files")
        elif local.is_file():
            named = len(paths) == 1 and not to.endswith("/") and local.suffix and Path(to).suffix == local.suffix
            found = {"": local} if named else {local.name: local}
        else:
            problems.append(f"{word} is no file or folder")
            continue
        for name, file in found.items():
            path = f"{to.strip('/')}/{name}".strip("/")
            if path in files:
                problems.append(f"{files[path]} and {file} would both be {path}; put them into different folders")
            files[path] = file
    if problems:
        raise UserError(problems)
    names = list(files)
    commit = store.put(files, message=message or f"user data: {', '.join(names[:5])}{_more(names, 5)}")
    return names, commit


def _more(names: list[str], shown: int) -> str:
    return f" and {len(names) - shown} more" if len(names) > shown else ""


# ---- text


def human(size: int) -> str:
    """A number of bytes as people write it: 512 B, 1.2 MB."""
    if size < 1000:
        return f"{size} B"
    value, unit = size / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value >= 999.5:
            value, unit = value / 1000, larger
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def when(commit: Commit) -> str:
    """A commit's time to the minute, in UTC."""
    return commit.time[:16].replace("T", " ")


def in_words(counts: dict[str, Any]) -> str:
    """The first counts of a stage, as its commit's message has them."""
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in list(counts.items())[:3])


def plain(line: str) -> str:
    """What is safe to show: names and messages come from other people, control characters would reach the terminal."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


def aligned(rows: Iterable[tuple[str, ...]], right: int = 0) -> list[str]:
    """Rows of equally many cells as lines of equally wide columns; the first `right` columns are flushed right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if i < right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


# ---- seed_data


def seed(
    data_repo: str,
    seed_data: str,
    scratch: Path,
    *,
    branch: str,
    lock_timeout: float,
    store_timeout: float,
    cache_dir: str | Path,
    progress: Progress | None = None,
) -> None:
    """Copy M0/train and M0/eval of the data repository `seed_data` (a folder, or branch main at a server's address) to
    `data_repo`, where that has no M0/train/*.jsonl. One commit: after a kill all of it is there, or nothing.

    `scratch` is an empty folder of this call's own. A local `data_repo` whose folder is missing or empty is made; a
    remote one must exist. Files that are there already are left as they are. The token for `seed_data` is that of
    `data_repo` where both are on one server, else SEED_OXEN_TOKEN. Raises NotFound where there is nothing to copy, with
    what is there; Network when `seed_data` cannot be reached.
    """
    options: dict[str, Any] = {"lock_timeout": lock_timeout, "store_timeout": store_timeout, "cache_dir": cache_dir}
    store = open_store(data_repo, branch=branch, **options)
    is_new = not is_remote(data_repo) and not store.exists()
    existing = set() if is_new else _files_at_head(store)
    if has := sorted(path for path in existing if path.startswith("M0/train/") and path.endswith(".jsonl")):
        log.info("seed_data is not needed: %s has %s", data_repo, ", ".join(has[:3]))
        return
    try:
        source, commit = _fetch_seed(data_repo, seed_data, scratch, progress, options)
    except UserError as error:
        problems = [problem.removeprefix("data_repo ") for problem in error.problems]
        variable = _token_variable(data_repo, seed_data)
        problems = [re.sub(r"\bOXEN_TOKEN", variable, one) for one in problems]
        raise type(error)([f"seed_data: {one}" for one in problems]) from None
    files = {path: local for path, local in source.items() if path not in existing}
    if is_new:
        store.create()
    message = f"seed data: M0/train and M0/eval of {seed_data}{f' at commit {commit}' if commit else ''}"
    new_commit = store.put(files, message=message)
    log.info("copied %d files of %s to %s, commit %s", len(files), seed_data, data_repo, new_commit)


def _files_at_head(store: Store) -> set[str]:
    """The files of a data repository; none where it has no commit yet."""
    try:
        return set(store.resolve().files)
    except NotFound:
        if not store.exists():
            raise
        return set()


def _fetch_seed(
    data_repo: str, seed_data: str, scratch: Path, progress: Progress | None, options: dict[str, Any]
) -> tuple[dict[str, Path], str]:
    """The files to copy (repository path -> local file), and the commit they are of ("" of a plain folder)."""
    if not is_remote(seed_data) and not (Path(seed_data).expanduser() / ".oxen").exists():
        root = Path(seed_data).expanduser()  # a plain folder stays one
        if not root.is_dir():
            raise NotFound(f"{seed_data} is no folder; expected one with M0/train in it, or a server's address")
        names = list(walk(root))
        return {path: root / path for path in _seed_paths(names, seed_data)}, ""
    store = open_store(seed_data, branch="main", token=_token_variable(data_repo, seed_data), **options)
    snapshot = store.resolve()
    paths = _seed_paths(snapshot.files, f"{seed_data} at commit {snapshot.commit}")
    store.pull(snapshot, paths, scratch, progress)
    return {path: scratch / path for path in paths}, snapshot.commit


def _token_variable(data_repo: str, seed_data: str) -> str:
    """Where the token for `seed_data` is: that of one server is not shown to another."""
    same = is_remote(data_repo) and data_repo.split("/")[:3] == seed_data.split("/")[:3]
    return "OXEN_TOKEN" if same else "SEED_OXEN_TOKEN"


def _seed_paths(names: Any, where: str) -> list[str]:
    """What of the files `names` is seed data: not what a stage wrote there, nor hidden files, which are nobody's."""
    written = {one.path.format(k=0) for one in artifacts.ARTIFACTS.values() if one.written_by != "user"}
    paths = [
        path
        for path in names
        if path.startswith(tuple(f"{folder}/" for folder in SEEDED))
        and path not in written
        and not any(p[0] == "." for p in path.split("/"))
    ]
    if not any(path.startswith("M0/train/") and path.endswith(".jsonl") for path in paths):
        there = sorted({str(Path(path).parent) for path in names if path[0] != "."})
        shown = ", ".join("its top folder" if folder == "." else folder for folder in there[:8])
        raise NotFound(f"{where} has no M0/train/*.jsonl; files are in {shown or 'no folder'}")
    return sorted(paths)

"""Copying the first run's training data from another data repository: the parameter seed_data."""

import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import TypedDict

from self_reward.errors import UserError
from self_reward.repository import artifacts
from self_reward.store import Progress, Store, is_remote, open_store
from self_reward.store.content import walk
from self_reward.store.errors import NotFound

log = logging.getLogger("self_reward")

FOLDERS = ("M0/train/", "M0/eval/")  # what is copied


class _Options(TypedDict):
    """What both stores are opened with."""

    lock_timeout: float
    store_timeout: float
    cache_dir: str | Path


def copy_seed_data(
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
    `data_repo`, if that has no M0/train/*.jsonl yet. One commit: a kill leaves either all of it or nothing.

    `scratch`: an empty folder for this call alone. The folder of a local `data_repo` is made if it is missing; a remote
    one must exist. Existing files are kept as they are. The token for `seed_data` is that of `data_repo` if both are
    on one server, else SEED_OXEN_TOKEN. Raises NotFound if there is nothing to copy, with what exists instead; Network
    if `seed_data` cannot be reached.
    """
    options: _Options = {"lock_timeout": lock_timeout, "store_timeout": store_timeout, "cache_dir": cache_dir}
    target = open_store(data_repo, branch=branch, **options)
    existing: set[str] = set()
    if is_remote(data_repo) or target.exists():
        existing = _files_at_head(target)
        if train := sorted(path for path in existing if path.startswith("M0/train/") and path.endswith(".jsonl")):
            log.info("seed_data is not needed: %s has %s", data_repo, ", ".join(train[:3]))
            return
    try:
        source, commit = _fetch(data_repo, seed_data, scratch, progress, options)
    except UserError as error:
        problems = [problem.removeprefix("data_repo ") for problem in error.problems]
        variable = _token_variable(data_repo, seed_data)
        problems = [re.sub(r"\bOXEN_TOKEN", variable, problem) for problem in problems]
        raise type(error)([f"seed_data: {problem}" for problem in problems]) from None
    files = {path: local for path, local in source.items() if path not in existing}
    if not is_remote(data_repo):
        target.create()
    at = f" at commit {commit}" if commit else ""
    copied = target.put(files, message=f"seed data: M0/train and M0/eval of {seed_data}{at}")
    log.info("copied %d files from %s to %s, commit %s", len(files), seed_data, data_repo, copied)


def _files_at_head(store: Store) -> set[str]:
    """The files of a data repository; none if it has no commit yet."""
    try:
        return set(store.resolve().files)
    except NotFound:
        if not store.exists():
            raise
        return set()


def _fetch(
    data_repo: str, seed_data: str, scratch: Path, progress: Progress | None, options: _Options
) -> tuple[dict[str, Path], str]:
    """The files to copy (repository path -> local file), and their commit ("" for a plain folder)."""
    root = Path(seed_data).expanduser()
    if not is_remote(seed_data) and not (root / ".oxen").exists():  # a plain folder is not made into a repository
        if not root.is_dir():
            raise NotFound(f"{seed_data} is not a folder; expected one with M0/train in it, or a server's address")
        return {path: root / path for path in _seed_paths(list(walk(root)), seed_data)}, ""
    store = open_store(seed_data, branch="main", token=_token_variable(data_repo, seed_data), **options)
    snapshot = store.resolve()
    paths = _seed_paths(snapshot.files, f"{seed_data} at commit {snapshot.commit}")
    store.pull(snapshot, paths, scratch, progress)
    return {path: scratch / path for path in paths}, snapshot.commit


def _token_variable(data_repo: str, seed_data: str) -> str:
    """The variable with the token for `seed_data`: the token of one server is not shown to another."""
    same = is_remote(data_repo) and data_repo.split("/")[:3] == seed_data.split("/")[:3]
    return "OXEN_TOKEN" if same else "SEED_OXEN_TOKEN"


def _seed_paths(names: Collection[str], where: str) -> list[str]:
    """Which of the files `names` are seed data: neither what a stage wrote there nor hidden files."""
    written = artifacts.written_paths(0)
    paths = [
        path
        for path in names
        if path.startswith(FOLDERS) and path not in written and not any(part[0] == "." for part in path.split("/"))
    ]
    if not any(path.startswith("M0/train/") and path.endswith(".jsonl") for path in paths):
        folders = sorted({str(Path(path).parent) for path in names if path[0] != "."})
        shown = ", ".join("its top folder" if folder == "." else folder for folder in folders[:8])
        raise NotFound(f"{where} has no M0/train/*.jsonl; files are in {shown or 'no folder'}")
    return sorted(paths)

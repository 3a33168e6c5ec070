"""Copying the first run's training data from another data repository: the parameter seed_data."""

import logging
import re
from collections.abc import Collection
from pathlib import Path

from self_reward.errors import UserError
from self_reward.parameters.stages import Plan
from self_reward.repository import artifacts
from self_reward.run.checkout import open_data_repo
from self_reward.run.progress import Progress
from self_reward.store import Store, is_remote
from self_reward.store.content import walk
from self_reward.store.errors import NotFound

log = logging.getLogger("self_reward")

FOLDERS = ("M0/train/", "M0/eval/")  # what is copied


def copy_seed_data(p: Plan, scratch: Path) -> None:
    """Copy M0/train and M0/eval of the data repository `seed_data` (a folder, or branch main at a server's address) to
    `data_repo`, unless that has an M0/train/*.jsonl. One commit: a kill leaves either all of it or nothing.

    `scratch`: an empty folder for this call alone. The folder of a local `data_repo` is created if it is missing; a
    remote one must exist. Existing files are kept as they are. The token for `seed_data` is that of `data_repo` if both
    are on one server, else SEED_OXEN_TOKEN. Raises NotFound if there is nothing to copy, with what exists instead;
    Network if `seed_data` cannot be reached.
    """
    seed_data = p.seed_data or ""
    # the token of one server is not shown to another
    same_server = is_remote(p.data_repo) and p.data_repo.split("/")[:3] == seed_data.split("/")[:3]
    token = "OXEN_TOKEN" if same_server else "SEED_OXEN_TOKEN"
    target = open_data_repo(p)
    existing: set[str] = set()
    if is_remote(p.data_repo) or target.exists():
        existing = _files_at_head(target)
        if train := sorted(path for path in existing if path.startswith("M0/train/") and path.endswith(".jsonl")):
            log.info("seed_data is not needed: %s has %s", p.data_repo, ", ".join(train[:3]))
            return
    try:
        source, commit = _fetch(p, seed_data, token, scratch)
    except UserError as error:
        problems = [re.sub(r"\bOXEN_TOKEN", token, text.removeprefix("data_repo ")) for text in error.problems]
        raise type(error)([f"seed_data: {problem}" for problem in problems]) from None
    files = {path: local for path, local in source.items() if path not in existing}
    if not is_remote(p.data_repo):
        target.create()
    at = f" at commit {commit}" if commit else ""
    copied = target.put(files, message=f"seed data: M0/train and M0/eval of {seed_data}{at}")
    log.info("copied %d files from %s to %s, commit %s", len(files), seed_data, p.data_repo, copied)


def _files_at_head(store: Store) -> set[str]:
    """The files of a data repository; none if it has no commit yet."""
    try:
        return set(store.resolve().files)
    except NotFound:
        if not store.exists():
            raise
        return set()


def _fetch(p: Plan, seed_data: str, token: str, scratch: Path) -> tuple[dict[str, Path], str]:
    """The files to copy (repository path -> local file), and their commit ("" for a plain folder)."""
    root = Path(seed_data).expanduser()
    if not is_remote(seed_data) and not (root / ".oxen").exists():  # a plain folder is not made into a repository
        if not root.is_dir():
            raise NotFound(f"{seed_data} is not a folder; expected one with M0/train in it, or a server's address")
        return {path: root / path for path in _seed_paths(list(walk(root)), seed_data)}, ""
    store = open_data_repo(p.model_copy(update={"data_repo": seed_data, "branch": "main"}), token)
    snapshot = store.resolve()
    paths = _seed_paths(snapshot.files, f"{seed_data} at commit {snapshot.commit}")
    store.pull(snapshot, paths, scratch, Progress())
    return {path: scratch / path for path in paths}, snapshot.commit


def _seed_paths(names: Collection[str], where: str) -> list[str]:
    """Those of the files `names` that are seed data: not hidden, and not written by a stage."""
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

"""Look at a data repository, fetch from it, and bring data to it: what `self-reward data` and seed_data do.

All of it goes through the store's facade, so a folder and a server are the same here. Functions that only make text of
what they are given do no I/O.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from self_reward.errors import UserError
from self_reward.store import Snapshot, index, is_remote, open_store
from self_reward.store.errors import NotFound
from self_reward.store.local import make_folder

log = logging.getLogger("self_reward")

SEEDED = ("M0/train", "M0/eval")


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
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Copy M0/train and M0/eval of the data repository `seed_data` (a folder, or branch main at a server's address) to
    `data_repo`, where that has no M0/train/*.jsonl. One commit: after a kill all of it is there, or nothing.

    `scratch` is an empty folder of this call's own. A local `data_repo` whose folder is missing or empty is made; a
    remote one must exist. Files that are there already are left as they are. The token for `seed_data` is that of
    `data_repo` where both are on one server, else SEED_OXEN_TOKEN. Raises NotFound where there is nothing to copy, with
    what is there; Network when `seed_data` cannot be reached.
    """
    options: dict[str, Any] = {"lock_timeout": lock_timeout, "store_timeout": store_timeout, "cache_dir": cache_dir}
    there: set[str] = set()
    if is_remote(data_repo) or _has_files(data_repo):
        there = _files_at_head(data_repo, branch=branch, **options)
        if has := sorted(path for path in there if path.startswith("M0/train/") and path.endswith(".jsonl")):
            log.info("seed_data is not needed: %s has %s", data_repo, ", ".join(has[:3]))
            return
    try:
        source, commit = _fetch_seed(data_repo, seed_data, scratch, progress, options)
    except UserError as error:
        problems = [problem.removeprefix("data_repo ") for problem in error.problems]
        variable = _token_variable(data_repo, seed_data)
        raise type(error)([f"seed_data: {one.replace('OXEN_TOKEN', variable)}" for one in problems]) from None
    files = {path: local for path, local in source.items() if path not in there}
    if not is_remote(data_repo):
        make_folder(data_repo)
    made = open_store(data_repo, branch=branch, **options).put(
        files, message=f"seed data: M0/train and M0/eval of {seed_data}{f' at commit {commit}' if commit else ''}"
    )
    log.info("copied %d files of %s to %s, commit %s", len(files), seed_data, data_repo, made)


def _has_files(folder: str) -> bool:
    root = Path(folder).expanduser()
    return root.exists() and not (root.is_dir() and not any(root.iterdir()))


def _files_at_head(data_repo: str, **options: Any) -> set[str]:
    """The files of a data repository; none where it has no commit yet."""
    store: Any = open_store(data_repo, **options)
    try:
        return set(store.resolve().files)
    except NotFound:
        if is_remote(data_repo) and not store.exists():
            raise
        return set()


def _fetch_seed(
    data_repo: str, seed_data: str, scratch: Path, progress: Any, options: dict[str, Any]
) -> tuple[dict[str, Path], str]:
    """The files to copy (repository path -> local file), and the commit they are of ("" of a plain folder)."""
    if not is_remote(seed_data) and not (Path(seed_data).expanduser() / ".oxen").exists():
        root = Path(seed_data).expanduser()  # a plain folder stays one
        if not root.is_dir():
            raise NotFound(f"{seed_data} is no folder; expected one with M0/train in it, or a server's address")
        names = list(index.walk(root))
        return {path: root / path for path in _seed_paths(names, seed_data)}, ""
    store = _open_seed(data_repo, seed_data, options)
    snapshot: Snapshot = store.resolve()
    paths = _seed_paths(snapshot.files, f"{seed_data} at commit {snapshot.commit}")
    store.pull(snapshot, paths, scratch, progress)
    return {path: scratch / path for path in paths}, snapshot.commit


def _open_seed(data_repo: str, seed_data: str, options: dict[str, Any]) -> Any:
    if not is_remote(seed_data):
        return open_store(seed_data, branch="main", **options)
    from self_reward.store.remote import RemoteStore

    return RemoteStore(
        seed_data,
        branch="main",
        store_timeout=options["store_timeout"],
        cache_dir=Path(options["cache_dir"]),
        token=_token_variable(data_repo, seed_data),
    )


def _token_variable(data_repo: str, seed_data: str) -> str:
    """Where the token for `seed_data` is: that of one server is not shown to another."""
    same = is_remote(data_repo) and data_repo.split("/")[:3] == seed_data.split("/")[:3]
    return "OXEN_TOKEN" if same else "SEED_OXEN_TOKEN"


def _seed_paths(names: Any, where: str) -> list[str]:
    """What of the files `names` is seed data; hidden files are nobody's data."""
    paths = [
        path
        for path in names
        if path.startswith(tuple(f"{folder}/" for folder in SEEDED)) and not any(p[0] == "." for p in path.split("/"))
    ]
    if not any(path.startswith("M0/train/") and path.endswith(".jsonl") for path in paths):
        there = sorted({str(Path(path).parent) for path in names if path[0] != "."})
        shown = ", ".join("its top folder" if folder == "." else folder for folder in there[:8])
        raise NotFound(f"{where} has no M0/train/*.jsonl; files are in {shown or 'no folder'}")
    return sorted(paths)

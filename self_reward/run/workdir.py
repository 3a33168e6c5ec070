"""Folders of uncommitted work: where they are, who may use them, when they are removed."""

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from self_reward import files
from self_reward.errors import TryAgain
from self_reward.parameters.stages import Repository
from self_reward.store import is_remote

ABANDONED_DAYS = 14  # after which partial results that nobody resumed are removed
MUCH = 1 << 30  # bytes of other partial results that are worth a line

log = logging.getLogger("self_reward")


def folder_of(p: Repository, key: str) -> Path:
    """Where the work with `key` keeps what is not committed yet: two repositories with equal data must not share it."""
    work_dir = Path(p.work_dir or f"{p.cache_dir}/work").expanduser().resolve()
    name = p.data_repo.rstrip("/") if is_remote(p.data_repo) else Path(p.data_repo).expanduser().resolve()
    repository = hashlib.sha256(f"{name} {p.branch}".encode()).hexdigest()
    return work_dir / repository[:16] / key


@contextlib.contextmanager
def scratch_folder(p: Repository, name: str) -> Iterator[Path]:
    """A folder for the program `name`, empty and removed afterwards. What it leaves when it is killed, the next one
    removes. Raises TryAgain while another process has it."""
    folder = folder_of(p, name)
    with only_worker(folder):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def only_worker(folder: Path) -> Iterator[None]:
    """Two processes must not write the same partial results."""
    try:
        with files.reserved(folder):
            yield
    except files.Locked as error:
        raise TryAgain(f"process {error.holder} is running this very stage ({error.path})") from None


def remove_abandoned(own: Path) -> None:
    """Remove the folders beside `own`, of runs of the same data repository and branch that were given up for one with
    other parameters, when nobody has touched them for ABANDONED_DAYS. Says so when much of them is left."""
    left = 0
    for folder in sorted({entry.with_suffix("") for entry in own.parent.glob("*")} - {own}):
        states = _states(folder)
        touched = [state.st_mtime for state in states]
        with contextlib.suppress(FileNotFoundError):  # all there is of a process that begins; we must not be in its way
            touched.append(folder.with_name(folder.name + ".lock").stat().st_mtime)
        days = (time.time() - max(touched, default=0)) / 86400
        if days < ABANDONED_DAYS:
            left += sum(state.st_blocks * 512 for state in states)
        elif files.remove_unreserved(folder) and states:
            log.info("removed %s: uncommitted work that nobody touched for %d days", folder, days)
    if left > MUCH:
        log.info(
            "uncommitted work of other runs takes %.1f GB in %s; remove what is not wanted", left / 1e9, own.parent
        )


def _states(folder: Path) -> list[os.stat_result]:
    """What is known of `folder` and all in it, less what the process that works there removes meanwhile."""
    states = []
    for where, _, names in os.walk(folder):
        for path in [where, *(os.path.join(where, name) for name in names)]:
            with contextlib.suppress(FileNotFoundError):
                states.append(os.lstat(path))
    return states

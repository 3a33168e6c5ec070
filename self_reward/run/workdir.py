"""Folders of uncommitted work: where they are, which process may use them, when they are removed."""

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
MUCH = 1 << 30  # bytes of other partial results that are worth a line in the log

log = logging.getLogger("self_reward")


def folder_of(p: Repository, key: str) -> Path:
    """The folder of uncommitted work with `key`, separate for each repository and branch, even with equal data."""
    work_dir = Path(p.work_dir or f"{p.cache_dir}/work").expanduser().resolve()
    name = p.data_repo.rstrip("/") if is_remote(p.data_repo) else Path(p.data_repo).expanduser().resolve()
    repository = hashlib.sha256(f"{name} {p.branch}".encode()).hexdigest()
    return work_dir / repository[:16] / key


@contextlib.contextmanager
def scratch_folder(p: Repository, name: str) -> Iterator[Path]:
    """An empty folder for the program `name`, removed afterwards, or at the next start after a kill. Raises TryAgain
    while another process has it."""
    folder = folder_of(p, name)
    with only_worker(folder):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def only_worker(folder: Path) -> Iterator[None]:
    """Reserve `folder`: two processes must not write the same partial results. Raises TryAgain if it is taken."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.reserved(folder))
        except files.Locked as error:
            raise TryAgain(f"process {error.holder} is running this very stage ({error.path})") from None
        yield


def remove_abandoned(own: Path) -> None:
    """Remove folders beside `own` that nobody has touched for ABANDONED_DAYS: of runs of the same data repository and
    branch with other parameters. Logs it if much is left."""
    left = 0
    for folder in sorted({entry.with_suffix("") for entry in own.parent.glob("*")} - {own}):
        states = _states(folder)
        touched = [state.st_mtime for state in states]
        with contextlib.suppress(FileNotFoundError):  # a process that has just begun has nothing but its lock
            touched.append(folder.with_name(folder.name + ".lock").stat().st_mtime)
        days = (time.time() - max(touched, default=0)) / 86400
        if days < ABANDONED_DAYS:
            left += sum(state.st_blocks * 512 for state in states)
        elif files.remove_unreserved(folder) and states:
            log.info("removed %s: uncommitted work that nobody touched for %d days", folder, days)
    if left > MUCH:
        log.info(
            "uncommitted work of other runs takes %.1f GB in %s; remove what is not needed", left / 1e9, own.parent
        )


def _states(folder: Path) -> list[os.stat_result]:
    """The states of `folder` and all that it holds. A process that works there may remove files meanwhile."""
    states = []
    for where, _, names in os.walk(folder):
        for path in [where, *(os.path.join(where, name) for name in names)]:
            with contextlib.suppress(FileNotFoundError):
                states.append(os.lstat(path))
    return states

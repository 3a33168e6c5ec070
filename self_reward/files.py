"""Files and folders that are written whole or not at all, and locks that end with the processes that hold them.

One rule for what a kill leaves behind: NAME is written as `.NAME.part` beside it and renamed at the end. That name is
hidden, so it is not taken for data, and always the same, so whoever writes NAME next replaces what a killed process
left of it.
"""

import contextlib
import errno
import fcntl
import hashlib
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from self_reward import disk
from self_reward.errors import TryAgain, UserError

LONGEST_NAME = 255  # bytes, of every usual file system
POLL_SECONDS = 0.05
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def partial(path: Path) -> Path:
    """Where `path` is written before it is renamed."""
    name = f".{path.name}.part"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.part"
    return path.with_name(name)


@contextlib.contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """The path of an empty file to write to. It becomes `path` when the block ends and is removed when the block fails.

    Several processes and threads may write the same `path`: each waits until the one before it has finished.
    `durable`: the content is on the disk before it gets its name, so it also survives a loss of power.
    """
    part = partial(path)
    with lock(part) as file:  # its folder is made there
        try:
            if os.fstat(file.fileno()).st_size:  # left by a killed process
                file.truncate(0)
            yield part
            if durable:
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def write_whole(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write `content`, text as UTF-8, as `whole_file` does."""
    with whole_file(path, durable=durable) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write into. It replaces `path` when the block ends and is removed when the block fails.

    Only one process may do so at a time: hold a lock where several could. Raises TryAgain when the disk is full.
    """
    part = partial(path)
    shutil.rmtree(part, ignore_errors=True)
    try:
        with disk.explained(path.parent):
            part.mkdir(parents=True)
            yield part
            shutil.rmtree(path, ignore_errors=True)
            part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


class Locked(TryAgain):
    """Another process holds the lock file `path`. `holder`: what the file says about that process."""

    def __init__(self, path: Path, holder: str):
        super().__init__(f"{path} is locked by {f'process {holder}' if holder.isdecimal() else 'another process'}")
        self.path, self.holder = path, holder


def lock(path: Path, *, shared: bool = False, seconds: float = math.inf) -> BinaryIO:
    """Lock the file `path`, which is made where it is missing, and return it open: to close it is to unlock.

    The lock belongs to the open file, so it ends with the last process that has it open, however that ends. A child
    process that is given its descriptor (`pass_fds`) holds the lock as well. Any number of processes may hold a
    `shared` lock while nobody holds an exclusive one. A holder may remove or replace the file: whoever waited for it
    then starts again with the new one.
    Raises Locked where it is still held after `seconds`, UserError on a file system that has no locks.
    """
    end = time.monotonic() + seconds
    while True:
        # The holder may just have removed the folder or the file. Where the folder is a file, open() says so.
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
            try:
                _take(file, path, shared, end)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()


def _take(file: BinaryIO, path: Path, shared: bool, end: float) -> None:
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            return fcntl.flock(file, operation if end == math.inf else operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                holder = os.pread(file.fileno(), 1 << 16, 0).decode(errors="replace").strip()
                raise Locked(path, holder) from None
            time.sleep(POLL_SECONDS)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise UserError(f"{path} cannot be locked: {error.strerror}. Use a file system that has locks") from error


@contextlib.contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder`, which need not exist, by locking FOLDER.lock.

    The lock file names this process. It is removed at the end, together with the folder above it where that is empty
    by then. Raises Locked, whose `holder` is a process id, where another process has the folder.
    """
    path = _lock_of(folder)
    with lock(path, seconds=0) as file:
        try:
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                path.parent.rmdir()


def remove_unreserved(folder: Path) -> bool:
    """Remove `folder` and its lock file, unless a running process has reserved it. Returns whether anything was
    removed."""
    if not folder.exists() and not _lock_of(folder).exists():
        return False
    try:
        with reserved(folder):
            shutil.rmtree(folder, ignore_errors=True)
    except Locked:
        return False
    return True


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")

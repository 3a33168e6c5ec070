"""A full disk, recognised in any library's error and reported as one, with the folder, what is free and what is needed.

Exit code 75.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from self_reward.errors import TryAgain, UserError

ERRNOS = (errno.ENOSPC, errno.EDQUOT)
# What Oxen, safetensors, torch and tokenizers say; each has its own exception, with the system's words in it.
WORDS = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")
NO_TEMPORARY = "No usable temporary directory"  # tempfile could not write into any
LITTLE = 1 << 20  # bytes; with less, a database error that names no reason is taken for a full disk


def is_full(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from, says that a disk is full."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in ERRNOS) or any(
            words in str(error) for words in (*WORDS, NO_TEMPORARY)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def nearly_full(folder: Path) -> bool:
    """Whether the file system of `folder` has next to no space, or no inodes, left."""
    state = os.statvfs(existing(folder))
    return state.f_bavail * state.f_frsize < LITTLE or (state.f_files > 0 and state.f_favail < 16)


def existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def in_words(*folders: Path, needed: int = 0) -> str:
    """`needed`: bytes, where known. Of several folders those on a full disk are named, or all where none is (now)."""
    folders = tuple(dict.fromkeys(folders))
    full = [folder for folder in folders if nearly_full(folder)] or folders
    where = ", ".join(f"{folder} ({_free(folder)})" for folder in full)
    which = "the disk is full" if len(full) == 1 else "a disk is full, that of one of these folders"
    need = f"; about {needed / 1e6:.1f} MB are needed" if needed else ""
    return f"{which}: {where}{need}. Make room there and run again: it resumes from what is done"


def _free(folder: Path) -> str:
    there = existing(folder)
    usage, state = shutil.disk_usage(there), os.statvfs(there)
    inodes = f", {state.f_favail} of {state.f_files} inodes" if 0 <= state.f_favail < 16 < state.f_files else ""
    return f"{usage.free / 1e6:.1f} MB free of {usage.total / 1e6:.0f} MB{inodes}"


@contextlib.contextmanager
def explained(*folders: Path, needed: int = 0) -> Iterator[None]:
    """Turn any error of the block that means a full disk into a TryAgain that names the folder.

    Libraries also lose the reason (torch: "PytorchStreamWriter failed writing file"): a RuntimeError or OSError
    is taken for a full disk when one of `folders` has next to nothing free.
    """
    try:
        yield
    except BaseException as error:  # Oxen's panics are not Exceptions
        if isinstance(error, TryAgain | UserError):
            raise
        if is_full(error):
            named = getattr(error, "filename2", None) or getattr(error, "filename", None)
            here = (Path(os.fsdecode(named)).parent,) if isinstance(named, str | bytes) else folders
            raise TryAgain(in_words(*here, needed=needed)) from error
        if isinstance(error, RuntimeError | OSError) and any(map(nearly_full, folders)):
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TryAgain(f"{in_words(*folders, needed=needed)} ({type(error).__name__}: {first})") from error
        raise

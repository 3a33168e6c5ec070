"""How a program begins and ends: its log, its exit code, SIGTERM.

Exit codes: 0 done, also when a stop rule fired; 2 the user must change something; 75 try again later; 1 a bug (with
traceback); 143 ended by SIGTERM, 130 by Ctrl-C, with what is on disk kept. The last error also goes to the file
$TERMINATION_LOG.
"""

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO

import self_reward
from self_reward import disk
from self_reward.errors import TryAgain, UserError

PROBLEM = "error: "  # begins each problem of a UserError
MESSAGE = 4000  # bytes of an error in $TERMINATION_LOG; Kubernetes reads 4096
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)

log = logging.getLogger("self_reward")


def guard(function: Callable[[], None], name: str = "plan") -> int:
    """Call `function`, report its errors on standard error, and return the matching exit code."""
    _log_to_stderr(name)
    _end_on_sigterm()
    try:
        function()
        _flush(sys.stdout)
    except UserError as error:
        return _failed(2, "\n".join(f"{PROBLEM}{problem}" for problem in error.problems))
    except TryAgain as error:
        return _failed(75, f"try again: {error}")
    except KeyboardInterrupt:
        return _failed(130, "interrupted")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NOT_ALLOWED:
            return _failed(2, f"error: {error}")
        if disk.is_full(error):
            return _failed(75, f"try again: {disk.in_words(Path.cwd())} ({error})")
        if reason := _may_pass(error):
            return _failed(75, f"try again: {reason}: {error}")
        return _failed(1, f"a bug in self_reward {self_reward.__version__}:\n{traceback.format_exc()}")
    return 0


def _log_to_stderr(name: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {name} %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(logging.INFO)
    logging.raiseExceptions = False  # a line that a full disk refuses is lost without a traceback


def _failed(code: int, text: str) -> int:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)
        _flush(sys.stderr)
    if file := os.environ.get("TERMINATION_LOG"):
        with contextlib.suppress(OSError):
            Path(file).write_text(_shortened(text), encoding="utf-8")
    return code


def _shortened(text: str) -> str:
    """The part of an error's text that Kubernetes shows: the first problems of a list, else the end."""
    if len(text.encode()) <= MESSAGE:
        return text
    if not text.startswith(PROBLEM):
        return text.encode()[-MESSAGE:].decode(errors="ignore")
    problems = text.removeprefix(PROBLEM).split(f"\n{PROBLEM}")
    for count in range(len(problems) - 1, 0, -1):
        shown = PROBLEM + f"\n{PROBLEM}".join(problems[:count])
        shown += f"\nand {len(problems) - count} more; the log has all"
        if len(shown.encode()) <= MESSAGE:
            return shown
    return text.encode()[:MESSAGE].decode(errors="ignore")


def _flush(stream: IO[str]) -> None:
    """Flush; if that fails, drop what is left, so that Python does not fail again when it exits (exit code 120)."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        stream.flush()
        raise


def _may_pass(error: BaseException) -> str:
    """Why the same command may succeed later, or ''. Types are compared by name, so that torch is not imported."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text:
        return "the GPU's memory is too small for this batch, or used by another process"
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, BrokenPipeError):
        return "the reader of this program's output, or a process that it talked to, has ended"
    return ""


def _end_on_sigterm() -> None:
    """Exit 143 on SIGTERM at once, even during a long call of a C library in the main thread: another thread waits for
    the byte that the signal's C handler writes."""
    if threading.current_thread() is not threading.main_thread():
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: _end())

    def watch() -> None:
        while byte := os.read(reader, 1):
            if byte[0] == signal.SIGTERM:
                _end()

    threading.Thread(target=watch, daemon=True, name="sigterm").start()


def _end() -> None:
    for pid in _descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)  # Oxen and engine processes; what they leave is repaired at the next start
    with contextlib.suppress(BaseException):
        _failed(143, "ended by SIGTERM; run again to resume from what is on disk")
        sys.stdout.flush()
    os._exit(143)


def _descendants(pid: int) -> list[int]:
    pids = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text().split()):
                pids += [child, *_descendants(child)]
    return pids

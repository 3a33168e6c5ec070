"""One of several processes that train together. train_group.py starts it and describes the files in FOLDER.

Run     python -m self_reward.models.train_worker FOLDER MEETING PARENT
        with RANK, WORLD_SIZE and LOCAL_RANK set. MEETING: a file on a local disk that they share; PARENT: the id of the
        process that starts them.
"""

import ctypes
import datetime
import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from self_reward import disk, files
from self_reward.errors import TryAgain, UserError
from self_reward.models import train_group
from self_reward.types import Json

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# How long processes wait for one that loads or saves; NCCL's default of ten minutes is too short for large checkpoints
# on a slow volume. The stage itself notices a dead process.
PATIENCE = datetime.timedelta(hours=2)


def main(folder: Path, meeting: Path, parent: int) -> int:
    """Train as `folder` says; returns the exit code."""
    # This process must end with the stage, whose next try would write into the same checkpoints.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    rank = int(os.environ["RANK"])
    try:
        lines = folder / "lines.jsonl"
        call = train_group.read_call(folder, lambda *numbers: _write_line(lines, {"progress": numbers}))
        with disk.explained(call.out.parent, folder):
            join(meeting)
            if rank == 0:
                _log_to(lines)
            from self_reward.models import training

            result = training.train(call)
            if rank == 0:
                (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    except Exception as error:
        report = {**_described(error), "rank": rank, "time": time.time(), "traceback": traceback.format_exc()}
        try:
            files.write_whole(folder / f"error-{rank}.json", json.dumps(report, default=str), durable=False)
        except OSError as unreported:
            if disk.is_full(unreported):  # perhaps the reason for `error` too
                _exit(train_group.DISK_FULL)
            raise
        _exit(1)
    _exit(0)


def join(meeting: Path) -> None:
    """Join the process group whose members share the file `meeting`: NCCL with GPUs (gloo for tensors in main memory),
    otherwise gloo."""
    import torch

    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=processes,
        timeout=PATIENCE,
    )


def _exit(code: int) -> NoReturn:
    """End at once: in a group that has lost a member, Python's own exit may wait for open connections."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _described(error: Exception) -> Json:
    text = str(error)
    if isinstance(error, UserError):
        return {"kind": "user", "problems": error.problems}
    if isinstance(error, TryAgain):
        return {"kind": "again", "text": text}
    if isinstance(error, MemoryError):
        return {"kind": "again", "text": "out of memory"}
    if type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text:
        return {"kind": "memory", "text": text}
    if isinstance(error, OSError) and error.errno:
        return {"kind": "system", "errno": error.errno, "text": error.strerror, "filename": error.filename}
    return {"kind": "other"}


def _write_line(file: Path, content: Json) -> None:
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(content) + "\n")


def _log_to(file: Path) -> None:
    """Send this process's log lines to the stage."""

    class ToFile(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _write_line(file, {"log": [record.levelno, record.getMessage()]})

    ours = logging.getLogger("self_reward")
    ours.setLevel(logging.INFO)
    ours.addHandler(ToFile())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))

"""One training over several processes of this machine, a GPU each: the starting side. train_worker.py is the other.

The processes find each other as accelerate's documentation has it, by the environment variables of torch's launcher.
They are our own children and not a launcher's: one that dies ends the others within a second, no port has to be free,
and `accelerate launch` would need mpirun where there is no GPU. In `folder`: call.json and examples.npz, what to train;
lines.jsonl, progress and log lines of process 0; result.json; error-<i>.json and log-<i>.txt, where a process failed.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from self_reward import disk
from self_reward.errors import TryAgain, UserError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
DISK_FULL = 75  # exit code of a process that could not write why it ended
LAST_WORDS_SECONDS = 3.0  # in which the others may say what they know when one has failed
PASSED_BY = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGBUS)  # nobody's bug: memory, eviction, a person


def run(
    function: str,
    model_dir: Path,
    examples: list[tuple[list[int], ...]],
    out: Path,
    folder: Path,
    *,
    processes: int,
    progress: Callable[[int, int, str], None] | None,
    **settings: Any,
) -> dict[str, Any]:
    """Call training.<function>(model_dir, examples, out, **settings) in `processes` processes at once and return what
    it returns in the first. `folder`, a new one, is where they write to each other.

    Raises what it raises there: UserError and TryAgain as they are, torch.OutOfMemoryError, OSError with its number,
    anything else as RuntimeError with the process's traceback; TryAgain where a process was killed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    children: list[subprocess.Popen[bytes]] = []
    meeting = tempfile.mkdtemp(
        prefix="self-reward-"
    )  # a local disk: torch locks the file there, which NFS may not have
    try:
        write_call(folder, function, model_dir, examples, out, settings | {"processes": processes})
        for rank in range(processes):
            children.append(_start(folder, Path(meeting, "file"), rank, processes))
        said = 0
        while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
            time.sleep(POLL_SECONDS)
            said = _forward(folder, said, progress)
        _forward(folder, said, progress)
        if any(child.returncode for child in children):
            _raise_why(folder, children)
        result: dict[str, Any] = json.loads((folder / "result.json").read_bytes())
        return result
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(meeting, ignore_errors=True)


def environment(rank: int, processes: int) -> dict[str, str]:
    """The environment of process `rank`: its place in the group, and its share of the cores."""
    cores = os.environ.get("OMP_NUM_THREADS", "")  # in a cluster what the pod asks for
    threads = (int(cores) if cores.isdecimal() else len(os.sched_getaffinity(0))) // processes
    return {
        "GLOO_SOCKET_IFNAME": "lo",
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, threads)),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",  # asked for by accelerate; the processes meet in a file
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
    }


def _start(folder: Path, meeting: Path, rank: int, processes: int) -> "subprocess.Popen[bytes]":
    with open(folder / f"log-{rank}.txt", "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "self_reward.models.train_worker", str(folder), str(meeting), str(os.getpid())],
            env=environment(rank, processes),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )


def write_call(
    folder: Path,
    function: str,
    model_dir: Path,
    examples: list[tuple[list[int], ...]],
    out: Path,
    settings: dict[str, Any],
) -> None:
    """What read_call reads again."""
    import numpy

    call = {"function": function, "model_dir": str(model_dir), "out": str(out), "settings": settings}
    (folder / "call.json").write_text(json.dumps(call, default=str), encoding="utf-8")  # a Path is the only other type
    numpy.savez(
        folder / "examples.npz",
        lengths=numpy.array([[len(part) for part in example] for example in examples], dtype=numpy.int64),
        ids=numpy.array([token for example in examples for part in example for token in part], dtype=numpy.int32),
    )


def read_call(folder: Path) -> tuple[str, Path, list[tuple[list[int], ...]], Path, dict[str, Any]]:
    """(name of the function, model_dir, examples, out, settings) that write_call wrote."""
    import numpy

    call = json.loads((folder / "call.json").read_bytes())
    with numpy.load(folder / "examples.npz") as file:
        lengths, ids = file["lengths"], file["ids"]
    parts = [part.tolist() for part in numpy.split(ids, numpy.cumsum(lengths.ravel())[:-1])]
    width = lengths.shape[1]
    examples = [tuple(parts[i : i + width]) for i in range(0, len(parts), width)]
    return call["function"], Path(call["model_dir"]), examples, Path(call["out"]), call["settings"]


def _forward(folder: Path, done: int, progress: Callable[[int, int, str], None] | None) -> int:
    """Show the lines of process 0 from byte `done` on; returns up to where they were whole."""
    try:
        with open(folder / "lines.jsonl", "rb") as file:
            file.seek(done)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                done += len(line)
                said = json.loads(line)
                if "progress" in said and progress:
                    progress(*said["progress"])
                elif "log" in said:
                    log.log(*said["log"])
    except FileNotFoundError:
        pass
    return done


def _raise_why(folder: Path, children: "list[subprocess.Popen[bytes]]") -> None:
    """Raise what ended the group. When one process fails, the others fail too, of the connection to it: so the first
    error is the one that counts, but what a person has to do, or a kill, explains more."""
    killed = {rank: -child.returncode for rank, child in enumerate(children) if (child.returncode or 0) < 0}
    until = time.monotonic() + LAST_WORDS_SECONDS
    while any(child.poll() is None for child in children) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    killed |= {rank: -child.returncode for rank, child in enumerate(children) if (child.returncode or 0) < 0}
    found: list[dict[str, Any]] = [json.loads(file.read_bytes()) for file in folder.glob("error-*.json")]
    kinds = ["user", "again", "memory", "system", "other"]
    error = min(found, default=None, key=lambda error: (kinds.index(error["kind"]), error["time"]))
    passing = {rank: number for rank, number in killed.items() if number in PASSED_BY}
    if passing and (error is None or error["kind"] not in ("user", "again")):  # by others: we have killed none yet
        rank, number = next(iter(passing.items()))
        raise TryAgain(
            f"process {rank} of {len(children)} of this training was ended by {signal.Signals(number).name}"
            + (" (for want of memory?)" if number == signal.SIGKILL else "")
            + "; run again to go on from the last checkpoint"
        )
    full = any(child.returncode == DISK_FULL for child in children)
    if full and (error is None or error["kind"] not in ("user", "again")):
        raise TryAgain(disk.in_words(folder))
    if error is None and killed:  # one that aborts after another's error (NCCL's watchdog does) does not hide that
        rank, number = next(iter(killed.items()))
        raise RuntimeError(
            f"process {rank} of {len(children)} of this training was ended by {signal.Signals(number).name}:\n"
            f"{_tail(folder, rank)}"
        )
    if error is None:
        rank = next(rank for rank, child in enumerate(children) if child.returncode)
        code = children[rank].returncode
        raise RuntimeError(
            f"process {rank} of {len(children)} of this training ended with {code}:\n{_tail(folder, rank)}"
        )
    if error["kind"] == "user":
        raise UserError(error["problems"])
    if error["kind"] == "again":
        raise TryAgain(error["text"])
    if error["kind"] == "memory":
        import torch

        raise torch.OutOfMemoryError(error["text"])
    if error["kind"] == "system":
        raise OSError(error["errno"], error["text"], error["filename"])
    raise RuntimeError(f"process {error['rank']} of {len(children)} of this training failed:\n{error['traceback']}")


def _tail(folder: Path, rank: int) -> str:
    return (folder / f"log-{rank}.txt").read_text(errors="replace")[-3000:]

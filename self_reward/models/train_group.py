"""One training over several processes of this machine, one GPU each: the starting side. train_worker.py is the other.

The processes find each other as accelerate documents it, by the environment variables of torch's launcher. They are
this process's own children, not a launcher's: if one dies, the others end within a second; no port has to be free; and
`accelerate launch` would need mpirun on a machine without a GPU. In the folder that they share: call.json and
examples.npz, what to train; lines.jsonl, progress and log lines of process 0; result.json; error-<i>.json and
log-<i>.txt of a process that failed.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from self_reward import disk
from self_reward.errors import TryAgain, UserError
from self_reward.models import model
from self_reward.models.job import Job, Progress
from self_reward.models.model import Model
from self_reward.parameters.settings import (
    DpoTraining,
    Hardware,
    Loading,
    Lora,
    PreferenceLoss,
    SftTraining,
    Training,
)
from self_reward.types import Json

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
DISK_FULL = 75  # exit code of a process that could not write why it ended
LAST_WORDS_SECONDS = 3.0  # in which the other processes may report what they know when one has failed
TRANSIENT_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGBUS)  # memory, eviction, or a user: retry


@dataclass(frozen=True)
class Call:
    """What is trained, and how: SFT on (prompt, completion), or DPO on (prompt, chosen, rejected) if there is a `loss`.
    `examples` are token ids."""

    model: Model
    examples: Sequence[tuple[list[int], ...]]
    out: Path
    training: Training
    lora: Lora
    hardware: Hardware
    job: Job
    loss: PreferenceLoss | None = None


def run(call: Call, folder: Path) -> Json:
    """Run training.train(call) in `call.hardware.processes` processes at once and return what it returns in the first.
    `folder`, a new one, is where they write to each other.

    Raises what it raises there: UserError and TryAgain as they are, torch.OutOfMemoryError, OSError with its number,
    anything else as RuntimeError with the process's traceback; TryAgain if a process was killed.
    """
    processes = call.hardware.processes
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    children: list[subprocess.Popen[bytes]] = []
    meeting = tempfile.mkdtemp(
        prefix="self-reward-"
    )  # a local disk: torch locks the file there, which NFS may not have
    try:
        write_call(folder, call)
        for rank in range(processes):
            children.append(_start(folder, Path(meeting, "file"), rank, processes))
        shown = 0
        while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
            time.sleep(POLL_SECONDS)
            shown = _forward(folder, shown, call.job.progress)
        _forward(folder, shown, call.job.progress)
        if any(child.returncode for child in children):
            _raise_why(folder, children)
        result: Json = json.loads((folder / "result.json").read_bytes())
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
    cores = os.environ.get("OMP_NUM_THREADS", "")  # in a cluster what the pod requests
    threads = (int(cores) if cores.isdecimal() else len(os.sched_getaffinity(0))) // processes
    return {
        "GLOO_SOCKET_IFNAME": "lo",
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, threads)),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",  # accelerate requires it; the processes meet in a file
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


def write_call(folder: Path, call: Call) -> None:
    """Write what read_call reads: the examples as arrays, all else as JSON."""
    import numpy

    values = {
        "model": str(call.model.folder),
        "chat_template": call.model.tokenizer.chat_template,
        "loading": call.model.loading.model_dump(),
        "out": str(call.out),
        "training": call.training.model_dump(),
        "lora": call.lora.model_dump(),
        "hardware": call.hardware.model_dump(),
        "folder": str(call.job.folder),
        "seed": call.job.seed,
        "loss": call.loss and call.loss.model_dump(),
    }
    (folder / "call.json").write_text(json.dumps(values), encoding="utf-8")
    numpy.savez(
        folder / "examples.npz",
        lengths=numpy.array([[len(part) for part in example] for example in call.examples], dtype=numpy.int64),
        ids=numpy.array([token for example in call.examples for part in example for token in part], dtype=numpy.int32),
    )


def read_call(folder: Path, progress: Progress) -> Call:
    """The call that write_call wrote, with a newly loaded tokenizer; it reports to `progress`."""
    import numpy

    values = json.loads((folder / "call.json").read_bytes())
    with numpy.load(folder / "examples.npz") as file:
        lengths, ids = file["lengths"], file["ids"]
    parts = [part.tolist() for part in numpy.split(ids, numpy.cumsum(lengths.ravel())[:-1])]
    width = lengths.shape[1]
    kind = DpoTraining if values["loss"] else SftTraining
    return Call(
        model.load(Path(values["model"]), Loading.model_validate(values["loading"]), values["chat_template"]),
        [tuple(parts[i : i + width]) for i in range(0, len(parts), width)],
        Path(values["out"]),
        kind.model_validate(values["training"]),
        Lora.model_validate(values["lora"]),
        Hardware.model_validate(values["hardware"]),
        Job(Path(values["folder"]), values["seed"], progress),
        PreferenceLoss.model_validate(values["loss"]) if values["loss"] else None,
    )


def _forward(folder: Path, done: int, progress: Progress) -> int:
    """Show the lines of process 0 from byte `done` on; returns the end of the last complete one."""
    try:
        with open(folder / "lines.jsonl", "rb") as file:
            file.seek(done)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                done += len(line)
                content = json.loads(line)
                if "progress" in content:
                    progress(*content["progress"])
                else:
                    log.log(*content["log"])
    except FileNotFoundError:
        pass
    return done


def _raise_why(folder: Path, children: "list[subprocess.Popen[bytes]]") -> None:
    """Raise what ended the group. When one process fails, the others lose the connection to it and fail too: so the
    first error is the one that counts, but what a person has to do, or a kill, explains more."""
    killed = {rank: -child.returncode for rank, child in enumerate(children) if (child.returncode or 0) < 0}
    until = time.monotonic() + LAST_WORDS_SECONDS
    while any(child.poll() is None for child in children) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    killed |= {rank: -child.returncode for rank, child in enumerate(children) if (child.returncode or 0) < 0}
    errors: list[Json] = [json.loads(file.read_bytes()) for file in folder.glob("error-*.json")]
    kinds = ["user", "again", "memory", "system", "other"]
    error = min(errors, default=None, key=lambda error: (kinds.index(error["kind"]), error["time"]))
    transient = {rank: number for rank, number in killed.items() if number in TRANSIENT_SIGNALS}
    if transient and (error is None or error["kind"] not in ("user", "again")):  # by others: we have killed none yet
        rank, number = next(iter(transient.items()))
        raise TryAgain(
            f"process {rank} of {len(children)} of this training was ended by {signal.Signals(number).name}"
            + (" (out of memory?)" if number == signal.SIGKILL else "")
            + "; run again to resume from the last checkpoint"
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

"""One training in several processes of this machine, one GPU each: the side that starts them. train_worker.py is the
other.

The processes find each other by the environment variables of torch's launcher, as accelerate documents. They are this
process's own children, not a launcher's: if one dies, the others end within a second; no free port is needed; and
`accelerate launch` would need mpirun on a machine without a GPU. The folder that they share: call.json and
examples.npz, what to train; lines.jsonl, progress and log lines of process 0; result.json; error-<i>.json and
log-<i>.txt of a process that failed.
"""

import contextlib
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

import self_reward.parameters.settings as settings
from self_reward import disk
from self_reward.errors import TryAgain, UserError
from self_reward.models import model
from self_reward.models.model import Job, Model, Progress
from self_reward.types import Json

log = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "self_reward.models.train_worker")
POLL_SECONDS = 0.2
DISK_FULL = 75  # exit code of a process that could not write why it ended
LAST_WORDS_SECONDS = 3.0  # for the other processes to report what they know when one has failed
TRANSIENT_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGBUS)  # memory, eviction, or a user: retry


@dataclass(frozen=True)
class Call:
    """What is trained, and how: SFT on (prompt, completion), or DPO on (prompt, chosen, rejected) if there is a `loss`.
    `examples` are token ids."""

    model: Model
    examples: Sequence[tuple[list[int], ...]]
    out: Path
    training: settings.Training
    lora: settings.Lora
    hardware: settings.Hardware
    job: Job
    loss: settings.PreferenceLoss | None = None


def run(call: Call, folder: Path) -> Json:
    """Run training.train(call) in `call.hardware.processes` processes and return what the first returns. They exchange
    files in the new folder `folder`.

    Raises what a process raises: UserError, TryAgain, torch.OutOfMemoryError and OSError as they are, anything else as
    RuntimeError with the process's traceback; TryAgain if a process was killed.
    """
    processes = call.hardware.processes
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    children: list[subprocess.Popen[bytes]] = []
    meeting = tempfile.mkdtemp(prefix="self-reward-")  # on a local disk: torch locks the file, which NFS may not allow
    try:
        write_call(folder, call)
        for rank in range(processes):
            with open(folder / f"log-{rank}.txt", "wb") as file:
                child = subprocess.Popen(
                    [*WORKER, str(folder), f"{meeting}/file", str(os.getpid())],
                    env=environment(rank, processes),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                )
            children.append(child)
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
    cores = os.environ.get("OMP_NUM_THREADS", "")  # in a cluster: what the pod requests
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
    """The call that write_call wrote, with a newly loaded tokenizer and `progress`."""
    import numpy

    values = json.loads((folder / "call.json").read_bytes())
    with numpy.load(folder / "examples.npz") as file:
        lengths, ids = file["lengths"], file["ids"]
    parts = [part.tolist() for part in numpy.split(ids, numpy.cumsum(lengths.ravel())[:-1])]
    width = lengths.shape[1]
    loss = values["loss"]
    kind = settings.DpoTraining if loss else settings.SftTraining
    return Call(
        model.load(Path(values["model"]), settings.Loading(**values["loading"]), values["chat_template"]),
        [tuple(parts[i : i + width]) for i in range(0, len(parts), width)],
        Path(values["out"]),
        kind(**values["training"]),
        settings.Lora(**values["lora"]),
        settings.Hardware(**values["hardware"]),
        Job(Path(values["folder"]), values["seed"], progress),
        loss and settings.PreferenceLoss(**loss),
    )


def _forward(folder: Path, done: int, progress: Progress) -> int:
    """Show the lines of process 0 from byte `done` on; returns the end of the last complete line."""
    with contextlib.suppress(FileNotFoundError), open(folder / "lines.jsonl", "rb") as file:
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
    return done


def _raise_why(folder: Path, children: "list[subprocess.Popen[bytes]]") -> None:
    """Raise what ended the group. When one process fails, the others lose the connection to it and fail too, so the
    first error counts; but an error that the user can fix, or a kill, explains more."""
    killed = {rank: -child.returncode for rank, child in enumerate(children) if (child.returncode or 0) < 0}
    until = time.monotonic() + LAST_WORDS_SECONDS
    while any(child.poll() is None for child in children) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    killed |= {rank: -child.returncode for rank, child in enumerate(children) if (child.returncode or 0) < 0}
    errors: list[Json] = [json.loads(file.read_bytes()) for file in folder.glob("error-*.json")]
    kinds = ["user", "again", "memory", "system", "other"]
    error = min(errors, default=None, key=lambda error: (kinds.index(error["kind"]), error["time"]))
    transient = {rank: number for rank, number in killed.items() if number in TRANSIENT_SIGNALS}
    explained = error is not None and error["kind"] in ("user", "again")
    if transient and not explained:  # killed by others: we have killed none yet
        rank, number = next(iter(transient.items()))
        raise TryAgain(
            f"process {rank} of {len(children)} of this training was ended by {signal.Signals(number).name}"
            + (" (out of memory?)" if number == signal.SIGKILL else "")
            + "; run again to resume from the last checkpoint"
        )
    if not explained and any(child.returncode == DISK_FULL for child in children):
        raise TryAgain(disk.in_words(folder))
    if error is None:  # only then: a process may also abort after another's error, as NCCL's watchdog does
        failed = [*killed, *(rank for rank, child in enumerate(children) if child.returncode)]
        rank, code = failed[0], children[failed[0]].returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        last = (folder / f"log-{rank}.txt").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"process {rank} of {len(children)} of this training {how}:\n{last}")
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

"""Training over several processes, on CPU: accelerate's DDP over gloo, and FSDP as on GPUs, but over gloo."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy
import pytest
import torch

from self_reward import files
from self_reward.errors import TryAgain, UserError
from self_reward.models import model as models
from self_reward.models import train_group, train_worker, trainers, training
from self_reward.models.model import Job
from self_reward.parameters.settings import DpoTraining, Hardware, Loading, Lora, PreferenceLoss, SftTraining
from self_reward.repository import jsonl
from tests.models import test_training as base
from tests.support import tiny
from tests.support.processes import MARK, gone, marked

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def train(what: str, model: Path, out: Path, finetune: str, count: int = 27, **options) -> dict:
    """SFT, DPO, or DPO with a precomputed reference ("ref") of `count` examples."""
    options = {"learning_rate": 1e-3, "micro_batch_size": 2, "finetune": finetune} | options
    if what == "sft":
        return base.train("sft", model, base.make_examples(count), out, **options)
    options = {"nll_weight": 0.5, "precompute_reference": what == "ref"} | options
    return base.train("dpo", model, base.make_pairs(count), out, **options)


def largest_difference(one: Path, two: Path) -> float:
    a, b = base.weights(one), base.weights(two)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# ---- two processes train as one does

# 27 and 29 examples in steps of 8, micro batches of 2: an epoch ends with 3 examples (one micro batch for each process,
# the second one short), with 5 (two and one, the last one short, one process has nothing left), and with 1 of 25.
CASES = [("sft", "lora", 29), ("sft", "full", 27), ("sft", "full", 25), ("dpo", "lora", 29), ("dpo", "full", 27),
         ("dpo", "lora", 25), ("ref", "full", 27), ("ref", "lora", 25)]  # fmt: skip
FSDP_CASES = [
    ("sft", "full", 27, "fp32"),
    ("dpo", "lora", 29, "fp32"),
    ("dpo", "full", 27, "fp32"),
    ("dpo", "lora", 25, "bf16"),
    ("ref", "full", 27, "fp32"),
    ("ref", "lora", 29, "fp32"),
]
ALL_CASES = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from self_reward.models import train_worker
train_worker.join(Path(sys.argv[3]) / "meeting")
from tests.models import test_multi_gpu as t
seen = []
for what, finetune, count in t.CASES:
    out = Path(sys.argv[3]) / f"{what}-{finetune}-{count}"
    seen.append([])
    metrics = t.train(what, Path(sys.argv[2]), out, finetune, count, epochs=2.0, train_gpus=2,
                      checkpoint_dir=out.parent / "partial" / out.name, progress=lambda *said: seen[-1].append(said))
    if os.environ["RANK"] == "0":
        (out / "metrics.json").write_text(json.dumps(metrics))
(Path(sys.argv[3]) / f"progress-{os.environ['RANK']}.json").write_text(json.dumps(seen))
"""


FSDP = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from self_reward.models import train_worker
train_worker.join(Path(sys.argv[3]) / "meeting")
from tests.models import test_multi_gpu as t
t.use_fsdp_on_cpu()
torch, trainers = t.torch, t.trainers
for what, finetune, count, precision in t.FSDP_CASES:
    out = Path(sys.argv[3]) / f"{what}-{finetune}-{count}-{precision}"
    partial = Path(sys.argv[3]) / f"{out.name}.partial"
    with t.in_precision(precision):
        metrics = t.train(what, Path(sys.argv[2]), out, finetune, count, epochs=2.0, train_gpus=2,
                          checkpoint_dir=Path(f"{partial}-whole"))
        t.train(what, Path(sys.argv[2]), Path(f"{out}-cut"), finetune, count, epochs=2.0, train_gpus=2,
                checkpoint_dir=partial, checkpoint_steps=3)  # its last checkpoint but the end's is at step 6
        torch.distributed.barrier()
        if os.environ["RANK"] == "0":  # the end's is of no use: one process removes it, as the stage does
            trainers.last_checkpoint(partial, True)
        torch.distributed.barrier()
        t.train(what, Path(sys.argv[2]), Path(f"{out}-again"), finetune, count, epochs=2.0, train_gpus=2,
                checkpoint_dir=partial, checkpoint_steps=3)
    if os.environ["RANK"] == "0":
        (out / "metrics.json").write_text(json.dumps(metrics))
"""


def use_fsdp_on_cpu() -> None:
    """accelerate keeps FSDP for GPUs, in one line; all else of it, and torch's FSDP2 itself, runs over gloo."""
    from accelerate import state
    from accelerate.utils import DistributedType

    made = state.AcceleratorState.__init__

    def init(self, *words, fsdp_plugin=None, **more):
        made(self, *words, fsdp_plugin=fsdp_plugin, **more)
        if fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.AcceleratorState.__init__ = init
    arguments, last = training._arguments, trainers.last_checkpoint
    training._arguments = lambda *words: arguments(*words) | training._FSDP
    trainers.last_checkpoint = lambda work, sharded: last(work, True)


@contextlib.contextmanager
def in_precision(precision):
    """Training in bf16, which the product does on GPUs alone."""
    arguments = training._arguments
    if precision == "bf16":
        training._arguments = lambda *words: arguments(*words) | {"bf16": True, "use_cpu": True}
    try:
        yield
    finally:
        training._arguments = arguments


def in_two_processes(program: str, model: Path, folder: Path) -> None:
    one_thread = {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(ROOT), str(model), str(folder)]
    started = [
        subprocess.Popen(command, env=train_group.environment(rank, 2) | one_thread, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in started:
            _, error = process.communicate(timeout=600)
            assert process.returncode == 0, error
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def by_two(model, tmp_path_factory) -> Path:
    """All cases trained by two processes, started once since that takes longest."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(ALL_CASES, model, folder)
    return folder


@pytest.fixture(scope="module")
def by_fsdp(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    in_two_processes(FSDP, model, folder)
    return folder


@pytest.mark.parametrize(("what", "finetune", "count", "precision"), FSDP_CASES)
def test_fsdp_equals_one_process(by_fsdp, model, tmp_path, what, finetune, count, precision):
    with in_precision(precision):
        metrics = train(what, model, tmp_path / "one", finetune, count, epochs=2.0)
    two = by_fsdp / f"{what}-{finetune}-{count}-{precision}"
    difference = largest_difference(tmp_path / "one", two)
    print(f"FSDP {what} {finetune} {count} {precision}: largest difference {difference:.1e}")
    assert difference < (2e-6 if precision == "fp32" else 2e-4)
    config = "adapter_config.json" if finetune == "lora" else "config.json"
    assert (two / config).read_bytes() == (tmp_path / "one" / config).read_bytes()
    told = json.loads((two / "metrics.json").read_text())
    figures = ["loss_first", "loss_last"] + ["reward_margin_first", "logp_chosen_first"] * (what != "sft")
    assert [told[name] for name in figures] == pytest.approx([metrics[name] for name in figures], abs=2e-3)


@pytest.mark.parametrize(("what", "finetune", "count", "precision"), FSDP_CASES)
def test_fsdp_resumes_to_exactly_the_same_weights(by_fsdp, model, what, finetune, count, precision):
    name = f"{what}-{finetune}-{count}-{precision}"
    assert largest_difference(by_fsdp / f"{name}-cut", by_fsdp / f"{name}-again") == 0
    assert largest_difference(by_fsdp / name, by_fsdp / f"{name}-again") == 0


@pytest.mark.parametrize(("what", "finetune", "count"), CASES)
def test_two_processes_equal_one(by_two, model, tmp_path, what, finetune, count):
    seen = []
    metrics = train(
        what, model, tmp_path / "one", finetune, count, epochs=2.0, progress=lambda *said: seen.append(said)
    )
    two = by_two / f"{what}-{finetune}-{count}"
    difference = largest_difference(tmp_path / "one", two)
    print(f"{what} {finetune} {count}: largest difference {difference:.1e}")
    assert difference < 2e-6
    start = base.weights(model) if finetune == "full" else {}
    assert all((base.weights(two)[name] - start[name]).abs().max() > 1e-3 for name in start if "norm" not in name)
    said = json.loads((by_two / "progress-0.json").read_text())[CASES.index((what, finetune, count))]
    assert [(done, total) for done, total, _ in seen] == [(done, total) for done, total, _ in said]
    losses = [[float(text.split()[1]) for _, _, text in lines] for lines in (seen, said)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4) and len(losses[0]) == 8
    told = json.loads((two / "metrics.json").read_text())
    assert told.keys() == metrics.keys()
    # TRL averages the other figures of several processes by tokens, or by rounds that may hold a smaller micro batch
    alike = ["steps", "examples", "tokens", "loss_first", "loss_last", "micro_batch_size"]
    alike += ["reward_margin_first", "logp_chosen_first"] if what != "sft" else []
    assert [told[name] for name in alike] == pytest.approx([metrics[name] for name in alike], abs=1e-3)


def test_reference_precomputed_by_two_processes_equals_that_of_one(by_two, by_fsdp):
    """Beyond the cases "ref" above, where both sides might be wrong alike."""
    assert largest_difference(by_two / "ref-full-27", by_two / "dpo-full-27") < 2e-6
    assert largest_difference(by_two / "ref-lora-25", by_two / "dpo-lora-25") < 2e-6
    assert largest_difference(by_fsdp / "ref-full-27-fp32", by_fsdp / "dpo-full-27-fp32") < 2e-6
    assert largest_difference(by_fsdp / "ref-lora-29-fp32", by_fsdp / "dpo-lora-29-fp32") < 2e-6


def test_only_the_first_process_writes_and_writes_the_same(by_two, model, tmp_path):
    train("dpo", model, tmp_path / "one", "full", 27)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (by_two / "dpo-full-27").iterdir()} == {*names, "metrics.json"}
    assert json.loads((by_two / "progress-1.json").read_text()) == [[] for _ in CASES]
    expected = {f"{what}-{finetune}-{count}" for what, finetune, count in CASES}
    expected |= {"progress-0.json", "progress-1.json"}
    assert {path.name for path in by_two.iterdir()} - {"meeting", "partial"} == expected


# ---- kills

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.models import test_multi_gpu as t
t.train("sft", Path(sys.argv[2]), Path(sys.argv[3]) / "out", "full", 40, max_steps=60, checkpoint_steps=3,
        checkpoint_dir=Path(sys.argv[3]) / "partial", train_gpus=2,
        progress=lambda done, *rest: done > 8 and os.kill(os.getpid(), signal.SIGKILL))
"""


def test_killed_group_leaves_no_process_and_can_be_resumed(model, tmp_path, caplog):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), MARK: str(tmp_path)}
    command = [sys.executable, "-c", KILLED, str(ROOT), str(model), str(tmp_path)]
    # the parent alone is killed: its children must not go on
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert gone(str(tmp_path), 60)
    partial = tmp_path / "partial"
    last = max(
        int(folder.name[11:]) for folder in partial.glob("checkpoint-*") if (folder / trainers.COMPLETE).exists()
    )
    assert 6 <= last < 60 and not (tmp_path / "out").exists()

    options = {"count": 40, "max_steps": 60, "checkpoint_steps": 3}
    train("sft", model, tmp_path / "whole", "full", **options)
    for processes in (2, 1):
        kept = tmp_path / f"partial-{processes}"
        subprocess.run(["cp", "-r", partial, kept], check=True)
        seen: list[int] = []
        with caplog.at_level("INFO", "self_reward"):
            train(
                "sft", model, tmp_path / f"by-{processes}", "full", checkpoint_dir=kept, train_gpus=processes,
                progress=lambda done, total, what, seen=seen: seen.append(done), **options,
            )  # fmt: skip
        assert f"resuming from checkpoint-{last}" in caplog.text
        caplog.clear()
        assert seen[0] > last and seen[-1] == 60
        assert largest_difference(tmp_path / f"by-{processes}", tmp_path / "whole") < 2e-6
    assert not (tmp_path / "partial-2/group").exists()


def test_killed_process_ends_the_training_at_once_with_try_again(model, tmp_path):
    killed_at: list[float] = []

    def kill_one(done, total, what):
        if not killed_at:
            ours = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
            environments = {pid: Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in ours}
            killed_at.append(time.monotonic())
            os.kill(next(int(pid) for pid, lines in environments.items() if b"RANK=1" in lines), signal.SIGKILL)

    with pytest.raises(TryAgain, match="process 1 of 2 of this training was ended by SIGKILL"):
        train("dpo", model, tmp_path / "out", "lora", max_steps=5000, train_gpus=2, progress=kill_one)
    assert time.monotonic() - killed_at[0] < 60  # and not the minutes of 5,000 steps
    assert not (tmp_path / "out").exists()


def test_checkpoint_of_another_number_of_gpus_is_removed(tmp_path, caplog):
    for step, sharded in ((3, False), (6, True), (9, True)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 9}))
        (folder / trainers.COMPLETE).touch()
        if sharded:
            (folder / "pytorch_model_fsdp.bin").touch()
    (tmp_path / "checkpoint-12").mkdir()
    newest = trainers.last_checkpoint(tmp_path, sharded=True)
    assert newest == tmp_path / "checkpoint-6"
    assert sorted(tmp_path.iterdir()) == [newest]
    assert "checkpoint-3 was written with a different number of GPUs and cannot be resumed" in caplog.text
    assert trainers.last_checkpoint(tmp_path, sharded=False) is None


# ---- errors


def test_nan_loss_in_two_processes_is_the_error_of_one(model, tmp_path):
    with pytest.raises(UserError, match="the loss became (nan|inf) at step"):
        train("sft", model, tmp_path / "out", "full", max_steps=60, train_gpus=2, learning_rate=1e-2, weight_decay=1e30)
    assert not (tmp_path / "out").exists()


def test_bug_in_a_process_is_reported_with_its_traceback(model, tmp_path):
    examples = [([2, 70000], [3])] * 8  # not in the vocabulary
    with pytest.raises(RuntimeError, match=r"(?s)process \d of 2 .*Traceback.*training.py.*IndexError"):
        base.train("sft", model, examples, tmp_path / "out", finetune="full", train_gpus=2, micro_batch_size=2)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (UserError(["one", "two"]), UserError),
        (TryAgain("later"), TryAgain),
        (MemoryError(), TryAgain),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), torch.OutOfMemoryError),
        (PermissionError(13, "Permission denied", "/x"), PermissionError),
        (ZeroDivisionError("division by zero"), RuntimeError),
    ],
)
@pytest.mark.parametrize("other", ["says", "aborts"])
def test_first_error_keeps_its_type_and_hides_its_consequences(tmp_path, raised, expected, other):
    """The other process reports that it has lost this one, or NCCL's watchdog ends it."""
    children = []
    for rank, error in enumerate((RuntimeError("connection closed by peer"), raised)):
        if rank == 0 and other == "aborts":
            children.append(subprocess.Popen([sys.executable, "-c", "import os; os.abort()"]))
            children[-1].wait()
            continue
        described = train_worker._described(error)
        described |= {"rank": rank, "time": 2.0 - rank, "traceback": f"Traceback: {error!r}"}
        (tmp_path / f"error-{rank}.json").write_text(json.dumps(described))
        children.append(subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"]))
        children[-1].wait()
    with pytest.raises(expected) as caught:
        train_group._raise_why(tmp_path, children)
    if isinstance(raised, UserError):
        assert caught.value.problems == ["one", "two"]
    elif expected is RuntimeError:
        assert "ZeroDivisionError('division by zero')" in str(caught.value)


def test_full_gpu_restarts_all_processes_with_half_the_micro_batch(model, tmp_path, monkeypatch):
    tried = []

    def run(call, folder):
        tried.append((call.loss is None, call.training.micro_batch(2), call.hardware.processes))
        if call.training.micro_batch(2) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"steps": 1}

    monkeypatch.setattr(train_group, "run", run)
    metrics = train("dpo", model, tmp_path / "out", "full", train_gpus=2, batch_size=16, micro_batch_size=4)
    assert tried == [(False, 4, 2), (False, 2, 2), (False, 1, 2)]
    assert metrics["processes"] == 2


def test_one_process_removes_checkpoints_before_a_retry(model, tmp_path, monkeypatch):
    def run(call, folder):
        assert not list(call.job.folder.iterdir())
        if call.training.micro_batch(2) > 1:
            (call.job.folder / "checkpoint-3").mkdir()  # cut short
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"steps": 1}

    monkeypatch.setattr(train_group, "run", run)
    (tmp_path / "partial").mkdir()
    options = {"train_gpus": 2, "checkpoint_dir": tmp_path / "partial"}
    assert train("sft", model, tmp_path / "out", "full", **options)["steps"] == 1


def test_error_that_cannot_be_written_is_reported_as_full_disk(tmp_path):
    files.partial(tmp_path / "error-0.json").symlink_to("/dev/full")
    command = [
        sys.executable,
        "-m",
        "self_reward.models.train_worker",
        str(tmp_path),
        str(tmp_path / "meeting"),
        str(os.getpid()),
    ]
    environment = train_group.environment(0, 2) | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)  # without call.json it fails
    child.communicate(timeout=60)
    with pytest.raises(TryAgain, match=f"disk is full: {tmp_path}"):
        train_group._raise_why(tmp_path, [child])


def test_processes_wait_while_one_saves(tmp_path, monkeypatch):
    """By default NCCL waits ten minutes."""
    told = {}
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *words, **more: told.update(more))
    for name, value in train_group.environment(1, 2).items():
        monkeypatch.setenv(name, value)
    train_worker.join(tmp_path / "meeting")
    assert told["timeout"].total_seconds() > 3600 and (told["rank"], told["world_size"]) == (1, 2)


@pytest.mark.parametrize(
    ("given", "processes", "each"), [("8", 2, "4"), ("8", 3, "2"), ("1", 4, "1"), ("4,2", 9999, "1")]
)
def test_processes_share_the_available_cores(monkeypatch, given, processes, each):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert train_group.environment(0, processes)["OMP_NUM_THREADS"] == each


def test_indivisible_batch_size_is_refused_with_the_numbers(model, tmp_path):
    with pytest.raises(
        UserError,
        match="8 cannot be divided into micro batches of 2 on each of 3 processes .*multiple of 6, such as 12",
    ):
        train("sft", model, tmp_path / "out", "full", train_gpus=3)
    with pytest.raises(UserError, match="12 cannot be divided into micro batches of 4 on each of 2 .*of 8, such as 16"):
        train("sft", model, tmp_path / "out", "full", train_gpus=2, batch_size=12, micro_batch_size=4)
    with pytest.raises(UserError, match="8 cannot be divided into micro batches of 1 on each of 16 .*such as 32"):
        train("sft", model, tmp_path / "out", "full", train_gpus=16)


@pytest.mark.parametrize(
    ("examples", "training", "loss"),
    [
        ([([1, 2], [3]), ([70000], [4, 5])], SftTraining(epochs=2.5, max_steps=7), None),
        ([([], [1], [2, 3]), ([9], [8], [7])], DpoTraining(adam_beta2=0.95), PreferenceLoss(nll_weight=0.5)),
    ],
)
def test_a_call_is_read_as_it_was_written(model, tmp_path, examples, training, loss):
    sent = train_group.Call(
        models.load(model, Loading(dtype="float32"), "plain"),
        examples,
        tmp_path / "out",
        training,
        Lora(rank=4),
        Hardware(train_gpus=2),
        Job(tmp_path / "partial", seed=3),
        loss,
    )
    train_group.write_call(tmp_path, sent)
    read = train_group.read_call(tmp_path, sent.job.progress)
    assert read.model.tokenizer.chat_template == sent.model.tokenizer.chat_template
    assert dataclasses.replace(read, model=dataclasses.replace(read.model, tokenizer=sent.model.tokenizer)) == sent
    assert not isinstance(read.examples[0][0][:1], numpy.ndarray)


# ---- the stage


def test_terminated_stage_leaves_no_process_and_resumes(model, tmp_path):
    rows = [{"prompt": f"write the list {i % 10} ant", "response": f"ant {i % 10} bat"} for i in range(64)]
    jsonl.write(tmp_path / "data/M0/train/ift+eft.jsonl", rows)
    command = [
        *(sys.executable, ROOT / "stages/00_sft.py", "--data_repo", tmp_path / "data", "--base_model", model),
        *("--cache_dir", tmp_path / "cache", "--iteration", "0", "--sft_batch_size", "8", "--sft_max_steps", "60"),
        *("--checkpoint_steps", "3", "--train_gpus", "2", "--chat_template", "plain", "--eval_fraction", "0"),
    ]
    environment = {**os.environ, MARK: str(tmp_path), "TERMINATION_LOG": str(tmp_path / "log")}
    process = subprocess.Popen([str(word) for word in command], env=environment, stderr=subprocess.PIPE, text=True)
    work = tmp_path / "cache/work"
    end = time.monotonic() + 300
    while not list(work.glob(f"*/*/partial/checkpoint-*/{trainers.COMPLETE}")):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    assert len(marked(str(tmp_path))) == 3
    begin = time.monotonic()
    process.terminate()
    assert process.wait(30) == 143
    assert gone(str(tmp_path), 30 - (time.monotonic() - begin))
    assert process.stderr and "ended by SIGTERM; run again" in process.stderr.read()

    ended = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "resuming from checkpoint-" in ended.stderr and "/60" in ended.stderr
    manifest = json.loads((tmp_path / "data/M0/00_sft.manifest.json").read_text())
    assert manifest["details"]["metrics"]["processes"] == 2 and manifest["counts"]["steps"] == 60
    assert "train_gpus" not in manifest["parameters"]  # so that what one process has done is not done again
    assert gone(str(tmp_path), 0)
    other = [*map(str, command), "--train_gpus", "0"]
    assert "skipped" in subprocess.run(other, env=environment, capture_output=True, text=True).stdout

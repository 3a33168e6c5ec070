import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOTrainer

from self_reward import texts
from self_reward.errors import TryAgain, UserError
from self_reward.models import base_model, checkpoints, trainers, training
from self_reward.models import model as models
from self_reward.models.model import Job
from self_reward.models.train_group import Call
from self_reward.parameters.settings import DpoTraining, Hardware, Loading, Lora, PreferenceLoss, SftTraining
from tests.support import tiny

torch.set_num_threads(1)  # sums in one order, so that weights can be compared bit for bit
ROOT = Path(__file__).parents[2]
SETTINGS = {
    "learning_rate": 1e-2,
    "min_learning_rate": 1e-3,
    "batch_size": 8,
    "micro_batch_size": 8,
    "max_length": 40,
    "dropout": 0.0,
    "beta": 0.1,
    "seed": 1,
}


def train(what: str, folder: Path, examples: list[Any], out: Path, **options: Any) -> dict[str, Any]:
    """Train (`what`: sft or dpo) the model in `folder`, with SETTINGS and `options` (fields of its groups).
    Checkpoints are in a temporary folder, unless `checkpoint_dir` names one."""
    values = SETTINGS | options
    model = models.load(folder, group(Loading, values), values.pop("chat_template", "auto"))
    settings = group(SftTraining if what == "sft" else DpoTraining, values)
    loss = group(PreferenceLoss, values)
    groups = {"lora": group(Lora, values, "lora_"), "hardware": group(Hardware, values)}
    with tempfile.TemporaryDirectory() as temporary:
        job = Job(values.pop("checkpoint_dir", Path(temporary)), **values)
        return training.train(
            Call(model, examples, out, settings, **groups, job=job, loss=loss if what == "dpo" else None)
        )


def group(kind, values: dict[str, Any], prefix: str = ""):
    """The settings `kind` made of those of `values` that are its fields, which are taken out of `values`."""
    names = [name for name in kind.model_fields if prefix + name in values]
    return kind(**{name: values.pop(prefix + name) for name in names})


def make_examples(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Learnable: the completion repeats the prompt."""
    rng = random.Random(seed)
    words = [[rng.randrange(7, 40) for _ in range(rng.randrange(3, 8))] for _ in range(count)]
    return [([2, 4, *w, 5], [*w, 3]) for w in words]


def make_pairs(count: int, seed: int = 0) -> list[tuple[list[int], list[int], list[int]]]:
    return [(p, c, [*reversed(c[:-1]), 7, 3]) for p, c in make_examples(count, seed)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def sft(model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sft") / "adapter"
    train("sft", model, make_examples(64), out, finetune="lora")
    return out


@pytest.fixture(scope="module")
def policy(model, sft, tmp_path_factory) -> Path:
    return checkpoints.materialise(model, [sft], cache_dir=tmp_path_factory.mktemp("cache"), keep=3)


@pytest.fixture
def spy(monkeypatch):
    """Collects the trainers that run, and the logits they start with."""
    seen = []

    def watched(make):
        def make_and_keep(*words):
            trainer = make(*words)
            trainer.start = {"policy": logits(trainer.model.eval())}
            if isinstance(trainer.model, PeftModel):
                with trainer.model.disable_adapter():
                    trainer.start["reference"] = logits(trainer.model)
            seen.append(trainer)
            return trainer

        return make_and_keep

    monkeypatch.setattr(training, "_sft_trainer", watched(training._sft_trainer))
    monkeypatch.setattr(training, "_dpo_trainer", watched(training._dpo_trainer))
    return seen


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[2, 4, 9, 12, 30, 5, 9, 12, 30]])).logits


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


def logp(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probabilities of the completion's tokens, by hand: (tokens,)."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        rows = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return rows.gather(1, torch.tensor(completion)[:, None])[:, 0]


# ---- B1: where DPO starts


def test_b1_merged_sft_start_of_dpo_and_reference_are_one_model(model, sft, policy, tmp_path, spy):
    train("dpo", policy, make_pairs(8), tmp_path / "dpo", finetune="lora")
    start = spy[0].start
    merged = logits(load(policy))
    assert torch.equal(merged, start["policy"])
    assert torch.equal(merged, start["reference"])
    assert (merged - logits(PeftModel.from_pretrained(load(model), sft))).abs().max() < 1e-4
    assert (merged - logits(load(model))).abs().max() > 1e-2  # SFT has changed something


def test_b1_reference_is_constant_during_dpo(policy, tmp_path, spy):
    metrics = train("dpo", policy, make_pairs(64), tmp_path / "dpo", finetune="lora")
    trained = spy[0].model.eval()
    with trained.disable_adapter():
        assert torch.equal(logits(trained), logits(load(policy)))
    assert (logits(trained) - logits(load(policy))).abs().max() > 1e-2
    assert metrics["loss_first"] == pytest.approx(0.6931, abs=1e-3)
    assert metrics["reward_margin_last"] > 0.05 > metrics["reward_margin_first"]
    # and the chain base + sft + dpo is the model that was trained
    merged = checkpoints.materialise(policy, [tmp_path / "dpo"], cache_dir=tmp_path / "cache", keep=1)
    assert (logits(load(merged)) - logits(trained)).abs().max() < 1e-4


@pytest.mark.parametrize("precompute", [False, True])
def test_full_dpo_has_the_start_model_as_reference(policy, tmp_path, precompute, spy):
    metrics = train("dpo", policy, make_pairs(16), tmp_path / "dpo", finetune="full", precompute_reference=precompute)
    assert metrics["loss_first"] == pytest.approx(0.6931, abs=1e-3)
    assert metrics["loss_last"] < 0.69
    if not precompute:
        assert torch.equal(logits(spy[0].ref_model), logits(load(policy)))
    assert (logits(load(tmp_path / "dpo")) - logits(load(policy))).abs().max() > 1e-3


@pytest.mark.parametrize(("finetune", "dropout"), [("full", 0.0), ("full", 0.3), ("lora", 0.3)])
def test_precomputed_reference_gives_the_same_weights(policy, tmp_path, finetune, dropout):
    """Also the same dropout, with random numbers that computing the reference must not use up."""
    for precompute in (False, True):
        train(
            "dpo", policy, make_pairs(19), tmp_path / str(precompute), finetune=finetune, dropout=dropout, epochs=2,
            precompute_reference=precompute, learning_rate=1e-3,
        )  # fmt: skip
    one, two = weights(tmp_path / "False"), weights(tmp_path / "True")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_precomputed_reference_is_kept_for_a_resumed_training(policy, tmp_path, monkeypatch):
    computed = []
    compute = DPOTrainer.compute_ref_log_probs
    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", lambda *words: (computed.append(1), compute(*words))[1])
    options = {"finetune": "full", "precompute_reference": True, "checkpoint_dir": tmp_path / "partial"}
    train("dpo", policy, make_pairs(16), tmp_path / "first", checkpoint_steps=1, **options)
    assert len(computed) == 2
    shutil.rmtree(tmp_path / "partial/checkpoint-2")
    train("dpo", policy, make_pairs(16), tmp_path / "again", checkpoint_steps=1, **options)
    assert len(computed) == 2
    one, two = weights(tmp_path / "first"), weights(tmp_path / "again")
    assert all(torch.equal(one[name], two[name]) for name in one)
    train("dpo", policy, make_pairs(16, seed=1), tmp_path / "other", **options | {"beta": 0.2})
    assert len(computed) == 4


# ---- B9, B15, B16: what the loss is on


def test_b16_labels_of_the_prompt_are_ignored(model, tmp_path, spy):
    examples = make_examples(8)
    train("sft", model, examples, tmp_path / "out", finetune="lora")
    batch = next(iter(spy[0].get_train_dataloader()))
    by_prompt = {tuple(p): c for p, c in examples}
    assert len(batch["labels"]) == 8
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        ids, labels = ids[mask.bool()].tolist(), labels.tolist()
        prompt = next(p for p in by_prompt if ids[: len(p)] == list(p))
        completion = by_prompt[prompt]
        assert ids == [*prompt, *completion]
        assert labels[: len(prompt)] == [-100] * len(prompt)
        assert labels[len(prompt) : len(ids)] == completion
        assert set(labels[len(ids) :]) <= {-100}


@pytest.mark.parametrize("micro", [8, 2])
def test_b16_sft_loss_is_the_mean_over_completion_tokens(model, tmp_path, micro):
    examples = make_examples(8)
    metrics = train("sft", model, examples, tmp_path / "out", finetune="full", micro_batch_size=micro)
    by_hand = -torch.cat([logp(load(model), p, c) for p, c in examples]).mean()
    assert metrics["loss_first"] == pytest.approx(by_hand.item(), abs=1e-4)


def test_b15_learning_rate_reaches_the_optimizer_and_ends_at_the_minimum(model, tmp_path, spy):
    train(
        "sft", model, make_examples(80), tmp_path / "out", finetune="lora", warmup_ratio=0.2, weight_decay=0.03,
        adam_beta2=0.98,
    )  # fmt: skip
    logs = [entry["learning_rate"] for entry in spy[0].state.log_history if "loss" in entry]
    assert len(logs) == 10
    assert max(logs) == pytest.approx(1e-2)
    assert logs[1] < logs[2] and logs == logs[:2] + sorted(logs[2:], reverse=True)
    assert spy[0].lr_scheduler.get_last_lr()[0] == pytest.approx(1e-3)
    group = spy[0].optimizer.param_groups[0]
    assert group["betas"] == (0.9, 0.98)
    assert max(g["weight_decay"] for g in spy[0].optimizer.param_groups) == 0.03


# ---- the losses, by hand


def expected_dpo(start, pairs, trained, *, beta, dpo_loss, label_smoothing, nll_weight) -> float:
    reference, policy = load(start), trained
    losses, chosen = [], []
    for prompt, good, bad in pairs:
        w, r = logp(policy, prompt, good), logp(policy, prompt, bad)
        delta_w = w.sum() - logp(reference, prompt, good).sum()
        delta_r = r.sum() - logp(reference, prompt, bad).sum()
        if dpo_loss == "sigmoid_norm":
            delta_w, delta_r = delta_w / len(good), delta_r / len(bad)
        h = beta * (delta_w - delta_r)
        losses.append(-(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h))
        chosen.append(w)
    return (torch.stack(losses).mean() - nll_weight * torch.cat(chosen).mean()).item()


@pytest.mark.parametrize(
    ("dpo_loss", "label_smoothing", "nll_weight"),
    [
        ("sigmoid", 0.0, 0.0),
        ("sigmoid", 0.2, 0.0),
        ("sigmoid", 0.1, 0.5),
        ("sigmoid_norm", 0.0, 0.0),
        ("sigmoid_norm", 0.0, 1.0),
    ],
)
def test_dpo_losses_are_what_the_formula_says(policy, tmp_path, spy, dpo_loss, label_smoothing, nll_weight):
    pairs = make_pairs(8)
    options = {"beta": 0.5, "dpo_loss": dpo_loss, "label_smoothing": label_smoothing, "nll_weight": nll_weight}
    train("dpo", policy, pairs, tmp_path / "out", finetune="lora", max_steps=6, **options)
    trainer = spy[0]
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        got = trainer.compute_loss(trainer.model, batch).item()
    assert got == pytest.approx(expected_dpo(policy, pairs, trainer.model, **options), abs=1e-4)
    plain = expected_dpo(
        policy, pairs, trainer.model, beta=0.5, dpo_loss="sigmoid", label_smoothing=0.0, nll_weight=0.0
    )
    if options != {"beta": 0.5, "dpo_loss": "sigmoid", "label_smoothing": 0.0, "nll_weight": 0.0}:
        assert abs(got - plain) > 1e-3


def test_micro_batches_change_nothing(policy, tmp_path):
    for micro in (8, 4):
        train(
            "dpo",
            policy,
            make_pairs(24),
            tmp_path / str(micro),
            finetune="lora",
            micro_batch_size=micro,
            learning_rate=1e-3,
        )
    one, two = weights(tmp_path / "8"), weights(tmp_path / "4")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


# ---- what is saved


def test_lora_saves_only_adapter_and_tokenizer(sft, model):
    names = {path.name for path in sft.iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert all("lora_" in name for name in weights(sft))
    assert str(model) not in (sft / "adapter_config.json").read_text()
    assert AutoTokenizer.from_pretrained(sft).chat_template == tiny.TEMPLATE


def test_target_modules_must_exist(model, tmp_path):
    def target_modules(names):
        out = tmp_path / names
        train("sft", model, make_examples(8), out, finetune="lora", lora_target_modules=names)
        return json.loads((out / "adapter_config.json").read_text())["target_modules"]

    assert target_modules("q_proj, v_proj") == ["q_proj", "v_proj"]
    with pytest.raises(UserError, match="no module 'nosuch'; it has q_proj, k_proj, .*down_proj"):
        target_modules("q_proj,nosuch")


def test_full_saves_a_model_in_the_dtype_of_the_base(model, tmp_path):
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(base)
    checkpoints.copy_tokenizer([model], base)
    train("sft", base, make_examples(16), tmp_path / "out", finetune="full", dropout=0.3, chat_template="plain")
    assert base_model.folder_problems(tmp_path / "out", trust_remote_code=False) == []
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out/config.json").read_text())["attention_dropout"] == 0.0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == texts.builtin("chat_template", "plain")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_same_seed_same_bytes_other_seed_other_weights(model, sft, tmp_path):
    again = tmp_path / "again"
    train("sft", model, make_examples(64), again, finetune="lora")
    for path in sft.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    train("sft", model, make_examples(64), again, finetune="lora", seed=2)
    assert (sft / "adapter_model.safetensors").read_bytes() != (again / "adapter_model.safetensors").read_bytes()


# ---- dropout, length, bad input


@pytest.mark.parametrize("finetune", ["lora", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_applied_only_when_set(policy, tmp_path, spy, finetune, dropout):
    train("dpo", policy, make_pairs(8), tmp_path / "out", finetune=finetune, dropout=dropout)
    model = spy[0].model.train()
    assert torch.equal(logits(model), logits(model)) == (dropout == 0)


def test_too_long_examples_are_left_out_and_counted(model, tmp_path):
    examples = [*make_examples(8), ([2] * 30, [7] * 11), ([2] * 30, [7] * 10)]
    metrics = train("sft", model, examples, tmp_path / "out", finetune="lora")
    assert (metrics["examples"], metrics["dropped_too_long"], metrics["steps"]) == (9, 1, 2)
    with pytest.raises(UserError, match="longer than max_length 8"):
        train("sft", model, examples, tmp_path / "out", finetune="lora", max_length=8)


def test_all_problems_at_once(model, tmp_path, monkeypatch):
    """Those that would train something else than was asked for, or nothing; bounds of single values are the groups'."""
    load_model = models.load

    def without_end(*words):
        loaded = load_model(*words)
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token = None
        return loaded

    monkeypatch.setattr(models, "load", without_end)
    options = {"dpo_loss": "sigmoid_norm", "label_smoothing": 0.2, "micro_batch_size": 3, "min_learning_rate": 0.5}
    with pytest.raises(UserError) as caught:
        train("dpo", model, [], tmp_path / "out", **options)
    assert caught.value.problems == [
        "batch_size 8 cannot be divided into micro batches of 3; use a multiple of 3, such as 9",
        "min_learning_rate 0.5 is above learning_rate 0.01",
        "label_smoothing 0.2 needs dpo_loss sigmoid, not sigmoid_norm",
        f"{model}: the tokenizer has neither a padding nor an end token; set one of them",
        "no examples to train on",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which may have bfloat16")
def test_bfloat16_needs_a_gpu(model, tmp_path):
    with pytest.raises(UserError, match="bfloat16"):
        train("sft", model, make_examples(8), tmp_path / "out", finetune="lora", dtype="bfloat16")


def test_nan_loss_stops_the_training(model, tmp_path):
    with pytest.raises(UserError, match="loss became"):
        train("sft", model, make_examples(64), tmp_path / "out", finetune="full", weight_decay=1e30)
    assert not (tmp_path / "out").exists()


def test_progress_is_reported_without_other_output(model, tmp_path, capfd):
    seen = []
    train("sft", model, make_examples(16), tmp_path / "out", finetune="lora", progress=lambda *a: seen.append(a))
    assert [(done, total) for done, total, _ in seen] == [(1, 2), (2, 2)]
    assert "loss" in seen[0][2]
    written = capfd.readouterr()
    assert written.out == "" and "%|" not in written.err


def test_out_of_memory_halves_the_micro_batch_down_to_one():
    tried = []

    def attempt(micro):
        tried.append(micro)
        if micro > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return micro

    assert training.with_smaller_batches(attempt, 8) == 2
    assert tried == [8, 4, 2]

    def never(micro):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TryAgain, match="memory"):
        training.with_smaller_batches(never, 6)


# ---- kills

KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from tests.models import test_training as t
t.train_with_checkpoints(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), kill_at=int(sys.argv[5]))
"""


def train_with_checkpoints(what: str, model: Path, out: Path, kill_at: int = 0) -> None:
    """Train 12 steps; killed at step `kill_at`, unless that is 0."""
    options: dict[str, Any] = {"max_steps": 12, "checkpoint_steps": 3, "checkpoint_dir": out.parent / "partial"}
    options["dropout"] = 0.2
    options["progress"] = lambda done, *rest: (
        print(done, flush=True),
        done == kill_at and os.kill(os.getpid(), signal.SIGKILL),
    )
    if what == "sft":
        train("sft", model, make_examples(40), out, finetune="full", **options)
    else:
        train("dpo", model, make_pairs(40), out, finetune="lora", **options)


@pytest.mark.parametrize("what", ["sft", "dpo"])
def test_killed_and_resumed_equals_undisturbed(model, tmp_path, what):
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    command = [sys.executable, "-c", KILLED, what, str(model)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    tests = str(ROOT)
    killed = subprocess.run(
        [*command, str(tmp_path / "killed/out"), tests, "8"], env=environment, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    partial = tmp_path / "killed/partial"
    assert (partial / "checkpoint-6").is_dir() and not (tmp_path / "killed/out").exists()
    (partial / "checkpoint-9").mkdir(exist_ok=True)  # as a kill in the middle of writing leaves it
    (partial / "checkpoint-9/model.safetensors").write_bytes(b"half")
    (partial / "checkpoint-9" / trainers.COMPLETE).unlink(missing_ok=True)
    resumed = subprocess.run(
        [*command, str(tmp_path / "killed/out"), tests, "0"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(resumed.stdout.split()[0]) > 6  # it resumed, it did not start again
    train_with_checkpoints(what, model, tmp_path / "whole/out")
    one, two = weights(tmp_path / "killed/out"), weights(tmp_path / "whole/out")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("what", ["sft", "dpo"])
def test_training_killed_after_its_last_step_takes_no_more(model, tmp_path, what):
    """transformers 5.19 resumes from the last checkpoint with one step more, unless it is at the end of an epoch."""
    train_with_checkpoints(what, model, tmp_path / "first")
    assert (tmp_path / "partial/checkpoint-12").is_dir()
    train_with_checkpoints(what, model, tmp_path / "again")
    assert not (tmp_path / "partial/checkpoint-13").exists()
    one, two = weights(tmp_path / "first"), weights(tmp_path / "again")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)

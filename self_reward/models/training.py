"""SFT and DPO over TRL, on examples that are token ids already: training sees the tokens that sampling sees.

Both train a model folder as `checkpoints.materialise` gives it and save to `out` either an adapter (lora) or full
weights in the dtype of the folder, with its tokenizer. Learning rate: linear warmup, then cosine to
`min_learning_rate`. The effective batch is `batch_size`, whatever the micro batch and the number of processes.

With `processes` above 1 the same functions run in that many processes at once (train_group.py), which share the micro
batches: FSDP on GPUs, one each; on a machine without GPUs DDP, which divides the work but not the model.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoConfig, AutoTokenizer, PrinterCallback, TrainerCallback, TrainerState
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from self_reward import disk, files
from self_reward.errors import TryAgain, UserError
from self_reward.models import base_model, train_group
from self_reward.models.base_model import weights_dtype
from self_reward.models.checkpoints import FILE_SIZE, copy_tokenizer, quiet

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]  # steps done, steps in all, a word on how it goes
COMPLETE = ".complete"  # in a training checkpoint, written last
DROPOUTS = [
    *("attention_dropout", "resid_dropout", "hidden_dropout", "dropout"),
    *("attn_pdrop", "resid_pdrop", "embd_pdrop"),
]


def train_sft(
    model_dir: Path,
    examples: list[tuple[list[int], list[int]]],
    out: Path,
    *,
    finetune: str,
    learning_rate: float,
    min_learning_rate: float,
    batch_size: int,
    micro_batch_size: int,
    max_length: int,
    seed: int,
    epochs: float = 1.0,
    max_steps: int | None = None,
    warmup_ratio: float = 0.0,
    weight_decay: float = 0.0,
    adam_beta2: float = 0.999,
    dropout: float = 0.0,
    lora_rank: int = 16,
    lora_alpha: int = 32,
    lora_target_modules: str | list[str] = "all-linear",
    checkpoint_steps: int | None = None,
    checkpoint_dir: Path | None = None,
    dtype: str = "auto",
    gradient_checkpointing: bool | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on (prompt_ids, completion_ids), with the loss on the completions only (B15, B16), and save to `out`.

    `max_length` is in tokens, prompt and completion together; longer examples are dropped and counted.
    `max_steps` wins over `epochs`. `dropout` is on the adapter (lora) or on the attention (full).
    `dtype`: auto is bfloat16 arithmetic on a GPU that has it, float32 elsewhere. `gradient_checkpointing`: None is on
    for a GPU only. With `checkpoint_dir`, training goes on from the last whole checkpoint in it and gives the weights
    of an undisturbed run; the folder must belong to this one piece of work. `chat_template` replaces the tokenizer's.
    `processes`: how many train together, each on a GPU where there are any; the weights are those of one process, up to
    rounding.
    Returns figures for the manifest. Raises UserError for what cannot be trained, TryAgain when memory or disk is full.
    """
    call = dict(locals())
    micro_batch_size = min(micro_batch_size, max(1, batch_size // max(1, processes)))
    kept = [(p, c) for p, c in examples if c and len(p) + len(c) <= max_length]
    _check(
        len(examples),
        len(kept),
        max_length,
        finetune,
        batch_size,
        micro_batch_size,
        processes,
        learning_rate,
        min_learning_rate,
        [],
    )
    if processes > 1 and not torch.distributed.is_initialized():
        return _in_processes("train_sft", call, micro_batch_size)
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": [p + c for p, c in kept],
            "labels": [[-100] * len(p) + c for p, c in kept],
        }
    )

    common = _arguments(
        learning_rate=learning_rate,
        min_learning_rate=min_learning_rate,
        warmup_ratio=warmup_ratio,
        epochs=epochs,
        max_steps=max_steps,
        weight_decay=weight_decay,
        adam_beta2=adam_beta2,
        checkpoint_steps=checkpoint_steps if checkpoint_dir else None,
        seed=seed,
        dtype=dtype,
        gradient_checkpointing=gradient_checkpointing,
        steps_an_epoch=math.ceil(len(kept) / batch_size),
        processes=processes,
    )

    def make(micro: int, work: Path) -> SFTTrainer:
        arguments = SFTConfig(
            **common,
            output_dir=str(work),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=batch_size // (micro * processes),
            max_length=max_length,
            completion_only_loss=True,
            packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},  # rows have their labels
        )
        _keep_results_whole(arguments)
        model = _load(model_dir, finetune, dropout, bool(arguments.bf16), trust_remote_code)
        return _SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            processing_class=_tokenizer(model_dir, trust_remote_code),
            peft_config=_lora(model, finetune, lora_rank, lora_alpha, lora_target_modules, dropout),
            callbacks=[_Watch(progress)],
        )

    metrics = _train(make, micro_batch_size, model_dir, out, finetune, checkpoint_dir, chat_template)
    return metrics | {
        "examples": len(kept),
        "dropped_too_long": len(examples) - len(kept),
        "tokens": sum(len(p) + len(c) for p, c in kept),
    }


def train_dpo(
    model_dir: Path,
    pairs: list[tuple[list[int], list[int], list[int]]],
    out: Path,
    *,
    finetune: str,
    learning_rate: float,
    min_learning_rate: float,
    batch_size: int,
    micro_batch_size: int,
    max_length: int,
    seed: int,
    beta: float,
    loss: str = "sigmoid",
    nll_weight: float = 0.0,
    label_smoothing: float = 0.0,
    precompute_reference: bool = False,
    epochs: float = 1.0,
    max_steps: int | None = None,
    warmup_ratio: float = 0.0,
    weight_decay: float = 0.0,
    adam_beta2: float = 0.999,
    dropout: float = 0.0,
    lora_rank: int = 16,
    lora_alpha: int = 32,
    lora_target_modules: str | list[str] = "all-linear",
    checkpoint_steps: int | None = None,
    checkpoint_dir: Path | None = None,
    dtype: str = "auto",
    gradient_checkpointing: bool | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on (prompt_ids, chosen_ids, rejected_ids) with DPO and save to `out`. Otherwise as `train_sft`.

    The policy starts as `model_dir` and the reference is `model_dir` (B1): with lora the same model with the fresh
    adapter switched off; with full a second copy, or its log-probabilities computed beforehand
    (`precompute_reference`).
    `loss`: sigmoid is DPO's, sigmoid_norm divides both log-ratios by the lengths in tokens (beta about 10 times
    larger). `nll_weight` adds that many times the mean negative log-likelihood of the chosen tokens (2404.19733).
    `label_smoothing` is the share of pairs taken to be labelled the wrong way round (CREAM, 2410.12735): the loss is
    (1 - s) * -log sigmoid(h) + s * -log sigmoid(-h); only with loss sigmoid.
    """
    call = dict(locals())
    micro_batch_size = min(micro_batch_size, max(1, batch_size // max(1, processes)))
    kept = [(p, c, r) for p, c, r in pairs if c and r and len(p) + max(len(c), len(r)) <= max_length]
    problems: list[str] = []
    if loss not in ("sigmoid", "sigmoid_norm"):
        problems.append(f"loss {loss!r}; expected sigmoid or sigmoid_norm")
    if not 0 <= label_smoothing < 0.5:
        problems.append(f"label_smoothing {label_smoothing}; expected at least 0 and less than 0.5")
    if label_smoothing and loss != "sigmoid":
        problems.append(f"label_smoothing {label_smoothing} with loss {loss}; it goes with loss sigmoid only")
    if precompute_reference and processes > 1:  # TRL keeps them in a folder of the first process's own
        problems.append(f"precompute_reference with {processes} processes; it goes with one process only")
    _check(
        len(pairs),
        len(kept),
        max_length,
        finetune,
        batch_size,
        micro_batch_size,
        processes,
        learning_rate,
        min_learning_rate,
        problems,
    )
    if processes > 1 and not torch.distributed.is_initialized():
        call["examples"] = call.pop("pairs")
        return _in_processes("train_dpo", call, micro_batch_size)
    rows = datasets.Dataset.from_dict(
        {
            "prompt_ids": [p for p, _, _ in kept],
            "chosen_ids": [c for _, c, _ in kept],
            "rejected_ids": [r for _, _, r in kept],
        }
    )
    losses = {loss: 1.0}
    if label_smoothing:
        # TRL's sigmoid loss takes no label smoothing. With A = -log sigmoid(h), the smoothed loss is A + s*h and TRL's
        # robust loss is A - s*h / (1 - 2s), so that the smoothed one is a sum of both.
        losses = {"sigmoid": 2 * (1 - label_smoothing), "robust": -(1 - 2 * label_smoothing)}
    if nll_weight:
        losses["sft"] = nll_weight

    common = _arguments(
        learning_rate=learning_rate,
        min_learning_rate=min_learning_rate,
        warmup_ratio=warmup_ratio,
        epochs=epochs,
        max_steps=max_steps,
        weight_decay=weight_decay,
        adam_beta2=adam_beta2,
        checkpoint_steps=checkpoint_steps if checkpoint_dir else None,
        seed=seed,
        dtype=dtype,
        gradient_checkpointing=gradient_checkpointing,
        steps_an_epoch=math.ceil(len(kept) / batch_size),
        processes=processes,
    )

    def make(micro: int, work: Path) -> DPOTrainer:
        arguments = DPOConfig(
            **common,
            output_dir=str(work),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=batch_size // (micro * processes),
            max_length=max_length,
            beta=beta,
            loss_type=list(losses),
            loss_weights=list(losses.values()),
            label_smoothing=label_smoothing,
            disable_dropout=dropout == 0,
            precompute_ref_log_probs=precompute_reference,
        )
        _keep_results_whole(arguments)
        second = finetune == "full" and not precompute_reference
        model = _load(model_dir, finetune, dropout, bool(arguments.bf16), trust_remote_code)
        return _DPOTrainer(
            model=model,
            ref_model=_load(model_dir, finetune, 0.0, bool(arguments.bf16), trust_remote_code) if second else None,
            args=arguments,
            train_dataset=rows,
            processing_class=_tokenizer(model_dir, trust_remote_code),
            peft_config=_lora(model, finetune, lora_rank, lora_alpha, lora_target_modules, dropout),
            callbacks=[_Watch(progress)],
        )

    metrics = _train(make, micro_batch_size, model_dir, out, finetune, checkpoint_dir, chat_template)
    return metrics | {
        "examples": len(kept),
        "dropped_too_long": len(pairs) - len(kept),
        "tokens": sum(2 * len(p) + len(c) + len(r) for p, c, r in kept),
    }


class _SeveralProcesses:
    """Lets several processes take the very steps of one, also where the last step of an epoch is smaller.

    Micro batch i of an epoch goes to process i % n. accelerate fills the last round up with examples from the epoch's
    beginning, so that each process has one; here they are taken out of the loss again.
    """

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        args, rows = self.args, len(self.train_dataset)  # type: ignore[attr-defined]
        micro, processes = args.per_device_train_batch_size, args.world_size
        step = micro * processes * args.gradient_accumulation_steps
        left = rows - self.state.global_step % math.ceil(rows / step) * step  # type: ignore[attr-defined]
        if processes == 1 or left >= step:
            return batches, items
        for i, batch in enumerate(batches):
            own = left - (i * processes + args.process_index) * micro  # examples that are this epoch's
            self._leave_out(batch, min(max(own, 0), micro), processes * len(batches) / math.ceil(left / micro))  # type: ignore[attr-defined]
        return batches, self._get_num_items_in_batch(batches, device)  # type: ignore[attr-defined]


class _SFTTrainer(_SeveralProcesses, SFTTrainer):
    def _leave_out(self, batch: dict[str, Any], own: int, weight: float) -> None:
        batch["labels"][own:] = -100  # the loss is over the tokens of all processes: no weight is needed


class _DPOTrainer(_SeveralProcesses, DPOTrainer):
    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset  # TRL's always renders and tokenises text; this one is given the ids

    def _leave_out(self, batch: dict[str, Any], own: int, weight: float) -> None:
        rows = self.args.per_device_train_batch_size
        batch["weight"] = weight if own else 0.0
        if own in (0, rows):
            return
        for name, value in list(batch.items()):
            if name != "weight":  # chosen and rejected, one below the other
                batch[name] = torch.cat([part[:own] for part in value.split(rows)])

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        weight = inputs.pop("weight", None)
        if weight is None:
            return super().compute_loss(model, inputs, *rest, **more)
        gather = self.accelerator.gather
        self.accelerator.gather = lambda value: _gather_uneven(self.accelerator, gather, value, weight > 0)
        try:
            return super().compute_loss(model, inputs, *rest, **more) * weight
        finally:
            self.accelerator.gather = gather


def _gather_uneven(accelerator: Any, gather: Any, value: torch.Tensor, counts: bool) -> torch.Tensor:
    """What the processes together have to say for TRL's log, where they have unequally many examples or none."""
    if value.is_floating_point():
        value = value if counts else torch.full_like(value, torch.nan)
        found = gather(accelerator.pad_across_processes(value, pad_index=torch.nan))
        return found[~found.isnan()]
    return gather(value if counts else torch.zeros_like(value))


class _Watch(TrainerCallback):
    """Reports progress, stops at a loss that is not a number, and marks checkpoints that are whole."""

    def __init__(self, progress: Progress | None):
        self.progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"the loss became {logs['loss']} at step {state.global_step} of {state.max_steps}; "
                "a smaller learning rate usually helps"
            )
        if self.progress and state.is_world_process_zero:
            self.progress(state.global_step, state.max_steps, f"loss {logs['loss']:.4f}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.distributed_state.wait_for_everyone()  # each process writes the state of its random numbers
        # transformers writes a checkpoint in place; a kill in the middle leaves a part that looks like one
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def _check(
    given: int,
    kept: int,
    max_length: int,
    finetune: str,
    batch: int,
    micro: int,
    processes: int,
    learning_rate: float,
    min_learning_rate: float,
    problems: list[str],
) -> None:
    """Raise `problems` and those that SFT and DPO share, together."""
    if finetune not in ("lora", "full"):
        problems.append(f"finetune {finetune!r}; expected lora or full")
    if processes < 1 or batch % processes:
        problems.append(
            f"batch size {batch} cannot be divided by {processes} processes (GPUs); use a multiple, such as "
            f"{math.ceil(batch / max(1, processes)) * max(1, processes)}"
        )
    elif micro < 1 or batch % (micro * processes):
        each = f" on each of {processes} processes" if processes > 1 else ""
        problems.append(f"batch size {batch} cannot be divided by micro batch size {micro}{each}")
    if learning_rate <= 0 or not 0 <= min_learning_rate <= learning_rate:
        problems.append(
            f"learning rate {learning_rate} down to {min_learning_rate}; expected a positive one, and a smallest one "
            "between 0 and it"
        )
    if not given:
        problems.append("no examples to train on")
    elif not kept:
        problems.append(f"none of {given} examples can be trained on: all empty or longer than max_length {max_length}")
    if problems:
        raise UserError(problems)


def _arguments(
    *,
    learning_rate: float,
    min_learning_rate: float,
    warmup_ratio: float,
    epochs: float,
    max_steps: int | None,
    weight_decay: float,
    adam_beta2: float,
    checkpoint_steps: int | None,
    seed: int,
    dtype: str,
    gradient_checkpointing: bool | None,
    steps_an_epoch: int,
    processes: int,
) -> dict[str, Any]:
    """What SFT and DPO tell TRL alike. Set explicitly where its defaults bite (bf16 on a CPU, checkpointing on)."""
    gpu = torch.cuda.is_available()
    has_bf16 = gpu and torch.cuda.is_bf16_supported()
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UserError(f"dtype {dtype!r}; expected auto, float32 or bfloat16")
    if dtype == "bfloat16" and not has_bf16:
        raise UserError("dtype bfloat16 needs a GPU that has it; there is none here: set dtype to auto or float32")
    steps = max_steps or math.ceil(steps_an_epoch * epochs)
    return {
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": min_learning_rate},
        "warmup_steps": warmup_ratio,  # below 1: a share of all steps
        "num_train_epochs": epochs,
        "max_steps": max_steps or -1,
        "optim": "adamw_torch",
        "weight_decay": weight_decay,
        "adam_beta2": adam_beta2,
        "max_grad_norm": 1.0,
        "seed": seed,
        "data_seed": seed,
        "train_sampling_strategy": "random",  # by length it ruined a tiny model
        "bf16": has_bf16 and dtype != "float32",
        "fp16": False,
        "gradient_checkpointing": gpu if gradient_checkpointing is None else gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "save_strategy": "steps" if checkpoint_steps else "no",
        "save_steps": checkpoint_steps or 500,
        "save_total_limit": 2,  # the last may be the one that a kill cut short
        "logging_steps": max(1, min(10, steps // 20)),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
        "eval_strategy": "no",
        "push_to_hub": False,
        "use_cpu": processes > 1 and not gpu,  # else accelerate takes each process for one that is alone
        **(_FSDP if processes > 1 and gpu else {}),
    }


# Weights, gradients and optimizer states are divided over the GPUs, layer by layer; files hold whole ones. (The
# reference of full DPO, which TRL divides itself, is gathered as a whole at each of its forward passes.) FSDP2, since
# transformers drops the first version. Tests run it on CPU processes; it has not been run on GPUs.
_FSDP: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # the layers are those that the model's class names
        "reshard_after_forward": True,
        "cpu_ram_efficient_loading": False,  # each process loads the model: simple, at the price of main memory
        "state_dict_type": "FULL_STATE_DICT",
    },
}


def _keep_results_whole(arguments: Any) -> None:
    """With FSDP in bf16 accelerate would also round what the model returns, of which DPO's log-probabilities are made
    (a sum over an answer is then off by whole units), and add gradients up in bf16."""
    if arguments.fsdp_plugin_args and arguments.bf16:
        arguments.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )


def _load(model_dir: Path, finetune: str, dropout: float, bf16: bool, trust_remote_code: bool) -> Any:
    with base_model.loadable(model_dir):
        config = AutoConfig.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
    names = [name for name in DROPOUTS if isinstance(getattr(config, name, None), int | float)]
    if dropout and finetune == "full" and not names:
        raise UserError(f"a {config.model_type} model has no dropout to set; use dropout 0, or finetune lora")
    for name in names:  # with lora the dropout is the adapter's own, and the model below stays the exact reference
        setattr(config, name, dropout if finetune == "full" else 0.0)
    # Full weights are updated in float32: at learning rates of 1e-6 a bfloat16 weight would not move at all.
    dtype = torch.bfloat16 if bf16 and finetune == "lora" else torch.float32
    return base_model.load(model_dir, config=config, dtype=dtype, trust_remote_code=trust_remote_code)


def _tokenizer(model_dir: Path, trust_remote_code: bool) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise UserError(f"{model_dir}: the tokenizer has neither a padding nor an end token; set one of them in it")
    return tokenizer


def _lora(
    model: Any, finetune: str, rank: int, alpha: int, target_modules: str | list[str], dropout: float
) -> LoraConfig | None:
    if finetune == "full":
        return None
    if isinstance(target_modules, str) and target_modules != "all-linear":  # peft would take it for a pattern
        target_modules = [name.strip() for name in target_modules.split(",")]
    if target_modules != "all-linear":
        there = {
            name.rpartition(".")[2]: "" for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)
        }
        modules = [name for name, _ in model.named_modules()]
        if unknown := [w for w in target_modules if not any(m == w or m.endswith(f".{w}") for m in modules)]:
            raise UserError(
                f"lora_target_modules: the model has no module {', '.join(map(repr, unknown))}; it has "
                f"{', '.join(there)}"
            )
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=target_modules,
        lora_dropout=dropout,
        bias="none",
        task_type="CAUSAL_LM",
    )


def _train(
    make: Callable[[int, Path], Any],
    micro_batch_size: int,
    model_dir: Path,
    out: Path,
    finetune: str,
    checkpoint_dir: Path | None,
    chat_template: str | None,
) -> dict[str, Any]:
    quiet()
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"  # the bar over the reference's log-probabilities heeds nothing else
    started = time.monotonic()
    # no temporary folder where none is needed: kill -9 would leave it lying about
    with contextlib.nullcontext(checkpoint_dir) if checkpoint_dir else tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        together = torch.distributed.is_initialized()

        def attempt(micro: int) -> tuple[Any, int]:
            last = _last_checkpoint(work, sharded=together and torch.cuda.is_available())
            trainer = make(micro, work)
            if together:
                if trainer.args.world_size != torch.distributed.get_world_size():
                    raise RuntimeError(f"accelerate sees {trainer.args.world_size} processes")
                # or dropout would be the same in all processes
                torch.manual_seed(trainer.args.seed + trainer.args.process_index)
            trainer.args._n_gpu = min(1, trainer.args.n_gpu)  # one process uses one GPU; TRL refuses DataParallel
            trainer.remove_callback(PrinterCallback)
            if last:
                log.info("going on from %s", last.name)
                state = TrainerState.load_from_json(str(last / "trainer_state.json"))
                if state.global_step >= state.max_steps:  # killed after its end: train() would take one step more
                    trainer._load_from_checkpoint(str(last))
                    trainer.state = state
                    return trainer, micro
            with disk.explained(work):
                trainer.train(resume_from_checkpoint=str(last) if last else None)
            return trainer, micro

        if together:  # a smaller micro batch is for all processes: _in_processes starts them again
            trainer, micro = attempt(micro_batch_size)
        else:
            trainer, micro = with_smaller_batches(attempt, micro_batch_size)
        model, weights = trainer.model, None
        if trainer.is_fsdp_enabled:  # each process gives its share
            weights = trainer.accelerator.get_state_dict(model)
            model = trainer.accelerator.unwrap_model(model)
        if trainer.args.process_index == 0:
            _save(model, model_dir, out, finetune, chat_template, weights)
    return _metrics(trainer) | {"micro_batch_size": micro, "seconds": round(time.monotonic() - started, 3)}


def _in_processes(function: str, call: dict[str, Any], micro_batch_size: int) -> dict[str, Any]:
    """What `function` returns, called with `call` in several processes at once."""
    processes, checkpoint_dir = call["processes"], call["checkpoint_dir"]
    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise UserError(
            f"{processes} processes need a GPU each, there are {torch.cuda.device_count()} here; set train_gpus to that"
        )
    started = time.monotonic()
    with contextlib.nullcontext(checkpoint_dir) if checkpoint_dir else tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        call["checkpoint_dir"] = work
        call["checkpoint_steps"] = call["checkpoint_steps"] if checkpoint_dir else None

        def attempt(micro: int) -> dict[str, Any]:
            _last_checkpoint(work, sharded=torch.cuda.is_available())  # one process removes what is of no use
            return train_group.run(function, folder=work / "group", **call | {"micro_batch_size": micro})

        metrics: dict[str, Any] = with_smaller_batches(attempt, micro_batch_size)
    return metrics | {"processes": processes, "seconds": round(time.monotonic() - started, 3)}


def with_smaller_batches(attempt: Callable[[int], Any], micro: int) -> Any:
    """attempt(micro); when the memory of the GPU is full, again with half the micro batch, down to 1."""
    while True:
        try:
            return attempt(micro)
        except torch.OutOfMemoryError as error:
            if micro == 1:
                raise TryAgain(
                    "out of GPU memory even with a micro batch of 1; is another process on this GPU? Else lower "
                    f"max_length, use finetune lora, or a larger GPU ({str(error).splitlines()[0]})"
                ) from None
        # outside of the handler: the exception holds the frames, and they hold the memory
        micro = micro // 2 if micro % 2 == 0 else 1  # still divides the batch
        log.warning("out of GPU memory; going on with a micro batch of %d", micro)
        torch.cuda.empty_cache()


def _last_checkpoint(work: Path, sharded: bool) -> Path | None:
    """The newest whole checkpoint; what a kill cut short is removed, and so is what one process (or several on CPU)
    wrote and several GPUs (`sharded`) cannot read, or the other way round."""
    whole = []
    for folder in work.glob("checkpoint-*"):
        if not (folder / COMPLETE).is_file():
            shutil.rmtree(folder)
        elif (folder / "pytorch_model_fsdp.bin").is_file() != sharded:
            log.warning("%s is of a training with another number of GPUs, which cannot be gone on from", folder.name)
            shutil.rmtree(folder)
        elif sharded and _at_end(folder):  # going on from there takes a step too many, and it cannot be loaded alone
            shutil.rmtree(folder)
        else:
            whole.append(folder)
    return max(whole, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), default=None)


def _at_end(checkpoint: Path) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_bytes())
    return bool(state["global_step"] >= state["max_steps"])


def _save(
    model: Any,
    model_dir: Path,
    out: Path,
    finetune: str,
    chat_template: str | None,
    weights: dict[str, torch.Tensor] | None,
) -> None:
    """`weights`: the whole model's, where `model` holds a share of them."""
    with files.whole_folder(out) as part:
        if finetune == "lora":
            model.save_pretrained(part, state_dict=weights)
            (part / "README.md").unlink(missing_ok=True)
            # Where the model lay on this machine is of no use elsewhere, and PEFT writes sets in any order:
            # the same training gives the same bytes.
            config = json.loads((part / "adapter_config.json").read_bytes())
            config["base_model_name_or_path"] = None
            if isinstance(config.get("target_modules"), list):
                config["target_modules"].sort()
            (part / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        else:
            dtype = getattr(torch, weights_dtype(model_dir))
            if weights is None:
                model.to(dtype)
            else:
                tied = getattr(model, "all_tied_weights_keys", None) or {}
                weights = {name: weight.to(dtype) for name, weight in weights.items() if name not in tied}
            model.save_pretrained(part, state_dict=weights, max_shard_size=FILE_SIZE)
            before = json.loads((model_dir / "config.json").read_bytes())
            config = json.loads((part / "config.json").read_bytes())
            config["dtype"] = str(dtype).removeprefix("torch.")
            for name in DROPOUTS:  # the dropout of this training is no property of the model
                if name in before:
                    config[name] = before[name]
                else:
                    config.pop(name, None)
            (part / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        copy_tokenizer([model_dir], part, chat_template=chat_template)


def _metrics(trainer: Any) -> dict[str, Any]:
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    metrics: dict[str, Any] = {"steps": trainer.state.global_step}
    names = {
        "loss": "loss",
        "entropy": "entropy",
        "mean_token_accuracy": "token_accuracy",
        "rewards/margins": "reward_margin",
        "rewards/accuracies": "reward_accuracy",
        "rewards/chosen": "reward_chosen",
        "rewards/rejected": "reward_rejected",
        "logps/chosen": "logp_chosen",
        "logps/rejected": "logp_rejected",
    }
    for key, name in names.items():
        if logs and key in logs[0]:
            metrics[f"{name}_first"] = logs[0][key]
            metrics[f"{name}_last"] = logs[-1][key]
    return metrics

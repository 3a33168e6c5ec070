"""SFT and DPO with TRL, on token ids: training sees the tokens that sampling sees.

Both train the model folder that `checkpoints.materialise` returns, and save to `out` an adapter (lora) or full weights
in the folder's dtype, with its tokenizer and chat template. Learning rate: linear warmup, then cosine to
`min_learning_rate`. The effective batch size is `batch_size`, whatever the per-device batch size (the micro batch) and
the number of processes.

With several `hardware.processes`, `train` runs in that many processes (train_group.py), which share the micro batches:
FSDP on GPUs, one each; without GPUs DDP, which divides the work but not the model. The weights are those of one
process, up to rounding.

`job.folder` gets a checkpoint every `checkpoint_steps` optimizer steps. Training resumes from the last complete one and
ends with the weights of an undisturbed run, so the folder must belong to this training alone.
"""

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import datasets
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments
from trl import DPOConfig, SFTConfig

from self_reward import disk
from self_reward.errors import TryAgain, UserError
from self_reward.models import train_group, trainable, trainers
from self_reward.models.checkpoints import quiet
from self_reward.models.train_group import Call
from self_reward.parameters.settings import PreferenceLoss
from self_reward.types import Json

log = logging.getLogger(__name__)

Result = TypeVar("Result")


def train(call: Call) -> Json:
    """SFT, or DPO if `call` has a loss, in as many processes as it says. Saves to `call.out`; returns figures for the
    manifest. Raises UserError for what cannot be trained, TryAgain when memory or disk is full.

    The loss is on the answers only (B15, B16). Examples longer than `max_length` with any answer, or with an empty one,
    are left out and counted. DPO's reference is the model that training starts from (B1): with lora the same weights
    without the adapter, with full a second copy or its log-probabilities computed beforehand (`precompute_reference`).
    """
    processes, max_length = call.hardware.processes, call.training.max_length
    examples = [e for e in call.examples if all(e[1:]) and len(e[0]) + max(map(len, e[1:])) <= max_length]
    if problems := _problems(call, len(examples)):
        raise UserError(problems)
    started = time.monotonic()
    if processes > 1 and not torch.distributed.is_initialized():
        metrics = _in_processes(call) | {"processes": processes}
    else:
        metrics = _in_this_process(call, examples) | {
            "examples": len(examples),
            "dropped_too_long": len(call.examples) - len(examples),
            "tokens": sum(len(prompt) + len(answer) for prompt, *answers in examples for answer in answers),
        }
    return metrics | {"seconds": round(time.monotonic() - started, 3)}


def _problems(call: Call, usable: int) -> list[str]:
    """Why nothing, or something other than requested, would be trained. `usable`: number of examples to train on."""
    training, processes, given = call.training, call.hardware.processes, len(call.examples)
    problems = []
    if training.batch_size % (training.micro_batch(processes) * processes):
        multiple = training.micro_batch_size * processes
        on_each = f" on each of {processes} processes (GPUs)" if processes > 1 else ""
        problems.append(
            f"batch_size {training.batch_size} cannot be divided into micro batches of "
            f"{training.micro_batch(processes)}{on_each}; use a multiple of {multiple}, such as "
            f"{math.ceil(training.batch_size / multiple) * multiple}"
        )
    if training.min_learning_rate > training.learning_rate:
        problems.append(
            f"min_learning_rate {training.min_learning_rate} is above learning_rate {training.learning_rate}"
        )
    if call.loss and call.loss.label_smoothing and call.loss.dpo_loss != "sigmoid":
        problems.append(f"label_smoothing {call.loss.label_smoothing} needs dpo_loss sigmoid, not {call.loss.dpo_loss}")
    if call.model.tokenizer.pad_token is None and call.model.tokenizer.eos_token is None:
        problems.append(f"{call.model.folder}: the tokenizer has neither a padding nor an end token; set one of them")
    if not given:
        problems.append("no examples to train on")
    elif not usable:
        problems.append(
            f"none of {given} examples can be trained on: all empty or longer than max_length {training.max_length}"
        )
    return problems


# ---- TRL's arguments


def _arguments(call: Call, count: int, micro: int) -> Json:
    """The arguments that SFT and DPO share, for `count` examples. Explicit where TRL's defaults do harm (bf16 on a CPU,
    checkpointing on)."""
    training, hardware, processes = call.training, call.hardware, call.hardware.processes
    gpu = torch.cuda.is_available()
    has_bf16 = gpu and torch.cuda.is_bf16_supported()
    if call.model.loading.dtype == "bfloat16" and not has_bf16:
        raise UserError("dtype bfloat16 needs a GPU that supports it, which this machine lacks: set dtype to auto")
    steps = training.max_steps or math.ceil(math.ceil(count / training.batch_size) * training.epochs)
    return {
        "output_dir": str(call.job.folder),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": training.batch_size // (micro * processes),
        "max_length": training.max_length,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": training.min_learning_rate},
        "warmup_steps": training.warmup_ratio,  # below 1: a share of all steps
        "num_train_epochs": training.epochs,
        "max_steps": training.max_steps or -1,
        "optim": "adamw_torch",
        "weight_decay": training.weight_decay,
        "adam_beta2": training.adam_beta2,
        "max_grad_norm": 1.0,
        "seed": call.job.seed,
        "data_seed": call.job.seed,
        "train_sampling_strategy": "random",  # by length it ruined a tiny model
        "bf16": has_bf16 and call.model.loading.dtype != "float32",
        "fp16": False,
        "gradient_checkpointing": gpu and hardware.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "save_strategy": "steps",
        "save_steps": hardware.checkpoint_steps,
        "save_total_limit": 2,  # a kill may have cut the last one short
        "logging_steps": max(1, min(10, steps // 20)),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
        "eval_strategy": "no",
        "push_to_hub": False,
        "use_cpu": processes > 1 and not gpu,  # otherwise accelerate treats each process as alone
        **(_FSDP if processes > 1 and gpu else {}),
    }


# Weights, gradients and optimizer states are divided over the GPUs, layer by layer; files hold all of them. (TRL itself
# divides the reference of full DPO, and gathers all of it in each forward pass.) FSDP2, since transformers drops the
# first version. Tests run it on CPU processes; it has not been run on GPUs.
_FSDP: Json = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # the layers that the model's class names
        "reshard_after_forward": True,
        "cpu_ram_efficient_loading": False,  # each process loads the model: simple, at the price of main memory
        "state_dict_type": "FULL_STATE_DICT",
    },
}


def _sft_trainer(call: Call, examples: list[tuple[list[int], ...]], micro: int) -> Trainer:
    arguments = SFTConfig(
        **_arguments(call, len(examples), micro),
        completion_only_loss=True,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},  # the rows have their labels
    )
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": [prompt + completion for prompt, completion in examples],
            "labels": [[-100] * len(prompt) + completion for prompt, completion in examples],
        }
    )
    return trainers.SftTrainer(args=arguments, train_dataset=rows, **_model_arguments(call, arguments))


def _dpo_trainer(call: Call, pairs: list[tuple[list[int], ...]], micro: int) -> Trainer:
    training, loss = call.training, call.loss
    assert loss, "DPO has a loss"
    arguments = DPOConfig(
        **_arguments(call, len(pairs), micro), **_loss_arguments(loss), disable_dropout=training.dropout == 0
    )
    prompts, chosen, rejected = map(list, zip(*pairs, strict=True))
    rows = datasets.Dataset.from_dict({"prompt_ids": prompts, "chosen_ids": chosen, "rejected_ids": rejected})
    of_policy = _model_arguments(call, arguments)
    # The policy can be its own reference with lora, and before training; but not before training with FSDP, which
    # divides the policy only when training starts.
    second = bool(arguments.fsdp_plugin_args) if loss.precompute_reference else training.finetune == "full"
    reference = trainable.load(call.model, training.finetune, 0.0, bool(arguments.bf16)) if second else None
    trainer = trainers.DpoTrainer(ref_model=reference, args=arguments, train_dataset=rows, **of_policy)
    if loss.precompute_reference:
        trainer.ref_model = None  # TRL keeps one that it is given
    return trainer


def _loss_arguments(loss: PreferenceLoss) -> Json:
    """The loss as a weighted sum of TRL's losses.

    sigmoid is DPO's; sigmoid_norm divides both log-ratios by the lengths in tokens. `nll_weight` is the weight of the
    mean negative log-likelihood of the chosen tokens (2404.19733). With `label_smoothing` s (CREAM, 2410.12735) the
    loss is (1 - s) * -log sigmoid(h) + s * -log sigmoid(-h).
    """
    weights: dict[str, float] = {loss.dpo_loss: 1.0}
    if loss.label_smoothing:
        # TRL's sigmoid loss takes no label smoothing. With A = -log sigmoid(h), the smoothed loss is A + s*h and TRL's
        # robust loss is A - s*h / (1 - 2s), so that the smoothed one is a sum of both.
        weights = {"sigmoid": 2 * (1 - loss.label_smoothing), "robust": -(1 - 2 * loss.label_smoothing)}
    if loss.nll_weight:
        weights["sft"] = loss.nll_weight
    return {
        "beta": loss.beta,
        "loss_type": list(weights),
        "loss_weights": list(weights.values()),
        "label_smoothing": loss.label_smoothing,
        "precompute_ref_log_probs": loss.precompute_reference,
    }


def _model_arguments(call: Call, arguments: TrainingArguments) -> Json:
    """A trainer's other arguments, besides `arguments` and the rows: the model, its adapter, its tokenizer."""
    training = call.training
    if arguments.fsdp_plugin_args and arguments.bf16:
        # accelerate would also sum gradients in bf16 and round the model's output, from which DPO's log-probabilities
        # are computed (the sum over an answer is then off by whole units)
        arguments.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )
    weights = trainable.load(call.model, training.finetune, training.dropout, bool(arguments.bf16))
    return {
        "model": weights,
        "peft_config": trainable.adapter(weights, call.lora, training.dropout) if training.finetune == "lora" else None,
        "processing_class": call.model.tokenizer,
        "callbacks": [trainers.Watch(call.job.progress)],
    }


# ---- the training


def _in_this_process(call: Call, examples: list[tuple[list[int], ...]]) -> Json:
    """Train and save, alone or as a member of the process group."""
    quiet()
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"  # the only switch for the bar over the reference's log-probabilities
    together = torch.distributed.is_initialized()
    make = _sft_trainer if call.loss is None else _dpo_trainer

    def attempt(micro: int) -> tuple[Trainer, int]:
        last = trainers.last_checkpoint(call.job.folder, sharded=together and torch.cuda.is_available())
        trainer = make(call, examples, micro)
        if together:
            if trainer.args.world_size != torch.distributed.get_world_size():
                raise RuntimeError(f"accelerate sees {trainer.args.world_size} processes")
            # otherwise dropout would be the same in all processes
            torch.manual_seed(trainer.args.seed + trainer.args.process_index)
        trainer.args._n_gpu = min(1, trainer.args.n_gpu)  # one process uses one GPU; TRL refuses DataParallel
        trainer.remove_callback(PrinterCallback)
        if last:
            log.info("resuming from %s", last.name)
            state = TrainerState.load_from_json(str(last / "trainer_state.json"))
            if state.global_step >= state.max_steps:  # killed after its end: train() would take one more step
                trainer._load_from_checkpoint(str(last))
                trainer.state = state
                return trainer, micro
        with disk.explained(call.job.folder):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        return trainer, micro

    micro = call.training.micro_batch(call.hardware.processes)
    if together:  # a smaller micro batch is for all processes: _in_processes starts them again
        trainer, micro = attempt(micro)
    else:
        trainer, micro = with_smaller_batches(attempt, micro)
    trained, tensors = trainer.model, None
    if trainer.is_fsdp_enabled:  # each process gives its share
        tensors = trainer.accelerator.get_state_dict(trained)
        trained = trainer.accelerator.unwrap_model(trained)
    if trainer.args.process_index == 0:
        trainable.save(trained, call.model, call.out, call.training.finetune, tensors)
    return _metrics(trainer) | {"micro_batch_size": micro}


def _in_processes(call: Call) -> Json:
    """Start the processes and return what `train(call)` returns in the first."""
    processes, gpus = call.hardware.processes, torch.cuda.device_count()
    if torch.cuda.is_available() and gpus < processes:
        raise UserError(f"{processes} processes need one GPU each; this machine has {gpus}; set train_gpus to {gpus}")

    def attempt(micro: int) -> Json:
        # one process removes what cannot be resumed
        trainers.last_checkpoint(call.job.folder, sharded=torch.cuda.is_available())
        training = call.training.model_copy(update={"micro_batch_size": micro})
        return train_group.run(replace(call, training=training), call.job.folder / "group")

    return with_smaller_batches(attempt, call.training.micro_batch(processes))


def with_smaller_batches(attempt: Callable[[int], Result], micro: int) -> Result:
    """attempt(micro); when the GPU's memory is full, again with half the micro batch, down to 1."""
    while True:
        try:
            return attempt(micro)
        except torch.OutOfMemoryError as error:
            if micro == 1:
                raise TryAgain(
                    "out of GPU memory even with a micro batch of 1; does another process use this GPU? Otherwise "
                    f"lower max_length, use finetune lora or a larger GPU ({str(error).splitlines()[0]})"
                ) from None
        # outside the handler, because the exception holds the frames and they hold the memory
        micro = micro // 2 if micro % 2 == 0 else 1  # still divides the batch
        log.warning("out of GPU memory; trying again with a micro batch of %d", micro)
        torch.cuda.empty_cache()


def _metrics(trainer: Trainer) -> Json:
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    metrics: Json = {"steps": trainer.state.global_step}
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

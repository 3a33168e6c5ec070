"""TRL's trainers, changed in three ways: several processes take exactly the steps of one, DPO takes token ids, and
processes share a precomputed reference, which changes nothing else. And their checkpoints: which can be resumed."""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOTrainer, SFTTrainer

from self_reward import disk
from self_reward.errors import UserError
from self_reward.models.model import Progress
from self_reward.types import Json

COMPLETE = ".complete"  # in a checkpoint, written last

log = logging.getLogger(__name__)


class _SeveralProcesses:
    """Micro batch i of an epoch goes to process i % n. In the last round accelerate repeats examples from the epoch's
    beginning, so that each process has a micro batch; here they are taken out of the loss again."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        args, rows = self.args, len(self.train_dataset)  # type: ignore[attr-defined]
        micro, processes = args.per_device_train_batch_size, args.world_size
        step = micro * processes * args.gradient_accumulation_steps
        left = rows - self.state.global_step % math.ceil(rows / step) * step  # type: ignore[attr-defined]
        if processes == 1 or left >= step:
            return batches, items
        for i, batch in enumerate(batches):
            own = left - (i * processes + args.process_index) * micro  # examples that belong to this epoch
            self._leave_out(batch, min(max(own, 0), micro), processes * len(batches) / math.ceil(left / micro))  # type: ignore[attr-defined]
        return batches, self._get_num_items_in_batch(batches, device)  # type: ignore[attr-defined]


class SftTrainer(_SeveralProcesses, SFTTrainer):
    def _leave_out(self, batch: dict[str, torch.Tensor], own: int, weight: float) -> None:
        batch["labels"][own:] = -100  # the loss is over the tokens of all processes: no weight is needed


class DpoTrainer(_SeveralProcesses, DPOTrainer):
    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset  # TRL would render and tokenise text; these rows are token ids

    def _precompute_ref_logps(self, dataset: datasets.Dataset, name: str, batch_size: int) -> datasets.Dataset:
        """Keep TRL's file of log-probabilities, named by a hash of rows and model, beside the checkpoints instead of in
        a temporary folder, so that all processes and a resumed training find it."""
        folder = Path(self.args.output_dir or "")
        folder.mkdir(parents=True, exist_ok=True)
        dataset._get_cache_file_path = lambda fingerprint: str(folder / f"reference-{fingerprint}.arrow")
        gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with disk.explained(folder), torch.random.fork_rng(gpus):  # so that dropout stays the same
            return super()._precompute_ref_logps(dataset, name, batch_size)

    def _leave_out(self, batch: Json, own: int, weight: float) -> None:
        rows = self.args.per_device_train_batch_size
        batch["weight"] = weight if own else 0.0
        if own in (0, rows):
            return
        for name, value in list(batch.items()):
            if name != "weight":  # chosen and rejected, one below the other
                batch[name] = torch.cat([part[:own] for part in value.split(rows)])

    def compute_loss(self, model: Any, inputs: Json, *rest: Any, **more: Any) -> Any:
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
    """The figures of all processes for TRL's log, even if some have fewer examples or none."""
    if value.is_floating_point():
        value = value if counts else torch.full_like(value, torch.nan)
        gathered = gather(accelerator.pad_across_processes(value, pad_index=torch.nan))
        return gathered[~gathered.isnan()]
    return gather(value if counts else torch.zeros_like(value))


class Watch(TrainerCallback):
    """Reports progress, stops at a loss that is not a number, and marks complete checkpoints."""

    def __init__(self, progress: Progress):
        self.progress = progress

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"the loss became {logs['loss']} at step {state.global_step} of {state.max_steps}; "
                "a smaller learning rate usually helps"
            )
        if state.is_world_process_zero:
            self.progress(state.global_step, state.max_steps, f"loss {logs['loss']:.4f}")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        args.distributed_state.wait_for_everyone()  # each process writes the state of its random numbers
        # transformers writes a checkpoint in place, so a kill may leave a part that looks like a checkpoint
        if state.is_world_process_zero:
            (Path(args.output_dir or "") / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def last_checkpoint(folder: Path, sharded: bool) -> Path | None:
    """The newest complete checkpoint in `folder`, or None.

    Removes incomplete checkpoints, and those of the other kind: several GPUs (`sharded`) cannot resume what one process
    (or several on CPU) wrote, nor the other way round.
    """
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / COMPLETE).is_file():
            shutil.rmtree(checkpoint)
        elif (checkpoint / "pytorch_model_fsdp.bin").is_file() != sharded:
            log.warning(
                "%s was written with a different number of GPUs and cannot be resumed; removed", checkpoint.name
            )
            shutil.rmtree(checkpoint)
        elif sharded and _at_end(checkpoint):  # resuming it takes one step too many, and it cannot be loaded alone
            shutil.rmtree(checkpoint)
        else:
            complete.append(checkpoint)
    return max(complete, key=lambda checkpoint: int(checkpoint.name.removeprefix("checkpoint-")), default=None)


def _at_end(checkpoint: Path) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_bytes())
    return bool(state["global_step"] >= state["max_steps"])

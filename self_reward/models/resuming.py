"""Checkpoints of an unfinished training: which of them it can resume from."""

import json
import logging
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

COMPLETE = ".complete"  # in a training checkpoint, written last


def last_checkpoint(folder: Path, sharded: bool) -> Path | None:
    """The newest complete checkpoint in `folder`, or None.

    Removes checkpoints that a kill cut short, and those of the other kind: several GPUs (`sharded`) cannot read what
    one process (or several on CPU) wrote, nor the other way round.
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

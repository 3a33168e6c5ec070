"""A stage's models: chains of checkpoints out of the data repository, merged, with their tokenizer or engine."""

import shutil
from dataclasses import replace
from pathlib import Path

from self_reward.models import base_model, checkpoints, model
from self_reward.models import policy as policies
from self_reward.models.model import Model
from self_reward.models.policy import Policy
from self_reward.parameters.stages import ModelStage, SamplingStage
from self_reward.run.checkout import Checkout
from self_reward.run.context import Run
from self_reward.types import Json


def chain(checkout: Checkout, p: ModelStage, role: str) -> tuple[Path, list[Path]]:
    """The folders of the checkpoint in `role` (policy, start, M0/dpo ...): its base model and its adapters in order."""
    names = checkout.inputs.chains[role]
    folders = [checkout.input(f"checkpoint:{name}") for name in names if name != "base"]
    if names[0] != "base":
        return folders[0], folders[1:]
    return base_folder(checkout, p), folders


def base_folder(checkout: Checkout, p: ModelStage) -> Path:
    """The folder of the base model, fetched into cache_dir or the hub's cache if it is missing there."""
    assert checkout.base_id is not None, "a chain that begins with the base has its id"
    resolved = base_model.Resolved(checkout.base_id, "hub", checkout.base_id)
    if checkout.has("base"):
        resolved = base_model.Resolved(checkout.base_id, "oxen", checkout.inputs.paths["base"])
    elif checkout.base_id.startswith("path:"):
        resolved = base_model.Resolved(checkout.base_id, "path", str(Path(p.base_model or "").expanduser()))
    return base_model.fetch(
        resolved,
        trust_remote_code=p.loading.trust_remote_code,
        cache_dir=p.cache,
        pull=lambda path, to: shutil.copytree(checkout.input("base"), to, dirs_exist_ok=True),
    )


def load(checkout: Checkout, p: ModelStage, role: str, chat_template: str = "auto") -> Model:
    """The checkpoint in `role` as a plain Hugging Face folder, its adapters merged, with its tokenizer."""
    folder = checkpoints.materialise(
        *chain(checkout, p, role),
        cache_dir=p.cache,
        keep=p.cache_keep,
        trust_remote_code=p.loading.trust_remote_code,
    )
    return model.load(folder, p.loading, chat_template)


def policy(run: Run, p: SamplingStage) -> Policy:
    """The model that this stage asks, loaded into its engine."""
    asked = policies.load(load(run, p, "policy"), p.engine, run.job)
    run.details["sampler"] = asked.engine
    return asked


def checkpoint_policy(run: Run, p: SamplingStage, name: str) -> Policy:
    """The checkpoint `name`, for evaluation: with the parameter `seed` itself, so that checkpoints are compared under
    equal random numbers."""
    job = replace(run.job, folder=run.job.folder / name.replace("/", "-"), seed=p.seed)
    return policies.load(load(run, p, name), p.engine, job)


def export(checkout: Checkout, p: ModelStage, role: str, to: Path) -> None:
    """Write the checkpoint in `role`, its adapters merged, to the new folder `to`."""
    checkpoints.export(
        *chain(checkout, p, role),
        to,
        cache_dir=p.cache,
        keep=p.cache_keep,
        trust_remote_code=p.loading.trust_remote_code,
    )


def record_training(run: Run, output: str, start: str, finetune: str, metrics: Json) -> None:
    """Write what the trained checkpoint is based on (the one in role `start`) and the measurements of its training."""
    parent = run.inputs.chains[start][-1]
    checkpoints.save_checkpoint_metadata(
        run.output(output), finetune=finetune, parent=None if parent == "base" else parent, base_model=run.base_id
    )
    run.counts["steps"] = metrics["steps"]
    run.details["metrics"] = metrics

"""Engines over a model folder, and how they are asked, in few words."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from self_reward.models import engines, model
from self_reward.parameters.settings import Engine, Loading, Sampling

if TYPE_CHECKING:
    from self_reward.models.engines import Sampler


def load_engine(
    name: Literal["vllm", "transformers"],
    folder: Path,
    *,
    batch_size: int = 64,
    max_model_len: int | None = None,
    gpus: int = 1,
    seed: int = 0,
) -> "Sampler":
    """The engine `name` over the model in `folder`."""
    settings = Engine(sampler=name, sampler_batch_size=batch_size, max_model_len=max_model_len, generate_gpus=gpus)
    return engines.load(model.load(folder, Loading()), settings, seed=seed)


def sampling(temperature: float = 0.0, top_p: float = 1.0, max_tokens: int = 24) -> Sampling:
    """How tokens are drawn; greedy unless told otherwise."""
    return Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens)

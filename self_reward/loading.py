"""What stages load: a text that is built in or in the data repository, a model's folder, its tokenizer, its sampler."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from self_reward.errors import UserError
from self_reward.stage import Run


def text(run: Run, name: str, value: str, builtin: Callable[[str], str]) -> str:
    """The text that parameter `name` names: a file of the data repository, else a built-in one."""
    return run.input(name).read_text(encoding="utf-8") if run.has(name) else builtin(value)


def model_folder(run: Run, parameters: Any, role: str) -> Path:
    """A plain Hugging Face folder of the checkpoint in `role` (policy, start, M0/dpo ...), its adapters merged.

    Raises UserError when the base model is not the one that the checkpoint was trained on.
    """
    from self_reward import base_model, checkpoints

    cache = Path(parameters.cache_dir).expanduser()
    names = run.inputs.chains[role]
    adapters = [run.input(f"checkpoint:{name}") for name in names if name != "base"]
    if names[0] == "base":
        base = base_model.fetch(
            run.base_id,
            parameters.base_model,
            folder=run.input("base") if run.has("base") else None,
            cache_dir=cache,
            trust_remote_code=parameters.trust_remote_code,
        )
    else:
        base, adapters = adapters[0], adapters[1:]
    return checkpoints.materialise(
        base, adapters, cache_dir=cache, keep=parameters.cache_keep, trust_remote_code=parameters.trust_remote_code
    )


def tokenizer(folder: Path, chat_template: str = "auto", trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model's folder, with a chat template and a padding token."""
    from transformers import AutoTokenizer

    from self_reward import chat

    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer can be loaded from the model's folder {folder}: {error}") from error
    loaded.chat_template = chat.choose_template(loaded, chat_template)
    if loaded.pad_token is None:
        loaded.pad_token = loaded.eos_token  # only ever masked
    return loaded


def sampler(parameters: Any, folder: Path) -> Any:
    """The sampler of a stage with these parameters, over the model in `folder`."""
    from self_reward import sampler as samplers

    return samplers.load(
        parameters.sampler,
        folder,
        dtype=parameters.dtype,
        seed=parameters.seed,
        batch_size=parameters.sampler_batch_size,
        max_model_len=parameters.max_model_len,
        tensor_parallel_size=parameters.generate_gpus,
        gpu_memory_utilization=parameters.gpu_memory_utilization,
        trust_remote_code=parameters.trust_remote_code,
    )


def held_out_prompts(run: Run) -> set[str]:
    """The prompts of M0/eval, which no training data may hold."""
    from self_reward import examples

    prompts: set[str] = set()
    if run.has("eval_prompts"):
        prompts.update(examples.read_prompts(run.input("eval_prompts")))
    if run.has("eval_eft"):
        prompts.update(prompt for prompt, _ in examples.read_ranked(run.input("eval_eft")))
    return prompts


def parent(run: Run, role: str) -> str | None:
    """The checkpoint that training in this stage starts from, as self_reward.json records it; None: the base model."""
    name = run.inputs.chains[role][-1]
    return None if name == "base" else name

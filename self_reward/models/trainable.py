"""The model that is trained: loaded with its dropout, given an adapter, and saved."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoConfig, PreTrainedModel

from self_reward import files
from self_reward.errors import UserError
from self_reward.models import base_model
from self_reward.models.checkpoints import FILE_SIZE, copy_tokenizer
from self_reward.models.model import Model
from self_reward.parameters.settings import Lora

DROPOUTS = "attention_dropout resid_dropout hidden_dropout dropout attn_pdrop resid_pdrop embd_pdrop".split()


def load(model: Model, finetune: str, dropout: float, bf16: bool) -> PreTrainedModel:
    """The weights of `model`, with `dropout` if all are trained (`finetune` full). With lora the adapter has it, and
    the model below is exactly the reference. Raises UserError if the model has no dropout to set."""
    trust_remote_code = model.loading.trust_remote_code
    with base_model.loadable(model.folder):
        config = AutoConfig.from_pretrained(model.folder, trust_remote_code=trust_remote_code)
    names = [name for name in DROPOUTS if isinstance(getattr(config, name, None), int | float)]
    if dropout and finetune == "full" and not names:
        raise UserError(f"a {config.model_type} model has no dropout to set; use dropout 0, or finetune lora")
    for name in names:
        setattr(config, name, dropout if finetune == "full" else 0.0)
    # Full weights are updated in float32: at learning rates of 1e-6 a bfloat16 weight would not move at all.
    dtype = torch.bfloat16 if bf16 and finetune == "lora" else torch.float32
    loaded: PreTrainedModel = base_model.load(
        model.folder, config=config, dtype=dtype, trust_remote_code=trust_remote_code
    )
    return loaded


def adapter(weights: PreTrainedModel, lora: Lora, dropout: float) -> LoraConfig:
    """The adapter for `weights`. Raises UserError for names of modules that they do not have."""
    target_modules: str | list[str] = lora.target_modules
    if target_modules != "all-linear":  # peft would treat a string as a pattern
        target_modules = [name.strip() for name in lora.target_modules.split(",")]
        modules = dict(weights.named_modules())
        if unknown := [t for t in target_modules if not any(m == t or m.endswith(f".{t}") for m in modules)]:
            linear = [name.rpartition(".")[2] for name, part in modules.items() if isinstance(part, torch.nn.Linear)]
            raise UserError(
                f"lora_target_modules: the model has no module {', '.join(map(repr, unknown))}; it has "
                f"{', '.join(dict.fromkeys(linear))}"
            )
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=target_modules,
        lora_dropout=dropout,
        bias="none",
        task_type="CAUSAL_LM",
    )


def save(trained: Any, model: Model, out: Path, finetune: str, tensors: dict[str, torch.Tensor] | None) -> None:
    """Save `trained` (a PreTrainedModel or a PeftModel) to `out`, in the dtype of `model`, with its tokenizer and chat
    template. `tensors`: all weights, if `trained` holds only this process's share."""
    with files.whole_folder(out) as part:
        if finetune == "lora":
            trained.save_pretrained(part, state_dict=tensors)
            (part / "README.md").unlink(missing_ok=True)
            # The same training gives the same bytes: PEFT writes the model's local folder, and sets in any order.
            config = json.loads((part / "adapter_config.json").read_bytes())
            config["base_model_name_or_path"] = None
            if isinstance(config.get("target_modules"), list):
                config["target_modules"].sort()
            (part / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        else:
            dtype = getattr(torch, base_model.weights_dtype(model.folder))
            if tensors is None:
                trained.to(dtype)
            else:
                tied = getattr(trained, "all_tied_weights_keys", None) or {}
                tensors = {name: tensor.to(dtype) for name, tensor in tensors.items() if name not in tied}
            trained.save_pretrained(part, state_dict=tensors, max_shard_size=FILE_SIZE)
            before = json.loads((model.folder / "config.json").read_bytes())
            config = json.loads((part / "config.json").read_bytes())
            config["dtype"] = str(dtype).removeprefix("torch.")
            for name in DROPOUTS:  # the dropout of this training is not a property of the model
                if name in before:
                    config[name] = before[name]
                else:
                    config.pop(name, None)
            (part / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        copy_tokenizer([model.folder], part, chat_template=model.tokenizer.chat_template)

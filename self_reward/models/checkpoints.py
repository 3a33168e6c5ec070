"""Chains of a base model and adapters, merged once into a cache: everything else loads a plain Hugging Face folder."""

import contextlib
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import BinaryIO

from self_reward import files
from self_reward.errors import UserError
from self_reward.models import base_model

log = logging.getLogger(__name__)

FILE_SIZE = "2GB"  # largest file of weights: an interrupted push sends whole files again
COMPLETE = ".complete"  # written last; its time is the time of the last use
TOKENIZER_FILES = [
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json"),
]
# Open lock files of the merged folders that this process uses, which other processes cannot remove until it ends.
_in_use: dict[Path, BinaryIO] = {}


def materialise(
    base: Path, adapters: list[Path], *, cache_dir: Path, keep: int, trust_remote_code: bool = False
) -> Path:
    """Merge `adapters`, in order, into `base` and return the folder of the result.

    Merged in fp32 and cast once, at the end, to the base's dtype: casting after each adapter would round once per
    iteration. A full checkpoint in the chain replaces everything before it; if no adapter follows, that folder itself
    is returned. The tokenizer and its chat template are those of the newest member of the chain.

    The result is in cache_dir/merged/<hash of all contents>, made once however many processes ask. The `keep` newest
    stay, and those that a running process uses.
    Raises UserError with all problems of the chain, TryAgain when the disk is full.
    """
    chain: list[Path] = []
    for folder in adapters:
        if (folder / "adapter_config.json").is_file():
            chain.append(folder)
        else:
            base, chain = folder, []
    problems = base_model.folder_problems(base, trust_remote_code=trust_remote_code)
    if problems := problems + [problem for folder in chain for problem in _adapter_problems(folder)]:
        raise UserError(problems)
    if not chain:
        return base

    hashes = [base_model.folder_hash(folder, cache_dir=cache_dir) for folder in [base, *chain]]
    merged = cache_dir / "merged" / hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:32]
    lock_file = merged.with_suffix(".lock")
    if merged in _in_use:
        _in_use.pop(merged).close()
    while True:
        in_use = files.lock(lock_file, shared=True)
        if (merged / COMPLETE).is_file():
            break
        in_use.close()
        with files.lock(lock_file):  # another process may be faster, or remove the folder again: hence the loop
            if not (merged / COMPLETE).is_file():
                with files.whole_folder(merged) as part:
                    _merge(base, chain, part, trust_remote_code=trust_remote_code)
                    (part / COMPLETE).touch()
    (merged / COMPLETE).touch()
    _in_use[merged] = in_use
    _remove_oldest(merged.parent, keep)
    return merged


def _merge(base: Path, chain: list[Path], out: Path, *, trust_remote_code: bool) -> None:
    import torch
    from peft import PeftModel

    quiet()
    model = base_model.load(base, dtype=torch.float32, trust_remote_code=trust_remote_code)
    for folder in chain:
        try:
            model = PeftModel.from_pretrained(model, folder).merge_and_unload()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{folder}: the adapter does not fit {base} and the adapters before it: {error}") from error
    model.to(getattr(torch, base_model.weights_dtype(base))).save_pretrained(out, max_shard_size=FILE_SIZE)
    copy_tokenizer([base, *chain], out)


def _adapter_problems(folder: Path) -> list[str]:
    problems = []
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
    except ValueError as error:
        return [f"{folder}: adapter_config.json is not JSON ({error})"]
    if not (folder / "adapter_model.safetensors").is_file():
        problems.append(f"{folder}: no adapter_model.safetensors (pickled adapters are not accepted)")
    if config.get("peft_type") != "LORA":
        problems.append(f"{folder}: an adapter of type {config.get('peft_type')}; only LORA can be merged")
    if config.get("modules_to_save") or config.get("trainable_token_indices"):
        problems.append(
            f"{folder}: the adapter has whole modules or its own tokens (modules_to_save, trainable_token_indices), "
            "which is not supported; merge it yourself and set base_model to the result"
        )
    return problems


def _remove_oldest(merged_dir: Path, keep: int) -> None:
    """Remove all but the `keep` newest, and unfinished folders of killed processes."""
    complete = [marker for marker in merged_dir.glob(f"*/{COMPLETE}") if marker.parent.suffix != ".part"]
    complete.sort(key=lambda marker: marker.stat().st_mtime_ns, reverse=True)
    kept = {marker.parent for marker in complete[: max(keep, 1)]}
    for folder in [path for path in merged_dir.iterdir() if path.is_dir() and path not in kept]:
        lock_file = merged_dir / f"{folder.stem.lstrip('.')}.lock"
        with contextlib.suppress(files.Locked), files.lock(lock_file, seconds=0):
            (folder / COMPLETE).unlink(missing_ok=True)  # first: a kill in between leaves nothing that looks whole
            shutil.rmtree(folder, ignore_errors=True)


def copy_tokenizer(chain: list[Path], out: Path, *, chat_template: str | None = None) -> None:
    """Copy the tokenizer of the newest folder of `chain` that has one to `out`, byte for byte. A given `chat_template`
    replaces its own."""
    for folder in reversed(chain):
        names = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
        if any(name.startswith(("tokenizer.", "vocab.", "spiece.")) for name in names):
            for name in names:
                shutil.copyfile(folder / name, out / name)
            break
    else:
        raise UserError(f"no tokenizer in {', '.join(str(folder) for folder in chain)}")
    if chat_template is not None:
        (out / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
        config_file = out / "tokenizer_config.json"
        if config_file.is_file():  # transformers before 4.52 kept the template here
            config = json.loads(config_file.read_bytes())
            if config.pop("chat_template", None) is not None:
                config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_checkpoint_metadata(folder: Path, *, finetune: str, parent: str | None, base_model: str | None) -> None:
    """Write self_reward.json: what the checkpoint was trained from. `parent`: M0/sft for example, None for the base."""
    content = {"finetune": finetune, "parent": parent, "base_model": base_model}
    (folder / "self_reward.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def export(
    base: Path, adapters: list[Path], to: Path, *, cache_dir: Path, keep: int, trust_remote_code: bool = False
) -> Path:
    """Copy the merged chain to the new folder `to`, which any engine can serve. Raises UserError if it is not empty."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} exists and is not empty; give a new folder")
    source = materialise(base, adapters, cache_dir=cache_dir, keep=keep, trust_remote_code=trust_remote_code)
    to.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_folder(to) as part:
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name not in (COMPLETE, "self_reward.json"):
                shutil.copyfile(path, part / path.name)
        copy_tokenizer([base, *adapters], part)
    return to


def quiet() -> None:
    """Switch off the libraries' progress bars: a stage reports its own progress."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()

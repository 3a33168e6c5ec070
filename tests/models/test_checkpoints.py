import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from self_reward import files
from self_reward.errors import TryAgain, UserError
from self_reward.models import base_model, checkpoints
from tests.support import tiny

IDS = [[2, 4, 9, 12, 30, 31, 5, 14, 15]]


def make_adapter(path: Path, model_dir: Path, seed: int, **changes) -> Path:
    """An adapter that changes the model visibly: random A and B."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False, **changes
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), config).save_pretrained(path)
    return path


def logits(folder: Path, adapter: Path | None = None):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> tuple[Path, list[Path]]:
    root = tmp_path_factory.mktemp("chain")
    base = tiny.make_tiny_model(root / "base")
    return base, [make_adapter(root / f"adapter{i}", base, i) for i in range(3)]


def merge(base: Path, adapters: list[Path], cache: Path, keep: int = 9) -> Path:
    return checkpoints.materialise(base, adapters, cache_dir=cache, keep=keep)


def test_without_adapters_the_base_itself_is_used(chain, tmp_path):
    base, _ = chain
    assert merge(base, [], tmp_path) == base


def test_b1_merged_equals_base_with_adapter(chain, tmp_path):
    base, adapters = chain
    merged = logits(merge(base, adapters[:1], tmp_path))
    assert (merged - logits(base, adapters[0])).abs().max() < 1e-4
    assert (merged - logits(base)).abs().max() > 1e-2


def test_three_adapters_are_merged_in_order(chain, tmp_path):
    base, adapters = chain
    step = merge(merge(base, adapters[:1], tmp_path / "a"), adapters[1:2], tmp_path / "b")
    step = merge(step, adapters[2:], tmp_path / "c")
    whole = merge(base, adapters, tmp_path / "d")
    assert (logits(whole) - logits(step)).abs().max() < 1e-4
    assert (logits(whole) - logits(merge(base, adapters[:2], tmp_path / "d"))).abs().max() > 1e-2


def test_merged_keeps_the_dtype_of_the_base(chain, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    base, adapters = chain
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    checkpoints.copy_tokenizer([base], half)
    merged = merge(half, adapters[:2], tmp_path / "cache")
    assert base_model.weights_dtype(merged) == "bfloat16"
    # one rounding of the fp32 sum, not one an adapter
    assert (logits(merged) - logits(merge(half, adapters[:2], tmp_path / "other"))).abs().max() == 0


def test_full_checkpoint_replaces_the_chain_before_it(chain, tmp_path):
    base, adapters = chain
    full = merge(base, adapters[:1], tmp_path / "a")
    assert merge(base, [adapters[2], full], tmp_path / "b") == full
    again = merge(base, [adapters[2], full, adapters[1]], tmp_path / "c")
    assert (logits(again) - logits(merge(base, adapters[:2], tmp_path / "d"))).abs().max() < 1e-4


def test_merged_once_per_content(chain, tmp_path):
    base, adapters = chain
    merged = merge(base, adapters[:1], tmp_path)
    weights = (merged / "model.safetensors").stat().st_mtime_ns
    assert merge(base, adapters[:1], tmp_path) == merged
    assert (merged / "model.safetensors").stat().st_mtime_ns == weights
    assert merge(base, adapters[1:2], tmp_path) != merged


def test_newest_tokenizer_and_chat_template_are_used(chain, tmp_path):
    base, adapters = chain
    newest = tmp_path / "newest"
    newest.mkdir()
    for path in adapters[0].iterdir():
        (newest / path.name).write_bytes(path.read_bytes())
    checkpoints.copy_tokenizer([base], newest, chat_template="{{ 'mine' }}")
    merged = merge(base, [newest, adapters[1]], tmp_path / "cache")
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(merged).chat_template == "{{ 'mine' }}"
    assert AutoTokenizer.from_pretrained(base).chat_template == tiny.TEMPLATE


def test_newest_are_kept_and_folders_in_use_never_removed(chain, tmp_path):
    base, adapters = chain
    code = (
        "import sys; from pathlib import Path; from self_reward.models import checkpoints\n"
        "print(checkpoints.materialise(Path(sys.argv[1]), [Path(sys.argv[2])], cache_dir=Path(sys.argv[3]), keep=1))"
    )
    command = [sys.executable, "-c", code, str(base)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    mine = merge(base, adapters[:1], tmp_path, keep=1)  # this process uses it
    other = subprocess.run(
        [*command, str(adapters[1]), str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    assert (mine / "model.safetensors").is_file()
    assert Path(other.stdout.strip()).is_dir()
    third = merge(base, adapters[2:], tmp_path, keep=1)  # the other process is gone: its folder may go
    assert third.is_dir() and mine.is_dir()
    assert not Path(other.stdout.strip()).exists()


def test_deleted_merge_is_made_again(chain, tmp_path):
    import shutil

    base, adapters = chain
    merged = merge(base, adapters[:1], tmp_path)
    shutil.rmtree(merged)
    assert merge(base, adapters[:1], tmp_path) == merged
    assert (merged / "model.safetensors").is_file()


def test_incomplete_merge_is_not_used(chain, tmp_path):
    base, adapters = chain
    merged = merge(base, adapters[:1], tmp_path)
    (merged / checkpoints.COMPLETE).unlink()
    (merged / "model.safetensors").write_bytes(b"half")
    assert merge(base, adapters[:1], tmp_path) == merged
    assert (merged / "model.safetensors").stat().st_size > 1000


def test_all_problems_of_adapters_are_reported(chain, tmp_path):
    base, adapters = chain
    odd = make_adapter(tmp_path / "odd", base, 1, modules_to_save=["embed_tokens"])
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(UserError) as caught:
        merge(base, [odd, adapters[0], empty], tmp_path / "cache")
    assert len(caught.value.problems) == 3
    assert "modules_to_save" in str(caught.value) and "IA3" in str(caught.value)


def test_adapter_of_another_model_is_refused(chain, tmp_path):
    _, adapters = chain
    other = tiny.make_tiny_model(tmp_path / "other", hidden=64)
    with pytest.raises(UserError, match="does not fit"):
        merge(other, adapters[:1], tmp_path / "cache")
    assert not list((tmp_path / "cache/merged").glob("*.part"))


def test_export_is_self_contained_and_refuses_a_full_folder(chain, tmp_path):
    base, adapters = chain
    (tmp_path / "out/model.part").mkdir(parents=True)  # the user's
    to = checkpoints.export(base, adapters, tmp_path / "out" / "model", cache_dir=tmp_path / "cache", keep=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model", "model.part"]
    assert (logits(to) - logits(merge(base, adapters, tmp_path / "cache"))).abs().max() == 0
    assert not any(path.name.startswith(".") for path in to.iterdir())
    with pytest.raises(UserError, match="not empty"):
        checkpoints.export(base, adapters, to, cache_dir=tmp_path / "cache", keep=1)


def test_metadata(tmp_path):
    checkpoints.save_checkpoint_metadata(tmp_path, finetune="lora", parent="M0/sft", base_model="path:abc")
    assert json.loads((tmp_path / "self_reward.json").read_text()) == {
        "finetune": "lora",
        "parent": "M0/sft",
        "base_model": "path:abc",
    }


def test_full_disk_is_try_again_and_leaves_nothing(tmp_path):
    with pytest.raises(TryAgain, match="disk"), files.whole_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_unfinished_merges_of_killed_processes_are_removed(chain, tmp_path):
    base, adapters = chain
    for left in ("merged/.0123.part", "merged/4567", "merged/.89ab.part"):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / "model.safetensors").touch()
    (tmp_path / "merged/.0123.part" / checkpoints.COMPLETE).touch()  # killed just before its last rename
    with open(tmp_path / "merged/89ab.lock", "w") as used:
        fcntl.flock(used, fcntl.LOCK_EX)  # a living process merges there
        merged = merge(base, adapters[:1], tmp_path, keep=1)
    assert {path for path in (tmp_path / "merged").iterdir() if path.is_dir()} == {
        merged,
        tmp_path / "merged/.89ab.part",
    }

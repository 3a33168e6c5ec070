"""What must not change by accident: stage keys, the parameters seen from outside, and the manifests of a small loop.

A stage key that changes makes every finished run be computed again. golden/ holds the values of version 0.1; a
parameter that is added on purpose is added there by hand.
"""

import hashlib
import json
from pathlib import Path

import pytest

from self_reward.parameters import generated
from self_reward.parameters.sources import parse
from self_reward.parameters.stages import STAGES as KINDS
from self_reward.repository import artifacts
from self_reward.run import manifest
from self_reward.store import Snapshot

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
PRESETS = {"defaults": None, "demo": "presets/demo.yaml", "paper": "presets/paper.yaml"}
STAGES = [name for name in KINDS if name != "plan"]
BASE_ID = "hub:org/model@0123456789abcdef"
FULL = json.dumps({"finetune": "full", "parent": None, "base_model": BASE_ID}).encode()
ADAPTER = json.dumps({"finetune": "lora", "parent": "M0/sft", "base_model": BASE_ID}).encode()


def repository() -> Snapshot:
    """A data repository in which every stage of iterations 0 and 1 finds its inputs."""
    files = ["M0/eval/prompts.jsonl", "M0/eval/eft.jsonl", "M0/train/ift.jsonl", "M0/train/ift+eft.jsonl"]
    files += ["rubrics/list_tasks.txt", "prompt_templates/list_tasks.txt"]
    for k in (0, 1):
        files += [f"M{k}/generated/{name}.jsonl" for name in ("prompts", "responses", "scores", "preferences")]
        for kind in ("sft", "dpo"):
            folder = f"M{k}/models/{kind}/final_checkpoint"
            files += [f"{folder}/{name}" for name in ("self_reward.json", "adapter_model.safetensors")]
    small = {path: FULL if "M0/models/sft" in path else ADAPTER for path in files if path.endswith("self_reward.json")}
    return Snapshot(
        commit="c" * 32,
        files=dict.fromkeys(files, 1),
        blobs={},
        log=[],
        contents=small,
        sha256={path: hashlib.sha256(path.encode()).hexdigest() for path in files},
    )


def key_of(name: str, preset: str, iteration: int) -> str:
    flags = ["--parameter_file", str(ROOT / PRESETS[preset])] if PRESETS[preset] else []
    flags += ["--iteration", str(iteration)] + ([] if name == "04_gen_preferences" else ["--base_model", "org/model"])
    p = parse(KINDS[name], "", flags, environment={})
    snapshot = repository()
    inputs = artifacts.inputs(name, p, snapshot.files, snapshot.contents)
    return manifest.key_of(name, p, inputs, BASE_ID, snapshot)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", STAGES)
def test_stage_keys_are_those_of_version_0_1(name, preset):
    keys = json.loads((GOLDEN / "keys.json").read_text())
    for k in (0, 1):
        assert key_of(name, preset, k) == keys[f"{name} {preset} M{k}"]


def outside() -> dict[str, dict[str, object]]:
    """Every parameter as docs/parameters.md, Argo and the Helm schema show it, without its description."""
    rows = [line[2:-2].replace("\\|", "/").split(" | ") for line in generated.markdown().splitlines() if "`" in line]
    shown = {row[0].split("`")[1]: row[:-1] for row in rows if len(row) >= 6}
    argo = {entry["name"]: entry for entry in generated.for_argo()}
    helm = generated.schema()["properties"]
    assert set(argo) == set(helm)
    return {
        name: {
            "docs": shown[name],
            "argo": {k: v for k, v in argo.get(name, {}).items() if k != "description"},
            "helm": {k: v for k, v in helm.get(name, {}).items() if k != "description"},
        }
        for name in sorted(shown)
    }


def test_parameters_look_the_same_from_outside():
    golden = json.loads((GOLDEN / "parameters.json").read_text())
    found = json.loads(json.dumps(outside()))
    assert set(found) == set(golden)
    assert found == golden


def shape(manifest: dict) -> dict:
    """What of a manifest does not depend on the machine: its names, parameters and seed, not what a model computed."""
    return {
        "fields": list(manifest),
        **{name: manifest[name] for name in ("stage", "iteration", "parameters", "seed", "stop")},
        **{name: sorted(manifest[name]) for name in ("inputs", "inputs_xxh3", "outputs", "details")},
        "counts": sorted(name for name in manifest["counts"] if not name.startswith("rejected_")),
        "output_fields": sorted({name for output in manifest["outputs"].values() for name in output}),
    }

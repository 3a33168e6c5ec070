"""The stage programs as programs: start-up, imports, exit codes."""

import ast
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = sorted((ROOT / "stages").glob("*.py"))
LIBRARY = sorted((ROOT / "self_reward").rglob("*.py"))
HEAVY = {"torch", "transformers", "trl", "peft", "vllm", "datasets", "accelerate", "oxen", "polars", "pandas", "scipy"}
TORCH_FREE = [
    "parameters",
    "artifacts",
    "stage",
    "prompts",
    "judge",
    "preferences",
    "metrics",
    "stop",
    "chat",
    "jsonl",
    "examples",
    "sft_data",
]


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("stage", STAGES, ids=lambda path: path.stem)
def test_help_is_instant_and_imports_nothing_heavy(stage):
    shown = run("-X", "importtime", stage, "--help")
    assert shown.returncode == 0
    assert "--data_repo" in shown.stdout and "--seed" in shown.stdout and "--commit_file" in shown.stdout
    imported = {line.split("|")[-1].strip().split(".")[0] for line in shown.stderr.splitlines() if "|" in line}
    assert "self_reward" in imported
    assert not imported & HEAVY
    seconds = []
    for _ in range(3):  # processor time, since what else runs on the machine is not the stage's doing
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(stage, "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("module", TORCH_FREE)
def test_light_modules_import_nothing_heavy(module):
    code = f"import sys, self_reward.{module}; print(*{{m.split('.')[0] for m in sys.modules}})"
    assert not set(run("-c", code).stdout.split()) & HEAVY


def imports_of(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_nothing_imports_a_stage():
    for path in [*LIBRARY, *STAGES]:
        assert not [name for name in imports_of(path) if name.split(".")[0] == "stages"], path


def test_imports_go_one_way():
    """parameters, artifacts -> pure logic -> store, checkpoints, sampler, training -> stages."""
    pure = {"prompts", "judge", "preferences", "chat", "metrics", "stop", "jsonl", "errors", "parameters", "artifacts"}
    upper = {"stage", "store", "checkpoints", "sampler", "training", "generation", "loading", "base_model"}
    for path in LIBRARY:
        if path.stem in pure and path.parent.name == "self_reward":
            used = {name.split(".")[1] for name in imports_of(path) if name.startswith("self_reward.")}
            assert not used & upper, path
    stage_uses = {n.split(".")[1] for n in imports_of(ROOT / "self_reward/stage.py") if n.startswith("self_reward.")}
    assert not stage_uses & {"training", "checkpoints", "sampler", "generation", "loading"}
    for path in [*STAGES, ROOT / "self_reward/stage.py"]:
        assert not {name.split(".")[0] for name in imports_of(path, top_level_only=True)} & HEAVY, path


def test_no_config_object_gets_deep_into_the_library():
    """Only what stands between a stage and the library may know the parameters."""
    allowed = {"parameters", "stage", "cli", "artifacts", "loading"}
    for path in LIBRARY:
        if path.stem not in allowed:
            assert "self_reward.parameters" not in set(imports_of(path)), path


@pytest.mark.parametrize("stage", [s for s in STAGES if s.stem[0].isdigit()], ids=lambda path: path.stem)
def test_b21_bad_usage_ends_with_exit_code_2_and_every_problem(stage, tmp_path):
    ended = run(stage, "--data_repo", tmp_path / "none", "--sede", "1", "--iteration", "x")
    assert ended.returncode == 2
    assert "did you mean seed?" in ended.stderr and "iteration = 'x'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("words", [[], ["stages"], ["stages", "model"], ["stages", "model", "0"]])
def test_b21_self_reward_sh_refuses_bad_usage(words):
    ended = subprocess.run([ROOT / "self-reward.sh", *words], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "expected: ./self-reward.sh STAGES MODEL M<k>" in ended.stderr


def test_b17_everything_that_runs_is_pinned():
    for name in ("cpu", "gpu", "dev"):
        lines = (ROOT / f"requirements/{name}.txt").read_text().splitlines()
        assert lines and all(line.count("==") == 1 and " " not in line for line in lines), name
        assert not [line for line in lines if line.startswith(("torchvision", "torchaudio", "torchcodec"))]

"""The stage programs as programs: start-up, imports, exit codes."""

import ast
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = sorted((ROOT / "stages").glob("*.py"))
LIBRARY = sorted((ROOT / "self_reward").rglob("*.py"))
HEAVY = {"torch", "transformers", "trl", "peft", "vllm", "datasets", "accelerate", "oxen", "polars", "pandas", "scipy"}
# The rooms of self_reward/, lowest first: each imports from those before it alone.
ROOMS = "types errors disk files texts rows parameters method repository store models run cluster plan cli".split()
# Modules that import torch or a library that does, when they are imported.
WITH_TORCH = {
    *("models.training", "models.trainers", "models.trainable"),
    *("models.engines.transformers", "models.engines.vllm"),
}


def module_name(path: Path) -> str:
    """`self_reward/method/judge.py` -> `method.judge`."""
    parts = path.relative_to(ROOT / "self_reward").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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


def test_only_engines_and_training_import_torch_at_the_top():
    modules = [module_name(path) for path in LIBRARY]
    light = sorted(f"self_reward.{name}" for name in modules if name and name not in WITH_TORCH)
    code = f"import sys, {', '.join(light)}; print(*{{m.split('.')[0] for m in sys.modules}})"
    shown = run("-c", code)
    assert shown.returncode == 0, shown.stderr
    assert set(shown.stdout.split()) & HEAVY == set()


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


def test_imports_go_downwards():
    for path in LIBRARY:
        room = module_name(path).split(".")[0]
        used = {name.split(".")[1] for name in imports_of(path) if name.startswith("self_reward.")} - {"__version__"}
        if room:
            allowed = set(ROOMS[: ROOMS.index(room) + 1])
            assert used <= allowed, f"{path.relative_to(ROOT)} imports from {', '.join(sorted(used - allowed))}"
    for path in STAGES:
        assert not {name.split(".")[0] for name in imports_of(path, top_level_only=True)} & HEAVY, path


def test_library_sees_settings_but_not_stage_parameters():
    """A function is given the settings that it needs; only what surrounds a stage knows the parameters of a stage. So
    does artifacts.py, since which files a stage reads depends on its parameters: sft, prompt_model, eft_replay ..."""
    for path in LIBRARY:
        if module_name(path).split(".")[0] in ("method", "repository", "store", "models"):
            used = {name for name in imports_of(path) if name.startswith("self_reward.parameters")}
            settings = {name for name in used if name.startswith("self_reward.parameters.settings")}
            if module_name(path) == "repository.artifacts":
                settings |= {name for name in used if name.startswith("self_reward.parameters.stages")}
            assert used <= settings, f"{path.relative_to(ROOT)} imports {', '.join(sorted(used - settings))}"


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

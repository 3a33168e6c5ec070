"""What docs/runbook.md names must exist: targets, files, parameters, values of the chart, exit codes, templates."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from self_reward.parameters import generated
from self_reward.run import process

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
VALUES = yaml.safe_load((ROOT / "helm/self-reward/values.yaml").read_text(encoding="utf-8"))
OPEN = {"stages", "parameters"}  # values whose keys below are not all in values.yaml
STAGE_KEYS = ("resources", "nodeSelector", "affinity", "tolerations", "priorityClassName", "activeDeadlineSeconds")


def named(pattern: str) -> list[str]:
    found = sorted(set(re.findall(pattern, RUNBOOK)))
    assert found, f"nothing in the runbook looks like {pattern}"
    return found


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {word for line in named(r"make ((?:[a-z-]+ )*[a-z]+-[a-z]+)\b") for word in line.split()}
    assert {"build-images", "load-images", "push-images", "demo-data"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_variable_given_to_make_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in named(r"make [a-z-]+(?: [a-z-]+)*((?: [A-Z_]+=\S+)+)"):
        for name in re.findall(r"([A-Z_]+)=", line):
            assert f"$({name})" in makefile, name


@pytest.mark.parametrize("path", named(r"\b((?:argo|helm|docs|self_reward)/[\w./-]*[\w-])"))
def test_every_path_exists(path: str):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", named(r"\]\((screenshots/[^)]+)\)"))
def test_every_screenshot_is_there_and_small(path: str):
    assert 10_000 < (ROOT / "docs" / path).stat().st_size < 200_000


def test_every_link_inside_has_its_heading():
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in RUNBOOK.splitlines()
        if line.startswith("#")
    }
    assert set(named(r"\]\(#([^)]+)\)")) <= headings


@pytest.mark.parametrize("name", named(r"-p (\w+)="))
def test_every_parameter_exists(name: str):
    assert name in {parameter["name"] for parameter in generated.for_argo()}


@pytest.mark.parametrize(
    "name", named(r"(?:--set[ ]|,)((?:[a-zA-Z]+\.)*[a-zA-Z]+)=") + named(r"`((?:[a-zA-Z]+\.)+(?!jsonl)[a-zA-Z]+)`")
)
def test_every_value_of_the_chart_exists(name: str):
    found = VALUES
    first, *rest = name.split(".")
    assert first in found
    if first in OPEN:
        assert first != "stages" or (rest[0] in VALUES["stages"] and rest[1] in STAGE_KEYS)
        return
    for part in (first, *rest):
        found = found[part]


def test_the_exit_codes_are_those_of_the_stages():
    rows = re.findall(r"^\| ([\d, ]+) \| (.*?) \| (.*?) \|", RUNBOOK, re.MULTILINE)
    told = {int(code): again for codes, _, again in rows for code in codes.split(",")}
    assert set(told) == {0, 1, 2, 75, 137, 143, 64, 65}
    for code in (0, 1, 2, 75, 143):
        assert re.search(rf"\b{code}\b", process.__doc__ or "")
    leaves = yaml.safe_load((ROOT / "argo/templates/stages.yaml").read_text(encoding="utf-8"))["spec"]["templates"]
    for leaf in leaves:
        retried = re.search(r"exitCode\) in \[([\d, ]+)\]", leaf["retryStrategy"]["expression"])
        assert retried
        assert {code for code, again in told.items() if again.startswith("yes")} == set(map(int, retried[1].split(",")))
        assert f"{leaf['retryStrategy']['limit']} times" in told[75]


def test_the_tree_has_the_steps_of_the_templates():
    flow = yaml.safe_load((ROOT / "argo/templates/self-reward.yaml").read_text(encoding="utf-8"))["spec"]["templates"]
    steps = {step["name"] for template in flow for group in template["steps"] for step in group}
    tree = next(block for block in RUNBOOK.split("```") if "plan(0)" in block and "├" in block)
    assert steps == set(re.findall(r"─[●✔○◷] ([a-z-]+)", tree))


@cache
def said() -> list[str]:
    """The texts in the programs' and the library's source, with `...` for what is put into them; no docstrings."""
    texts = []
    for file in sorted([*(ROOT / "self_reward").rglob("*.py"), *(ROOT / "stages").glob("*.py")]):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        inside |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(p.value if isinstance(p, ast.Constant) else "..." for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                texts.append(node.value)
    return texts


def quoted() -> list[str]:
    """What stands in the first column of the table of plan's words, cut where plan puts something in."""
    table = RUNBOOK.split("### What plan says")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    parts = [part.strip() for cell in cells for words in re.findall("`([^`]+)`", cell) for part in words.split("...")]
    found = sorted({part for part in parts if re.search(r"\w", part)})
    assert len(found) > 20, "the table is not where it was"
    return found


@pytest.mark.parametrize("words", [*quoted(), "the disk of the server is full", "the disk is full", "has moved on"])
def test_what_plan_and_stages_say_is_what_they_say(words: str):
    assert words in RUNBOOK and any(words in text for text in said())

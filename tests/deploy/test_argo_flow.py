"""The order in which pods run, what each is given and what the workflow says at the end: that of self-reward.sh."""

import copy
import json

import pytest

from tests.support import argo, argo_simulated
from tests.support.argo import flows, leaves, step

WHOLE = ["00_sft", "01_gen_prompts", "02_gen_responses", "03_gen_scores", "04_gen_preferences", "05_dpo", "06_evaluate"]
SHARDED = ("02_gen_responses", "03_gen_scores")
PROGRAM = {"gen-preferences": "04_gen_preferences", "export": "07_export"}


def walk(documents, *, start=0, iterations=1, sft=(0,), shards=1, stop=None, export=True):
    """The pods in order as (program, iteration, shard), the workflow's outputs, and what these should be. `stop`:
    (program, iteration) whose stop rule fires. Every pod must be pinned to the commit of the last one that made one."""
    ran, wanted, head = [], {}, "c0"

    def leaf(template, inputs):
        nonlocal head
        if template == "plan":
            ran.append(("plan", "", ""))
            return {"commit": head, "sft": json.dumps(list(sft))}
        program = inputs.get("stage") or PROGRAM.get(template, template)
        shard = inputs.get("shard", "")
        assert inputs["revision"] == head, (program, inputs)
        ran.append((f"merge {program}" if template == "merge" else program, inputs.get("iteration", ""), shard))
        if shard or template == "fetch-model":  # a shard has a branch of its own
            return {"commit": f"of shard {shard}", "result": f"of shard {shard}", "stop": ""}
        head = wanted["commit"] = f"c{len(ran)}"
        result = wanted[f"M{inputs['iteration']}-{program}"] = f"r{len(ran)}"
        wanted["stop"] = "too few pairs" if stop == (program, int(inputs["iteration"])) else ""
        return {"commit": head, "result": result, "stop": wanted["stop"]}

    given = {
        "start_iteration": str(start), "iterations": str(iterations), "shards": str(shards),
        "export_merged": "true" if export else "false",
    }  # fmt: skip
    return ran, argo_simulated.run(documents, given, leaf), wanted


def expected(*, start=0, iterations=1, sft=(0,), shards=1, stop=None, export=True):
    """The same from self-reward.sh, which is read by people."""
    ran = [("plan", "", ""), ("fetch-model", "", "")]
    for k in range(start, start + iterations):
        for program in WHOLE:
            if program == "00_sft" and k not in sft:
                continue
            if program in SHARDED and shards > 1:
                ran += [(program, str(k), f"{i}/{shards}") for i in range(shards)]
                ran.append((f"merge {program}", str(k), ""))
            else:
                ran.append((program, str(k), ""))
            if stop == (program, k):
                return ran
    if export:
        ran.append(("07_export", str(start + iterations - 1), ""))
    return ran


CASES = [
    {},
    {"iterations": 3},
    {"iterations": 2, "sft": ()},
    {"iterations": 12, "sft": (1, 10)},
    {"start": 9, "iterations": 3, "sft": (10,)},
    {"iterations": 2, "shards": 3},
    {"iterations": 2, "export": False},
    {"iterations": 90},
    *({"iterations": 3, "stop": (program, 1)} for program in ("03_gen_scores", "04_gen_preferences", "06_evaluate")),
    {"iterations": 2, "shards": 2, "stop": ("03_gen_scores", 0)},
    {"iterations": 2, "shards": 2, "stop": ("06_evaluate", 1)},
]


FEW = [
    {"start": 9, "iterations": 3, "sft": (10,), "shards": 2},
    {"iterations": 2, "sft": (10,), "export": False, "shards": 3},
    {"iterations": 2, "sft": (1,), "stop": ("03_gen_scores", 0)},
    {"iterations": 2, "stop": ("04_gen_preferences", 0), "shards": 2},
    {"iterations": 2, "stop": ("06_evaluate", 0)},
    {"iterations": 2, "stop": ("03_gen_scores", 1), "shards": 2},
]


def agrees(documents, case):
    ran, outputs, wanted = walk(documents, **case)
    return ran == expected(**case) and outputs == wanted


@pytest.mark.parametrize("case", CASES, ids=map(str, CASES))
@pytest.mark.parametrize("variant", ["argo/", "chart"])
def test_the_flow_does_what_self_reward_sh_does(variant, case):
    ran, outputs, wanted = walk(argo.plain() if variant == "argo/" else argo.chart(), **case)
    assert ran == expected(**case)
    assert outputs == wanted


def given(documents, flow, name, argument):
    return next(p for p in step(documents, flow, name)["arguments"]["parameters"] if p["name"] == argument)


FAULTS = [
    # after a stop rule the loop went on: in a first version of these files
    lambda d: [one["outputs"]["parameters"][2]["valueFrom"].update(default="") for n, one in leaves(d).items()
               if n not in ("plan", "fetch-model")],
    lambda d: step(d, "main", "export").pop("when"),
    lambda d: step(d, "iteration", "learn").pop("when"),
    lambda d: step(d, "learn", "improve").pop("when"),
    lambda d: step(d, "start", "sft").pop("when"),
    lambda d: step(d, "divided", "merge").pop("when"),
    lambda d: step(d, "divided", "shard").pop("when"),
    lambda d: step(d, "divided", "whole").pop("when"),
    lambda d: step(d, "start", "sft").update(when="{{= inputs.parameters.iteration in inputs.parameters.sft }}"),
    lambda d: given(d, "divided", "shard", "shard").update(value="{{item}}/2"),
    lambda d: given(d, "loop", "next", "revision").update(value="{{inputs.parameters.revision}}"),
    lambda d: given(d, "loop", "next", "iteration").update(value="{{inputs.parameters.iteration}}1"),
    lambda d: given(d, "main", "loop", "iteration").update(value="0"),
    lambda d: given(d, "main", "export", "iteration").update(
        value="{{= string(asInt(workflow.parameters.iterations) - 1) }}"),
    lambda d: given(d, "improve", "evaluate", "revision").update(value="{{inputs.parameters.revision}}"),
    lambda d: flows(d)["learn"]["outputs"]["parameters"][1]["valueFrom"].update(
        expression="steps.preferences.outputs.parameters.commit"),
    lambda d: flows(d)["iteration"]["outputs"]["parameters"][0]["valueFrom"].update(
        expression="steps.scores.outputs.parameters.stop"),
    lambda d: flows(d)["divided"]["outputs"]["parameters"][2].pop("globalName"),
    lambda d: leaves(d)["train"]["outputs"]["parameters"][1].update(globalName="{{inputs.parameters.stage}}"),
    lambda d: flows(d)["divided"]["outputs"]["parameters"][1]["valueFrom"].update(
        expression="steps.whole.outputs.parameters.commit"),
    lambda d: flows(d)["divided"]["outputs"]["parameters"][2]["valueFrom"].update(
        expression="steps.merge?.outputs?.parameters?.commit ?? steps.whole.outputs.parameters.commit"),
    lambda d: flows(d)["main"]["outputs"]["parameters"][1]["valueFrom"].update(
        expression="steps.loop.outputs.parameters.commit"),
]  # fmt: skip


def is_right(documents):
    """Whether all that can go wrong comes out right in a few cases."""
    try:
        return all(agrees(documents, case) for case in FEW)
    except (AssertionError, KeyError, argo_simulated.Absent, TypeError, ValueError, SyntaxError, NameError, IndexError,
            RecursionError, AttributeError):  # fmt: skip
        return False


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a_planted_fault_is_found(number):
    planted = copy.deepcopy(argo.plain())
    assert is_right(planted)
    FAULTS[number](planted)
    assert not is_right(planted)

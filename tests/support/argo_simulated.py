"""The flow of argo/ walked through without a cluster, as Argo's controller does, with outputs made up for each pod.

What Argo 4.1.2 does is followed where the flow depends on it: a skipped step's outputs are their defaults, or absent;
an absent value in a simple tag or as the result of an expression is an error.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from tests.support import argo
from tests.support.argo import TAG, Document
from tests.support.argo_references import NAME, TEXT

Leaf = Callable[[str, dict[str, str]], dict[str, str]]  # (template, inputs) -> outputs
FUNCTIONS = {"asInt": int, "string": str, "fromJSON": json.loads}


class Absent(Exception):
    """A value that a skipped step does not have is needed."""


def run(documents: list[Document], given: dict[str, str], leaf: Leaf) -> dict[str, str]:
    """Walk through the whole workflow, submitted with the parameters `given`; returns its outputs: what any template
    gives under a globalName."""
    values = {name: one.get("value", "") for name, one in argo.run_parameters(documents).items()} | given
    of_run = {f"workflow.parameters.{name}": value for name, value in values.items()}
    known = argo.templates(documents)
    outputs: dict[str, str] = {}

    def walk(owner: str, name: str, inputs: dict[str, str]) -> dict[str, str]:
        template = known[owner, name]
        inputs = {p["name"]: p["value"] for p in _parameters(template, "inputs") if "value" in p} | inputs
        scope: dict[str, Any] = of_run | {f"inputs.parameters.{key}": value for key, value in inputs.items()}
        made = _of_steps(template, scope, owner) if "steps" in template else leaf(name, inputs)
        for p in _parameters(template, "outputs"):
            if "globalName" in p:
                outputs[substituted(p["globalName"], scope)] = made[p["name"]]
        return made

    def _of_steps(template: Document, scope: dict[str, Any], owner: str) -> dict[str, str]:
        for group in template["steps"]:
            made: dict[str, Any] = {}
            for step in group:
                reference = step.get("templateRef") or {"name": owner, "template": step["template"]}
                target = reference["name"], reference["template"]
                if "when" in step and substituted(step["when"], scope) != "true":
                    of_step = {p["name"]: p["valueFrom"].get("default") for p in _parameters(known[target], "outputs")}
                elif "withSequence" in step:
                    for item in range(int(substituted(step["withSequence"]["count"], scope))):
                        walk(*target, _arguments(step, scope | {"item": str(item)}))
                    continue
                else:
                    of_step = walk(*target, _arguments(step, scope))
                made |= {f"steps.{step['name']}.outputs.parameters.{key}": value for key, value in of_step.items()}
            scope = scope | made
        return {
            p["name"]: evaluated(p["valueFrom"]["expression"], scope)
            if "expression" in p["valueFrom"]
            else substituted(p["valueFrom"]["parameter"], scope)
            for p in _parameters(template, "outputs")
        }

    walk(argo.RUN, argo.run(documents)["entrypoint"], {})
    return outputs


def _arguments(step: Document, scope: dict[str, Any]) -> dict[str, str]:
    return {p["name"]: substituted(p["value"], scope) for p in _parameters(step, "arguments")}


def substituted(text: str, scope: dict[str, Any]) -> str:
    """`text` with its tags replaced by what they stand for in `scope`."""

    def value(match: re.Match[str]) -> str:
        found = evaluated(match[1][1:], scope) if match[1].startswith("=") else scope[match[1]]
        if found is None:
            raise Absent(text)
        return str(found).lower() if isinstance(found, bool) else str(found)

    return TAG.sub(value, text)


def evaluated(expression: str, scope: dict[str, Any]) -> Any:
    """The value of an expression: of the expr language, what the flow uses of it."""
    if "??" in expression:  # the loosest operator of those that are used together
        values = [_evaluated(part, scope) for part in expression.split("??")]
        found = next((value for value in values if value is not None), None)
    else:
        found = _evaluated(expression, scope)
    if found is None:
        raise Absent(expression)
    return found


def _evaluated(expression: str, scope: dict[str, Any]) -> Any:
    python = re.sub(r"map\((.+), (\w+\()#\)\)", r"[\2it) for it in \1]", expression.strip())
    python = python.replace("&&", " and ").replace("||", " or ").replace("?.", ".").replace("\n", " ")
    texts = iter(TEXT.findall(python))

    def name(match: re.Match[str]) -> str:
        return f"scope[{match[0]!r}]" if "." in match[0] else match[0]

    bare = NAME.sub(name, TEXT.sub("\0", python))
    bare = re.sub("\0", lambda _: next(texts), bare)
    return eval(bare, {"__builtins__": {}, "scope": scope, **FUNCTIONS})


def _parameters(value: Document, side: str) -> list[Document]:
    return list(value.get(side, {}).get("parameters", ()))

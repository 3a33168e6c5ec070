"""Whether all that manifests refer to is there: each `{{...}}`, each expression, each template, each input.

Argo finds such a mistake only when the step is reached, which may be hours into a run.
"""

import re
from typing import Any

from tests.support import argo
from tests.support.argo import TAG, Document

NAME = re.compile(r"[A-Za-z_]\w*(?:\??\.[A-Za-z_]\w*)*")
TEXT = re.compile(r"'[^']*'|\"[^\"]*\"")
WORDS = {"in", "and", "or", "not", "matches", "true", "false", "nil"}
FUNCTIONS = {"asInt", "string", "map", "fromJSON", "toJson"}
OF_THE_RUN = {
    "workflow.name",
    "workflow.uid",
    "workflow.namespace",
    "workflow.parameters.json",
    "pod.name",
    "node.name",
}
OF_A_METRIC = {"status", "duration", "exitCode"}
OF_A_RETRY = {"lastRetry.status", "lastRetry.exitCode", "lastRetry.message", "lastRetry.duration"}
EXPRESSIONS = ("expression",)  # fields that hold an expression without braces


def references_exist(documents: list[Document]) -> list[str]:
    """Each name in each tag and expression is a parameter, an input, or an output of an earlier step."""
    found = []
    of_run = {f"workflow.parameters.{name}" for name in argo.run_parameters(documents)} | OF_THE_RUN
    whole = argo.run(documents)
    for path, text in argo.strings({key: value for key, value in whole.items() if key != "templates"}):
        found += [f"{_at(path)}: {problem}" for problem in _unknown(path, text, of_run)]
    for (owner, name), template in argo.templates(documents).items():
        known = of_run | {f"inputs.parameters.{one['name']}" for one in _parameters(template, "inputs")}
        before: set[str] = set()
        group = -1
        for number, step in argo.steps(template):
            if number != group:
                group, before = number, _outputs(documents, owner, template, number)
            here = known | before | ({"item"} if any(key.startswith("with") for key in step) else set())
            for path, text in argo.strings(step):
                found += [f"{name}.{step['name']}.{_at(path)}: {problem}" for problem in _unknown(path, text, here)]
        after = known | _outputs(documents, owner, template, group + 1)
        for path, text in argo.strings({key: value for key, value in template.items() if key != "steps"}):
            here = after | (
                OF_A_METRIC if path[0] == "metrics" else OF_A_RETRY if path[0] == "retryStrategy" else set()
            )
            found += [f"{name}.{_at(path)}: {problem}" for problem in _unknown(path, text, here)]
    for document in argo.of_kind(documents, "Workflow"):
        for given in document["spec"].get("arguments", {}).get("parameters", ()):
            if given["name"] not in argo.run_parameters(documents):
                found.append(f"the submitted workflow gives {given['name']}, which is no parameter")
    return found


def templates_exist_and_get_their_inputs(documents: list[Document]) -> list[str]:
    """Each step calls a template that there is, gives it every input without a default and nothing else."""
    found = []
    for (owner, name), template in argo.templates(documents).items():
        names = [step["name"] for _, step in argo.steps(template)]
        found += [f"{name}: two steps {one}" for one in set(names) if names.count(one) > 1]
        for _, step in argo.steps(template):
            target = argo.called(documents, owner, step)
            if target is None:
                found.append(
                    f"{name}.{step['name']} calls {step.get('templateRef') or step.get('template')}: not there"
                )
                continue
            given = [one["name"] for one in step.get("arguments", {}).get("parameters", ())]
            takes = {one["name"]: one for one in _parameters(target, "inputs")}
            needs = [one for one, entry in takes.items() if "value" not in entry and "default" not in entry]
            found += [f"{name}.{step['name']} does not give {one}" for one in needs if one not in given]
            found += [f"{name}.{step['name']} gives {one}, which is no input" for one in given if one not in takes]
    whole = argo.run(documents)
    if (argo.RUN, whole.get("entrypoint")) not in argo.templates(documents):
        found.append(f"entrypoint {whole.get('entrypoint')} is not there")
    for document in argo.of_kind(documents, "Workflow"):
        if document["spec"].get("workflowTemplateRef") != {"name": argo.RUN}:
            found.append("the submitted workflow does not refer to the WorkflowTemplate")
    return found


def inputs_are_used(documents: list[Document]) -> list[str]:
    """An input that a template takes and never reads was forgotten in its command."""
    found = []
    for (_, name), template in argo.templates(documents).items():
        unread = ("inputs", "outputs") if "container" in template else ("inputs",)
        rest = " ".join(text for path, text in argo.strings(template) if path[0] not in unread)
        for one in _parameters(template, "inputs"):
            if not re.search(rf"inputs\.parameters\.{one['name']}\b", rest):
                found.append(f"{name} does not use its input {one['name']}")
    return found


def outputs_of_skipped_steps_are_handled(documents: list[Document]) -> list[str]:
    """A skipped step has no outputs: `??` or a comparison says what then. With a default in the leaf it would have
    that one, and `??` would not see that it was skipped."""
    found = []
    for (owner, name), template in argo.templates(documents).items():
        skippable = {step["name"]: step for _, step in argo.steps(template) if "when" in step}
        for path, text in argo.strings(template):
            for expression in _expressions(path, text):
                for match in NAME.finditer(TEXT.sub(lambda m: " " * len(m[0]), expression)):
                    parts = match[0].replace("?", "").split(".")
                    if parts[0] != "steps" or len(parts) < 2 or parts[1] not in skippable:
                        continue
                    before, after = expression[: match.start()].rstrip(), expression[match.end() :].lstrip()
                    if not (after.startswith(("??", "==", "!=")) or before.endswith("??")):
                        found.append(f"{name}.{_at(path)}: {match[0]} is absent where the step is skipped")
                    elif after.startswith("??") and "?." not in match[0]:
                        found.append(f"{name}.{_at(path)}: {match[0]}: `?.` is missing")
                    elif after.startswith("??") and _has_default(documents, owner, skippable[parts[1]], parts[-1]):
                        found.append(
                            f"{name}.{_at(path)}: {match[0]} has a default: `??` never comes to its right side"
                        )
            for tag in TAG.findall(text):
                if tag.startswith("steps.") and tag.split(".")[1] in skippable:
                    found.append(f"{name}.{_at(path)}: {{{{{tag}}}}} is absent where the step is skipped")
    return found


def absent_values_are_looked_at_in_outputs_only(documents: list[Document]) -> list[str]:
    """In an argument or a `when`, Argo 4.1.2 looks at `?.` once before the step that it names has run, takes it for
    skipped, and keeps that: the next stage then reads the commit from before it. Seen on a cluster."""
    found = []
    for name, flow in argo.flows(documents).items():
        for _, step in argo.steps(flow):
            for path, text in argo.strings(step):
                if any("?." in one or "??" in one for one in _expressions(path, text)):
                    found.append(f"{name}.{step['name']}.{_at(path)}: {text}")
    return found


def tags_are_plain(documents: list[Document]) -> list[str]:
    """No space in a simple tag (Argo may not replace it), no hyphen in a name of an expression (it would subtract), no
    simple tag in a globalName (`argo submit` would print a warning for each step that calls its template)."""
    found = []
    for document in documents:
        for path, text in argo.strings(document):
            found += [f"{_at(path)}: space in {{{{{tag}}}}}" for tag in TAG.findall(text) if tag[:1] == " "]
            if path[-1] == "globalName":
                found += [
                    f"{_at(path)}: {{{{{tag}}}}} is not an expression" for tag in TAG.findall(text) if tag[0] != "="
                ]
            for expression in _expressions(path, text):
                bare = TEXT.sub("''", expression)
                found += [f"{_at(path)}: {match[0]}" for match in re.finditer(r"\w+\??\.[\w.?]*\w-\w+", bare)]
    return found


def _unknown(path: tuple[Any, ...], text: str, known: set[str]) -> list[str]:
    found = [f"{{{{{tag}}}}} is not there" for tag in TAG.findall(text) if tag[:1] != "=" and tag not in known]
    for expression in _expressions(path, text):
        bare = TEXT.sub(lambda match: " " * len(match[0]), expression)
        for match in NAME.finditer(bare):
            name = match[0].replace("?", "")
            if bare[match.end() :].lstrip().startswith("(") and name not in ("or", "and"):
                if name not in FUNCTIONS:
                    found.append(f"{name}() is no function that is used here")
            elif name not in known | WORDS:
                found.append(f"{name} is not there")
    if "parameter" in path[-1:] and not TAG.fullmatch(text):
        found.append(f"{text} is no tag")
    return found


def _expressions(path: tuple[Any, ...], text: str) -> list[str]:
    if path and path[-1] in EXPRESSIONS:
        return [text]
    return [tag[1:] for tag in TAG.findall(text) if tag.startswith("=")]


def _outputs(documents: list[Document], owner: str, template: Document, before: int) -> set[str]:
    """The outputs of the steps of groups below `before`. Those of a step that is run many times travel in the
    environment of pods, which has a limit, so nobody may want them."""
    found = set()
    for number, step in argo.steps(template):
        if number < before and not any(key.startswith("with") for key in step):
            target = argo.called(documents, owner, step) or {}
            found |= {f"steps.{step['name']}.outputs.parameters.{p['name']}" for p in _parameters(target, "outputs")}
    return found


def _has_default(documents: list[Document], owner: str, step: Document, output: str) -> bool:
    target = argo.called(documents, owner, step) or {}
    return any(p["name"] == output and "default" in p.get("valueFrom", {}) for p in _parameters(target, "outputs"))


def _parameters(template: Document, side: str) -> list[Document]:
    return list(template.get(side, {}).get("parameters", ()))


def _at(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))

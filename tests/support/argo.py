"""The manifests of argo/ and of the chart as plain objects, and what tests want to know of them."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/self-reward"
RUN, STAGES = "self-reward", "self-reward-stages"  # the WorkflowTemplates of the flow and of the leaves
TAG = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)

Document = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML without a key that is there twice: PyYAML takes the last one, Kubernetes refuses the file."""

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(key) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{node.start_mark}: {name} is there twice")
        return super().construct_mapping(node, deep)


def load(text: str) -> list[Document]:
    """The objects of a YAML file, none shared by the aliases that name it; ValueError for a key that is there twice."""
    return [json.loads(json.dumps(document)) for document in yaml.load_all(text, _Loader) if document]


def plain() -> list[Document]:
    """The files of argo/ as they stand there."""
    files = [ROOT / "argo/self-reward.yaml", *sorted((ROOT / "argo/templates").glob("*.yaml"))]
    return [document for file in files for document in load(file.read_text())]


def chart(values: str = "") -> list[Document]:
    """What the chart installs with the values file of that name in its folder ci/; '': with its defaults."""
    command = [helm(), "template", "release", str(CHART), "--namespace", "somewhere"]
    command += ["--values", str(CHART / "ci" / values)] if values else []
    command += ["--api-versions", "argoproj.io/v1alpha1/WorkflowTemplate", "--api-versions", "argoproj.io/v1alpha1"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "KUBECONFIG": os.devnull})
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ended.stderr}")
    return load(ended.stdout)


def charts() -> list[str]:
    """The values files of ci/, and '' for the defaults."""
    return ["", *sorted(path.name for path in (CHART / "ci").glob("*-values.yaml"))]


def helm() -> str:
    """The program that requirements/dev.txt puts beside python, or the one on the PATH."""
    found = shutil.which("helm", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        raise RuntimeError("helm is not there; make setup installs it")
    return found


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def run(documents: list[Document]) -> Document:
    """The spec of the WorkflowTemplate that is submitted."""
    return next(d["spec"] for d in of_kind(documents, "WorkflowTemplate") if d["metadata"]["name"] == RUN)


def run_parameters(documents: list[Document]) -> dict[str, Document]:
    return {parameter["name"]: parameter for parameter in run(documents)["arguments"]["parameters"]}


def templates(documents: list[Document]) -> dict[tuple[str, str], Document]:
    """Every template by the names of its WorkflowTemplate and its own."""
    return {
        (document["metadata"]["name"], template["name"]): template
        for document in of_kind(documents, "WorkflowTemplate")
        for template in document["spec"]["templates"]
    }


def leaves(documents: list[Document]) -> dict[str, Document]:
    """The templates that run a pod, by name."""
    return {name: one for (_, name), one in templates(documents).items() if "steps" not in one and "dag" not in one}


def flows(documents: list[Document]) -> dict[str, Document]:
    """The templates that only call others, by name."""
    return {name: one for (_, name), one in templates(documents).items() if "steps" in one or "dag" in one}


def steps(template: Document) -> list[tuple[int, Document]]:
    """The steps of a template, each with the number of its group."""
    return [(number, step) for number, group in enumerate(template.get("steps", ())) for step in group]


def step(documents: list[Document], flow: str, name: str) -> Document:
    return next(one for _, one in steps(flows(documents)[flow]) if one["name"] == name)


def called(documents: list[Document], owner: str, one: Document) -> Document | None:
    """The template that a step of the WorkflowTemplate `owner` calls, if it is there."""
    reference = one.get("templateRef") or {"name": owner, "template": one.get("template")}
    return templates(documents).get((reference["name"], reference["template"]))


def strings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Every text in `value`, with the keys that lead to it."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from strings(inner, (*path, key))


def substituted(text: str, values: dict[str, str]) -> str:
    """`text` with its simple tags replaced, as Argo does it: in a JSON text what stands for a tag is escaped."""
    return TAG.sub(lambda match: json.dumps(values[match[1]])[1:-1], text)


def pod(documents: list[Document], leaf: Document) -> Document:
    """The pod of a leaf with the run's defaults: what the run says for all pods, the leaf, then the patches of both."""
    whole = run(documents)
    values = {f"workflow.parameters.{name}": one.get("value", "") for name, one in run_parameters(documents).items()}
    made: Document = {"containers": [leaf["container"]]}
    for key in (
        "securityContext",
        "serviceAccountName",
        "tolerations",
        "nodeSelector",
        "affinity",
        "priorityClassName",
    ):
        if key in leaf or key in whole:
            made[key] = leaf.get(key, whole.get(key))
    mounted = {mount["name"] for mount in leaf["container"].get("volumeMounts", ())}
    made["volumes"] = [
        volume for volume in [*whole.get("volumes", ()), *leaf.get("volumes", ())] if volume["name"] in mounted
    ]
    for patch in (whole.get("podSpecPatch"), leaf.get("podSpecPatch")):
        if patch:
            made = merged(made, json.loads(substituted(patch, values)))
    return made


def merged(value: Any, patch: Any) -> Any:
    """A strategic merge: maps are merged, lists of named things too, all else is replaced."""
    if isinstance(value, dict) and isinstance(patch, dict):
        return {key: merged(value.get(key), patch[key]) if key in patch else value[key] for key in {**value, **patch}}
    if isinstance(value, list) and isinstance(patch, list) and all("name" in one for one in patch):
        changes = {one["name"]: one for one in patch}
        return [merged(one, changes.pop(one["name"], {})) for one in value] + list(changes.values())
    return patch


def other_pods(documents: list[Document]) -> dict[str, Document]:
    """The pods that the chart runs itself, by `kind name`."""
    found = {}
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if document["kind"] == "Pod" or isinstance(spec.get("template"), dict):
            name = f"{document['kind']} {document['metadata']['name']}"
            found[name] = spec if document["kind"] == "Pod" else spec["template"]["spec"]
    return found


def all_pods(documents: list[Document]) -> dict[str, Document]:
    """Every pod that there will be, by a name for messages."""
    return {name: pod(documents, leaf) for name, leaf in leaves(documents).items()} | other_pods(documents)


def containers(pod: Document) -> list[Document]:
    return [*pod.get("initContainers", ()), *pod["containers"]]

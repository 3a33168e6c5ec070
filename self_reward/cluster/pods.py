"""The pods of a run, as the chart's WorkflowTemplates and the parameters of the workflow describe them."""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from self_reward.cluster.findings import listed
from self_reward.types import Json

PLAN = "plan"  # the leaf that runs this check: its pod has started
QUEUE = "kueue.x-k8s.io/queue-name"  # label

Object = Json  # an object of Kubernetes, as JSON


@dataclass(frozen=True)
class Pod:
    """What one leaf of the workflow asks for. `spec` has those fields of a pod's spec that are checked."""

    name: str
    spec: Object
    labels: dict[str, str]


def pods_of_run(templates: Sequence[Object], parameters: Mapping[str, str]) -> list[Pod]:
    """The pods of a workflow that refers to the first of the WorkflowTemplates `templates`. As in Argo, the first
    template also holds what all pods share (volumes, service account, selectors). `parameters` are the workflow's."""
    shared = templates[0]["spec"]
    leaves = [leaf for template in templates for leaf in template["spec"].get("templates", []) if "container" in leaf]
    left_out = {PLAN}
    if parameters.get("export_merged") == "false":
        left_out |= {"export"}
    if parameters.get("shards") == "1":
        left_out |= {"generate-shard", "merge"}
    return [
        _pod(_filled(leaf, parameters), _filled(shared, parameters)) for leaf in leaves if leaf["name"] not in left_out
    ]


def _pod(leaf: Object, shared: Object) -> Pod:
    containers = [{"name": "main", **leaf["container"]}, *leaf.get("sidecars", [])]
    mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
    volumes = [*shared.get("volumes", []), *leaf.get("volumes", [])]
    spec = {
        "containers": containers,
        "volumes": [volume for volume in volumes if volume["name"] in mounted],  # Argo adds no others
        "nodeSelector": leaf.get("nodeSelector") or shared.get("nodeSelector") or {},
        "affinity": leaf.get("affinity") or shared.get("affinity") or {},
        "tolerations": leaf.get("tolerations") or shared.get("tolerations") or [],
        "serviceAccountName": leaf.get("serviceAccountName") or shared.get("serviceAccountName") or "default",
        "priorityClassName": leaf.get("priorityClassName") or shared.get("podPriorityClassName") or "",
        "runtimeClassName": "",
        "activeDeadlineSeconds": leaf.get("activeDeadlineSeconds"),
    }
    for text in (shared.get("podSpecPatch"), leaf.get("podSpecPatch")):
        with contextlib.suppress(yaml.YAMLError):  # a patch that only Argo can complete
            patch = yaml.safe_load(text or "")
            spec = _merged(spec, patch) if isinstance(patch, dict) else spec
    labels = shared.get("podMetadata", {}).get("labels", {}) | leaf.get("metadata", {}).get("labels", {})
    return Pod(leaf["name"], spec, labels)


def _filled(value: Any, parameters: Mapping[str, str]) -> Any:
    """`value` with the workflow's parameters filled in. What only Argo can compute stays as it is."""
    if isinstance(value, str):
        return re.sub(
            r"\{\{\s*workflow\.parameters\.(\w+)\s*\}\}", lambda match: parameters.get(match[1], match[0]), value
        )
    if isinstance(value, dict):
        return {key: _filled(inner, parameters) for key, inner in value.items()}
    return [_filled(inner, parameters) for inner in value] if isinstance(value, list) else value


def _merged(old: Any, new: Any) -> Any:
    """A pod's spec after a patch, as Kubernetes merges: lists of named things by name; other lists are replaced."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list) and all("name" in item for item in (*old, *new)):
        by_name = {item["name"]: item for item in old}
        return list((by_name | {item["name"]: _merged(by_name.get(item["name"]), item) for item in new}).values())
    return new


def names(pods: Iterable[Pod]) -> str:
    """The pods' names as a text lists them."""
    return listed(dict.fromkeys(pod.name for pod in pods), 4)

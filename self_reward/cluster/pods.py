"""The pods of a run, as the chart's WorkflowTemplates and the workflow's parameters describe them: their specs, and how
much of each resource (CPU, memory, GPUs) they ask for."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import yaml
from kubernetes.utils import parse_quantity

from self_reward.cluster import listed
from self_reward.types import Json

PLAN = "plan"  # the leaf that runs this check: its pod has started
QUEUE = "kueue.x-k8s.io/queue-name"  # label

Object = Json  # an object of Kubernetes, as JSON
Amounts = dict[str, Decimal]  # by resource


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


class Resources(NamedTuple):
    """What a pod asks for at least, and may use at most."""

    requests: Amounts
    limits: Amounts


def resources_of(pod: Pod, limit_ranges: Sequence[Object] = ()) -> Resources:
    """The sum over the pod's containers, with the defaults that the namespace's LimitRanges add. A quantity that only
    Argo can compute is left out."""
    default_limits: dict[str, str] = {}
    default_requests: dict[str, str] = {}
    for item in limit_items(limit_ranges):
        if item["type"] == "Container":
            default_limits |= item.get("default", {})
            default_requests |= item.get("defaultRequest", {})
    total = Resources({}, {})
    for container in pod.spec["containers"]:
        stated = container.get("resources", {})
        requests = default_limits | default_requests | stated.get("limits", {}) | stated.get("requests", {})
        limits = default_limits | stated.get("limits", {})
        for amounts, texts in ((total.requests, requests), (total.limits, limits)):
            for resource, text in texts.items():
                if (amount := quantity(text)) is not None:
                    amounts[resource] = amounts.get(resource, Decimal(0)) + amount
    return total


def limit_items(limit_ranges: Sequence[Object]) -> Iterator[Object]:
    """The entries of all LimitRanges."""
    for limit_range in limit_ranges:
        yield from limit_range["spec"]["limits"]


def per_container(pod: Pod) -> list[Pod]:
    """The pod once for each of its containers, with that container alone."""
    return [Pod(pod.name, {**pod.spec, "containers": [container]}, {}) for container in pod.spec["containers"]]


def quantity(text: object) -> Decimal | None:
    """A quantity such as `500m` or `1Gi` as a number; None for a text that is not one."""
    try:
        return parse_quantity(str(text))
    except ValueError:
        return None


def shown(resource: str, amount: Decimal) -> str:
    """`4 nvidia.com/gpu`, `16 GiB of memory`."""
    if resource.endswith(("memory", "storage")):
        return f"{amount / 2**30:.4g} GiB of {resource}"
    return f"{amount.normalize():f} {resource}"

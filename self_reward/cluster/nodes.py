"""Pods that no node of the cluster could run, with the reason for each node."""

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal

from self_reward.cluster import listed
from self_reward.cluster.objects import wanted_claims
from self_reward.cluster.pods import QUEUE, Amounts, Object, Pod, names, quantity, resources_of, shown

PASSING_TAINTS = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")  # not ready, under pressure: for now
ZERO = Decimal(0)


def node_problems(
    pods: Sequence[Pod],
    nodes: Sequence[Object],
    limit_ranges: Sequence[Object] = (),
    volumes: Mapping[str, Object] | None = None,
) -> list[str]:
    """Pods that no node could run even if it were empty. A node that is not ready counts: it may come back. `volumes`:
    the PersistentVolumes of claims, by the claim's name; a volume may be available in one zone or on one node only."""
    alike: dict[str, list[Pod]] = {}
    for pod in pods:
        demands = [
            *(pod.spec[key] for key in ("nodeSelector", "affinity", "tolerations")),
            pod.labels.get(QUEUE),
            list(wanted_claims([pod])),
            sorted(_needed(pod, limit_ranges).items()),
        ]
        alike.setdefault(json.dumps(demands, default=str), []).append(pod)
    problems = []
    for group in alike.values():
        refusals = [_refusal(node, group[0], volumes or {}) for node in nodes]
        if problem := _problem(_needed(group[0], limit_ranges), nodes, refusals):
            problems.append(f"{names(group)}: {problem}")
    if problems:
        problems[-1] += (
            ". Ask for less (train_gpus, generate_gpus; CPU and memory are values of the chart), add a node, or set "
            "check_nodes: false where an autoscaler adds one"
        )
    return problems


def _needed(pod: Pod, limit_ranges: Sequence[Object]) -> Amounts:
    requests = resources_of(pod, limit_ranges).requests
    return {resource: amount for resource, amount in requests.items() if amount > 0}


def _problem(needed: Amounts, nodes: Sequence[Object], refusals: Sequence[str | None]) -> str | None:
    """Why no node can run a pod that needs so much; None if one can. `refusals`: for each node, why it does not take
    the pod whatever its size, or None."""
    node_names = [node["metadata"]["name"] for node in nodes]
    sizes = dict(zip(node_names, map(_allocatable, nodes), strict=True))
    reasons = {name: refusal for name, refusal in zip(node_names, refusals, strict=True) if refusal}
    willing = [name for name in node_names if name not in reasons]
    large = [name for name, size in sizes.items() if all(size.get(r, ZERO) >= least for r, least in needed.items())]
    if set(willing) & set(large):
        return None
    if not willing:
        why = listed(f"{name} {reason}" for name, reason in reasons.items())
        return f"no node takes this pod: {why or 'the cluster has no nodes'}"
    scarce = [r for r, least in needed.items() if all(sizes[name].get(r, ZERO) < least for name in willing)]
    # if none is scarce, every resource is on some node, but not all of them on one; GPUs come first
    compared = sorted(scarce or needed, key=lambda resource: ("/" not in resource, resource))
    wanted = " and ".join(shown(r, needed[r]) for r in compared)
    largest_first = sorted(willing, key=lambda name: [-sizes[name].get(r, ZERO) for r in compared])
    offers = (
        f"{name} has {' and '.join(shown(r, sizes[name].get(r, ZERO)) for r in compared)}" for name in largest_first
    )
    others = listed(f"{name} {reasons[name]}" for name in large)
    return (
        f"the pod asks for {wanted}, and no node that takes it has as much: {listed(offers)}"
        f"{f'; others are large enough, but {others}' if others else ''}"
    )


def _allocatable(node: Object) -> Amounts:
    amounts = {resource: quantity(text) for resource, text in node["status"].get("allocatable", {}).items()}
    return {resource: amount for resource, amount in amounts.items() if amount is not None}


def _refusal(node: Object, pod: Pod, volumes: Mapping[str, Object]) -> str | None:
    """Why a node does not take a pod, however small; None if it does."""
    labels = node["metadata"].get("labels", {})
    for key, value in pod.spec["nodeSelector"].items():
        if labels.get(key) != value:
            return f"does not have the label {key}={value}"
    affinity = pod.spec["affinity"].get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    if not _selected(node, affinity):
        return "does not match the pod's node affinity"
    for claim in wanted_claims([pod]):
        if not _selected(node, volumes.get(claim, {}).get("spec", {}).get("nodeAffinity", {}).get("required")):
            return f"cannot mount PersistentVolumeClaim {claim}, whose volume is bound to another zone or node"
    if node.get("spec", {}).get("unschedulable"):
        return "is cordoned"
    if pod.labels.get(QUEUE):  # Kueue adds a flavor's tolerations when it lets the pod in
        return None
    for taint in node.get("spec", {}).get("taints", []):
        passes = taint["key"].startswith(PASSING_TAINTS) or taint["effect"] == "PreferNoSchedule"
        if not passes and not any(_tolerates(toleration, taint) for toleration in pod.spec["tolerations"]):
            value = f"={taint['value']}" if taint.get("value") else ""
            return f"has the taint {taint['key']}{value}:{taint['effect']}"
    return None


def _selected(node: Object, selector: Object | None) -> bool:
    """Whether a NodeSelector matches a node; None matches all. Gt and Lt are assumed to hold."""
    if not selector:
        return True
    labels, fields = node["metadata"].get("labels", {}), {"metadata.name": node["metadata"]["name"]}
    return any(
        all(_holds(requirement, labels) for requirement in term.get("matchExpressions", []))
        and all(_holds(requirement, fields) for requirement in term.get("matchFields", []))
        for term in selector.get("nodeSelectorTerms", [])
    )


def _holds(requirement: Object, labels: Mapping[str, str]) -> bool:
    value, how = labels.get(requirement["key"]), requirement["operator"]
    if how in ("Exists", "DoesNotExist"):
        return (value is not None) == (how == "Exists")
    if how in ("In", "NotIn"):
        return (value in requirement["values"]) == (how == "In")
    return True


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", "")

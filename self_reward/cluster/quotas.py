"""ResourceQuotas and LimitRanges of the namespace, which refuse pods or make them wait."""

import operator
from collections.abc import Sequence
from decimal import Decimal

from kubernetes.utils import parse_quantity

from self_reward.cluster import Findings
from self_reward.cluster.pods import Object, Pod, limit_items, names, per_container, quantity, resources_of, shown


def check_quotas(pods: Sequence[Pod], quotas: Sequence[Object], limit_ranges: Sequence[Object] = ()) -> Findings:
    """Problems: pods that a ResourceQuota never lets in. Notes: those for which it has no room at present."""
    findings = Findings()
    for quota in quotas:
        name = f"ResourceQuota {quota['metadata']['name']}"
        used = quota.get("status", {}).get("used", {})
        scopes = set(quota["spec"].get("scopes", []))
        if quota["spec"].get("scopeSelector") or scopes - {"Terminating", "NotTerminating"}:
            kinds = ", ".join(scopes) or "scopeSelector"
            findings.notes.append(f"{name} is for some pods only ({kinds}); it was not checked")
            continue
        counted = [pod for pod in pods if _counts(pod, scopes)]
        for resource, text in quota["spec"].get("hard", {}).items():
            most = quantity(text)
            if most is None:
                continue
            if silent := [pod for pod in counted if not _states(pod, resource, limit_ranges)]:
                findings.problems.append(
                    f"{name} wants every container to state {resource}, and these pods do not: {names(silent)}"
                )
            asked = {pod.name: _amount(pod, resource, limit_ranges) for pod in counted}
            if large := [f"{pod} {shown(resource, amount)}" for pod, amount in asked.items() if amount > most]:
                findings.problems.append(
                    f"{name} allows {shown(resource, most)} in all; one pod alone asks for more: {', '.join(large)}"
                )
            left = most - (quantity(used.get(resource, 0)) or Decimal(0))
            if waiting := [pod for pod, amount in asked.items() if left < amount <= most]:
                findings.notes.append(
                    f"{name} has {shown(resource, left)} left now; {', '.join(waiting)} must wait for more"
                )
    return findings


def _counts(pod: Pod, scopes: set[str]) -> bool:
    ends = pod.spec["activeDeadlineSeconds"] is not None
    return not ("Terminating" in scopes and not ends) and not ("NotTerminating" in scopes and ends)


def _amount(pod: Pod, resource: str, limit_ranges: Sequence[Object]) -> Decimal:
    """What a pod counts against the entry `resource` of a quota."""
    requests, limits = resources_of(pod, limit_ranges)
    if resource in ("pods", "count/pods"):
        return Decimal(1)
    kind, _, rest = resource.partition(".")
    if kind == "limits":
        return limits.get(rest, Decimal(0))
    return requests.get(rest if kind == "requests" else resource, Decimal(0))


def _states(pod: Pod, resource: str, limit_ranges: Sequence[Object]) -> bool:
    """Whether each container says how much it takes, as Kubernetes demands where a quota counts CPU or memory."""
    kind, _, rest = resource.partition(".") if "." in resource else ("requests", "", resource)
    if rest not in ("cpu", "memory") or kind not in ("requests", "limits"):
        return True
    return all(rest in resources_of(part, limit_ranges)[kind == "limits"] for part in per_container(pod))


def limit_problems(pods: Sequence[Pod], limit_ranges: Sequence[Object]) -> list[str]:
    """Pods that a LimitRange of the namespace refuses, or whose limits it sets below what they ask for."""
    problems = []
    for item in limit_items(limit_ranges):
        for bound, most, more, outside in (
            ("max", "at most", "more", operator.gt),
            ("min", "at least", "less", operator.lt),
        ):
            for resource, text in item.get(bound, {}).items():
                allowed = parse_quantity(text)
                refused = [
                    pod
                    for pod in pods
                    if any(outside(asked, allowed) for asked in _asked(pod, item["type"], resource, limit_ranges))
                ]
                if refused:
                    problems.append(
                        f"a LimitRange allows {most} {shown(resource, allowed)} per {item['type'].lower()}; these pods "
                        f"ask for {more}: {names(refused)}"
                    )
    for pod in pods:
        for part in per_container(pod):
            requests, limits = resources_of(part, limit_ranges)
            for resource, asked in requests.items():
                if asked > limits.get(resource, asked):
                    problems.append(
                        f"{pod.name} asks for {shown(resource, asked)}, above its limit of "
                        f"{shown(resource, limits[resource])} (a LimitRange gives one to containers that state none); "
                        "state a limit in the chart's stages.*.resources"
                    )
    return problems


def _asked(pod: Pod, kind: str, resource: str, limit_ranges: Sequence[Object]) -> list[Decimal]:
    """Requests and limits of a resource: of the pod as a whole, of each of its containers, or of a volume (none)."""
    units = {"Pod": [pod], "Container": per_container(pod)}.get(kind, [])
    return [part[resource] for unit in units for part in resources_of(unit, limit_ranges) if resource in part]

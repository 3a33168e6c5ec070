"""How much of each resource (CPU, memory, GPUs) a pod asks for, and how an amount is written in a text."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

from kubernetes.utils import parse_quantity

from self_reward.cluster.pods import Object, Pod

Amounts = dict[str, Decimal]  # by resource


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


def one_pod_per_container(pod: Pod) -> list[Pod]:
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

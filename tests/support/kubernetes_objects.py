"""Objects of Kubernetes for tests of self_reward/cluster: pods, nodes, claims, quotas, and the chart's templates."""

from pathlib import Path

from self_reward.cluster.objects import DEFAULT_CLASS
from self_reward.cluster.pods import Pod
from self_reward.parameters import generated
from tests.support import argo

ROOT = Path(__file__).parents[2]
GIB = 2**30
GPU = {"nvidia.com/gpu": "4"}
DEFAULTS = {entry["name"]: entry["value"] for entry in generated.for_argo()}


def templates():
    return [argo.load((ROOT / f"argo/templates/{name}.yaml").read_text())[0] for name in ("self-reward", "stages")]


def pod(name="train", requests=None, limits=None, labels=None, **spec):
    resources = {"requests": requests or {}, "limits": limits or {}}
    whole = {
        "containers": [{"name": "main", "resources": resources}],
        "volumes": [],
        "nodeSelector": {},
        "affinity": {},
        "tolerations": [],
        "serviceAccountName": "self-reward",
        "priorityClassName": "",
        "runtimeClassName": "",
        "activeDeadlineSeconds": "60",
    }
    return Pod(name, {**whole, **spec}, labels or {})


def node(name, taints=(), labels=None, unschedulable=False, **allocatable):
    sizes = {
        "cpu": "8",
        "memory": "64Gi",
        **{key.replace("gpu", "nvidia.com/gpu"): v for key, v in allocatable.items()},
    }
    spec = {"taints": list(taints), "unschedulable": unschedulable}
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": spec, "status": {"allocatable": sizes}}


def taint(key, effect="NoSchedule", value=None):
    return {"key": key, "effect": effect} | ({"value": value} if value else {})


def required(*terms):
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}


def term(key, operator, *values, of="matchExpressions"):
    return {of: [{"key": key, "operator": operator, **({"values": list(values)} if values else {})}]}


def claim(phase="Pending", storage_class=None, **spec):
    return {"spec": {**({"storageClassName": storage_class} if storage_class is not None else {}), **spec},
            "status": {"phase": phase}}  # fmt: skip


def storage_class(name, mode="Immediate", default=False):
    annotations = {DEFAULT_CLASS: "true"} if default else {}
    return {"metadata": {"name": name, "annotations": annotations}, "provisioner": "p", "volumeBindingMode": mode}


def quota(hard, used=None, **spec):
    return {"metadata": {"name": "q"}, "spec": {"hard": hard, **spec}, "status": {"used": used or {}}}

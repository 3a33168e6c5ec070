"""The check of a whole run: reads from the API server what its pods need, and collects what the other modules find."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from self_reward.cluster import Findings
from self_reward.cluster.api import Api, Forbidden
from self_reward.cluster.nodes import node_problems
from self_reward.cluster.objects import check_claim, key_problems, wanted_claims, wanted_config_maps, wanted_secrets
from self_reward.cluster.pods import QUEUE, Object, Pod, names, pods_of_run
from self_reward.cluster.quotas import check_quotas, limit_problems

TEMPLATES = ("self-reward", "self-reward-stages")  # WorkflowTemplates: the flow with what all pods share; the leaves


def check_run(api: Api, namespace: str, parameters: Mapping[str, str]) -> Findings:
    """What the pods of a run with these parameters of the workflow lack. The most telling problems come first. Raises
    TryAgain if the API server cannot be reached."""
    findings = Findings()
    inside = f"/api/v1/namespaces/{namespace}"
    templates = _templates(api, namespace, findings)
    if not templates:
        return findings
    pods = pods_of_run(templates, parameters)
    limit_ranges = _list(api, f"{inside}/limitranges", "LimitRanges", findings) or []
    checked = parameters.get("check_nodes") != "false"
    nodes = _list(api, "/api/v1/nodes", "nodes", findings) if checked else None
    for kind, wanted in (("Secret", wanted_secrets(pods)), ("ConfigMap", wanted_config_maps(pods))):
        for name, keys in wanted.items():
            with _noted(f"{kind} {name}", findings):
                content = api.get(f"{inside}/{kind.lower()}s/{name}")
                findings.problems += key_problems(kind, name, content, keys)
    shared = parameters.get("shards", "1") != "1" and (nodes is None or len(nodes) > 1)
    volumes = _check_claims(api, inside, wanted_claims(pods), shared, findings)
    if nodes is not None:
        findings.problems = node_problems(pods, nodes, limit_ranges, volumes) + findings.problems
    for kind, path, field in (
        ("ServiceAccount", f"{inside}/serviceaccounts", "serviceAccountName"),
        ("PriorityClass", "/apis/scheduling.k8s.io/v1/priorityclasses", "priorityClassName"),
        ("RuntimeClass", "/apis/node.k8s.io/v1/runtimeclasses", "runtimeClassName"),
    ):
        for name in sorted({pod.spec[field] for pod in pods} - {""}):
            with _noted(f"{kind} {name}", findings):
                if api.get(f"{path}/{name}") is None:
                    users = names(pod for pod in pods if pod.spec[field] == name)
                    findings.problems.append(f"{kind} {name} is missing (needed by {users})")
    for name in sorted({pod.labels[QUEUE] for pod in pods if pod.labels.get(QUEUE)}):
        with _noted(f"LocalQueue {name}", findings):
            findings.add(_check_queue(api, namespace, name))
    quotas = _list(api, f"{inside}/resourcequotas", "ResourceQuotas", findings) or []
    findings.add(check_quotas(pods, quotas, limit_ranges))
    findings.problems += limit_problems(pods, limit_ranges)
    return findings


@contextlib.contextmanager
def _noted(what: str, findings: Findings) -> Iterator[None]:
    """A part of the check that is left out, with a note, if the service account may not read `what`."""
    try:
        yield
    except Forbidden:
        findings.notes.append(f"{what}: not checked, the service account may not read it")


def _list(api: Api, path: str, what: str, findings: Findings) -> list[Object] | None:
    """All objects at `path`; None, with a note, if they may not be read."""
    with _noted(what, findings):
        return api.list(path)
    return None


def _templates(api: Api, namespace: str, findings: Findings) -> list[Object]:
    """The chart's WorkflowTemplates; [] if one is missing or may not be read."""
    templates = []
    for name in TEMPLATES:
        template = None
        path = f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflowtemplates/{name}"
        with _noted(f"WorkflowTemplate {name}", findings):
            if (template := api.get(path)) is None:
                findings.problems.append(
                    f"WorkflowTemplate {name} is not in namespace {namespace}; install the chart there"
                )
        if template is None:
            return []
        templates.append(template)
    return templates


def _check_claims(
    api: Api, inside: str, claims: Mapping[str, Sequence[Pod]], shared: bool, findings: Findings
) -> dict[str, Object]:
    """Check each claim; returns their volumes by the claims' names. `shared`: pods on several nodes may want to mount a
    claim at the same time."""
    classes = _list(api, "/apis/storage.k8s.io/v1/storageclasses", "StorageClasses", findings)
    volumes = {}
    for name, users in claims.items():
        claim = None
        with _noted(f"PersistentVolumeClaim {name}", findings):
            claim = api.get(f"{inside}/persistentvolumeclaims/{name}")
            findings.add(check_claim(name, claim, classes, users))
        if claim is None:
            continue
        if bound := claim["spec"].get("volumeName"):
            with _noted(f"PersistentVolume {bound}", findings):
                if volume := api.get(f"/api/v1/persistentvolumes/{bound}"):
                    volumes[name] = volume
        modes = claim["spec"].get("accessModes", [])
        if shared and modes and set(modes) <= {"ReadWriteOnce", "ReadWriteOncePod"}:
            findings.notes.append(
                f"PersistentVolumeClaim {name} is {', '.join(modes)}: shards that start on another node wait until the "
                "first ones have ended; a claim with ReadWriteMany (the chart's cache.existingClaim, or "
                "cache.accessModes before the claim is created) lets them run at the same time"
            )
    return volumes


def _check_queue(api: Api, namespace: str, name: str) -> Findings:
    """The LocalQueue that pods are labelled with."""
    group = api.get("/apis/kueue.x-k8s.io")
    if group is None:
        note = f"pods are labelled with the queue {name}, but the cluster has no Kueue: the label has no effect"
        return Findings(notes=[note])
    version = group["preferredVersion"]["version"]
    if api.get(f"/apis/kueue.x-k8s.io/{version}/namespaces/{namespace}/localqueues/{name}") is None:
        return Findings([f"LocalQueue {name} of Kueue is missing: pods would wait forever"])
    return Findings()

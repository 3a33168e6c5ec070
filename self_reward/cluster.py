"""What the pods of a run will ask of the cluster, compared with what the cluster has.

A pod that asks for what is not there hangs without a word, or fails hours later. Everything but `Api` and `look` is
pure: it works on objects as Kubernetes gives them in JSON. Where this process may not look, that is said, not refused.
"""

import contextlib
import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.utils import parse_quantity

from self_reward.errors import TryAgain, UserError

TEMPLATES = ("self-reward", "self-reward-stages")  # WorkflowTemplates: the flow with what all pods share; the leaves
OWN = "plan"  # the leaf that asks: its pod has started
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TIMEOUT = (5, 20)  # seconds to connect to the API server, and for its answer
PAGE = 500  # nodes in one answer
QUEUE = "kueue.x-k8s.io/queue-name"
UNSEEN = object()  # stands for what may not be looked at
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
PASSING_TAINTS = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")  # not ready, under pressure: for now

Object = dict[str, Any]
Amounts = dict[str, Decimal]


@dataclass(frozen=True)
class Pod:
    """What one leaf of the workflow asks for. `spec` has the fields of a pod's spec that are looked at here."""

    name: str
    spec: Object
    labels: dict[str, str]


# ---- the pods


def pods(templates: Sequence[Object], parameters: Mapping[str, str]) -> list[Pod]:
    """The pods of a run whose Workflow refers to the first of the WorkflowTemplates `templates`. What all pods share
    (volumes, service account, selectors) is the first one's, as in Argo; `parameters` are the workflow's."""
    shared = templates[0]["spec"]
    leaves = [one for template in templates for one in template["spec"].get("templates", []) if "container" in one]
    left_out = {OWN}
    if parameters.get("export_merged") == "false":
        left_out |= {"export"}
    if parameters.get("shards") == "1":
        left_out |= {"generate-shard", "merge"}
    return [
        _pod(_filled(leaf, parameters), _filled(shared, parameters)) for leaf in leaves if leaf["name"] not in left_out
    ]


def _pod(leaf: Object, shared: Object) -> Pod:
    container = {"name": "main", **leaf["container"]}
    containers = [container, *leaf.get("sidecars", [])]
    mounted = {mount["name"] for one in containers for mount in one.get("volumeMounts", [])}
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
    for patch in (shared.get("podSpecPatch"), leaf.get("podSpecPatch")):
        with contextlib.suppress(yaml.YAMLError):  # a patch that only Argo can complete
            found = yaml.safe_load(patch or "")
            spec = _merged(spec, found) if isinstance(found, dict) else spec
    labels = shared.get("podMetadata", {}).get("labels", {}) | leaf.get("metadata", {}).get("labels", {})
    return Pod(leaf["name"], spec, labels)


def _filled(value: Any, parameters: Mapping[str, str]) -> Any:
    """`value` with the workflow's parameters in their places. What only Argo can compute stays as it is."""
    if isinstance(value, str):
        return re.sub(
            r"\{\{\s*workflow\.parameters\.(\w+)\s*\}\}", lambda found: parameters.get(found[1], found[0]), value
        )
    if isinstance(value, dict):
        return {key: _filled(one, parameters) for key, one in value.items()}
    return [_filled(one, parameters) for one in value] if isinstance(value, list) else value


def _merged(old: Any, new: Any) -> Any:
    """A pod's spec after a patch, as Kubernetes merges them: lists of named things by name, others are replaced."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list) and all("name" in one for one in (*old, *new)):
        by_name = {one["name"]: one for one in old}
        return list((by_name | {one["name"]: _merged(by_name.get(one["name"]), one) for one in new}).values())
    return new


def amounts(pod: Pod, limit_ranges: Sequence[Object] = ()) -> tuple[Amounts, Amounts]:
    """(requests, limits) of a pod: of all its containers together, with what the namespace's LimitRanges add. Only what
    can be read: a quantity that Argo computes is left out."""
    defaults: dict[str, dict[str, str]] = {"default": {}, "defaultRequest": {}}
    for item in _container_limits(limit_ranges):
        for name, values in defaults.items():
            values |= item.get(name, {})
    requests: Amounts = {}
    limits: Amounts = {}
    for container in pod.spec["containers"]:
        stated = container.get("resources", {})
        limit = defaults["default"] | stated.get("limits", {})
        request = (
            defaults["default"] | defaults["defaultRequest"] | stated.get("limits", {}) | stated.get("requests", {})
        )
        for total, values in ((requests, request), (limits, limit)):
            for resource, text in values.items():
                if (quantity := _quantity(text)) is not None:
                    total[resource] = total.get(resource, Decimal(0)) + quantity
    return requests, limits


def _container_limits(limit_ranges: Sequence[Object]) -> Iterator[Object]:
    for one in limit_ranges:
        yield from (item for item in one["spec"]["limits"] if item["type"] == "Container")


def _quantity(text: Any) -> Decimal | None:
    try:
        return parse_quantity(str(text))
    except ValueError:
        return None


def _shown(resource: str, quantity: Decimal) -> str:
    if resource.endswith(("memory", "storage")):
        return f"{quantity / 2**30:.4g} GiB of {resource}"
    return f"{quantity.normalize():f} {resource}"


def _names(pods: Iterable[Pod]) -> str:
    return _listed(dict.fromkeys(pod.name for pod in pods), 4)


def _listed(texts: Iterable[str], shown: int = 8) -> str:
    every = list(texts)
    return ", ".join(every[:shown]) + (f" and {len(every) - shown} more" if len(every) > shown else "")


# ---- nodes


def node_problems(
    pods: Sequence[Pod],
    nodes: Sequence[Object],
    limit_ranges: Sequence[Object] = (),
    volumes: Mapping[str, Object] | None = None,
) -> list[str]:
    """Pods that no node could run even if it were empty. A node that is not ready counts: it may come back. `volumes`:
    the PersistentVolumes of claims, by the claim's name; one may be had in one zone or on one node alone."""
    alike: dict[str, list[Pod]] = {}
    for pod in pods:
        where = [
            *(pod.spec[key] for key in ("nodeSelector", "affinity", "tolerations")),
            pod.labels.get(QUEUE),
            list(wanted_claims([pod])),
            sorted(_needed(pod, limit_ranges).items()),
        ]
        alike.setdefault(json.dumps(where, default=str), []).append(pod)
    problems = []
    for group in alike.values():
        if problem := _node_problem(group[0], nodes, limit_ranges, volumes or {}):
            problems.append(f"{_names(group)}: {problem}")
    if problems:
        problems[-1] += (
            ". Ask for less (train_gpus, generate_gpus; CPU and memory are values of the chart), add a node, or set "
            "check_nodes: false where an autoscaler adds one"
        )
    return problems


def _needed(pod: Pod, limit_ranges: Sequence[Object]) -> Amounts:
    return {resource: quantity for resource, quantity in amounts(pod, limit_ranges)[0].items() if quantity > 0}


def _node_problem(
    pod: Pod, nodes: Sequence[Object], limit_ranges: Sequence[Object], volumes: Mapping[str, Object]
) -> str | None:
    needed = _needed(pod, limit_ranges)
    closed = {node["metadata"]["name"]: _closed(node, pod, volumes) for node in nodes}
    able = {node["metadata"]["name"]: _allocatable(node) for node in nodes}
    opened = [name for name, reason in closed.items() if reason is None]
    if any(all(able[name].get(resource, 0) >= wanted for resource, wanted in needed.items()) for name in opened):
        return None
    if not opened:
        return f"no node takes this pod: {_listed(f'{n} {reason}' for n, reason in closed.items()) or 'there is none'}"
    lacking = [r for r, wanted in needed.items() if all(able[name].get(r, 0) < wanted for name in opened)]
    # each alone is somewhere, but never all on one node
    told = sorted(lacking or needed, key=lambda resource: ("/" not in resource, resource))
    wanted_text = " and ".join(_shown(resource, needed[resource]) for resource in told)
    there = [
        f"{name} has {' and '.join(_shown(resource, able[name].get(resource, Decimal(0))) for resource in told)}"
        for name in sorted(opened, key=lambda name: [-able[name].get(resource, Decimal(0)) for resource in told])
    ]
    elsewhere = [
        f"{name} {reason}"
        for name, reason in closed.items()
        if reason and all(able[name].get(resource, 0) >= wanted for resource, wanted in needed.items())
    ]
    return (
        f"the pod asks for {wanted_text}, and no node that takes it has as much: {_listed(there)}"
        f"{f'; large enough, but {_listed(elsewhere)}' if elsewhere else ''}"
    )


def _allocatable(node: Object) -> Amounts:
    found = {resource: _quantity(text) for resource, text in node["status"].get("allocatable", {}).items()}
    return {resource: quantity for resource, quantity in found.items() if quantity is not None}


def _closed(node: Object, pod: Pod, volumes: Mapping[str, Object]) -> str | None:
    """Why a node does not take a pod, however small; None where it does."""
    labels = node["metadata"].get("labels", {})
    for key, value in pod.spec["nodeSelector"].items():
        if labels.get(key) != value:
            return f"has not the label {key}={value}"
    affinity = pod.spec["affinity"].get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    if not _selected(node, affinity):
        return "is not in the pod's node affinity"
    for claim in wanted_claims([pod]):
        if not _selected(node, volumes.get(claim, {}).get("spec", {}).get("nodeAffinity", {}).get("required")):
            return f"cannot mount PersistentVolumeClaim {claim}, whose volume is bound to another zone or node"
    if node.get("spec", {}).get("unschedulable"):
        return "is cordoned"
    if pod.labels.get(QUEUE):  # Kueue adds a flavor's tolerations when it lets the pod in
        return None
    for taint in node.get("spec", {}).get("taints", []):
        passes = taint["key"].startswith(PASSING_TAINTS) or taint["effect"] == "PreferNoSchedule"
        if not passes and not any(_tolerates(one, taint) for one in pod.spec["tolerations"]):
            value = f"={taint['value']}" if taint.get("value") else ""
            return f"has the taint {taint['key']}{value}:{taint['effect']}"
    return None


def _selected(node: Object, selector: Object | None) -> bool:
    """Whether a NodeSelector takes a node; None takes all. What compares numbers (Gt, Lt) is taken for true."""
    if not selector:
        return True
    labels, fields = node["metadata"].get("labels", {}), {"metadata.name": node["metadata"]["name"]}
    return any(
        all(_holds(one, labels) for one in term.get("matchExpressions", []))
        and all(_holds(one, fields) for one in term.get("matchFields", []))
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


# ---- what pods refer to by name


def wanted_secrets(pods: Sequence[Pod]) -> dict[str, dict[str, list[Pod]]]:
    """Secrets that pods cannot start without: name -> key -> pods; the key '' is the Secret as a whole."""
    return _wanted(pods, "secretKeyRef", "secretRef", lambda volume: (volume.get("secret"), "secretName"))


def wanted_config_maps(pods: Sequence[Pod]) -> dict[str, dict[str, list[Pod]]]:
    """The same of ConfigMaps."""
    return _wanted(pods, "configMapKeyRef", "configMapRef", lambda volume: (volume.get("configMap"), "name"))


def _wanted(
    pods: Sequence[Pod], by_key: str, whole: str, of_volume: Callable[[Object], tuple[Object | None, str]]
) -> dict[str, dict[str, list[Pod]]]:
    found: dict[str, dict[str, list[Pod]]] = {}

    def add(pod: Pod, reference: Object | None, name: str, keys: Iterable[str]) -> None:
        if reference and not reference.get("optional"):
            for key in keys:
                found.setdefault(reference[name], {}).setdefault(key, []).append(pod)

    for pod in pods:
        for container in pod.spec["containers"]:
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get(by_key)
                add(pod, reference, "name", [reference["key"]] if reference else [])
            for source in container.get("envFrom", []):
                add(pod, source.get(whole), "name", [""])
        for volume in pod.spec["volumes"]:
            reference, name = of_volume(volume)
            add(pod, reference, name, [item["key"] for item in (reference or {}).get("items", [])] or [""])
    return found


def wanted_claims(pods: Sequence[Pod]) -> dict[str, list[Pod]]:
    """PersistentVolumeClaims that pods mount."""
    found: dict[str, list[Pod]] = {}
    for pod in pods:
        for volume in pod.spec["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                found.setdefault(claim["claimName"], []).append(pod)
    return found


def key_problems(kind: str, name: str, there: Object | None, wanted: Mapping[str, Sequence[Pod]]) -> list[str]:
    """What is wrong with a Secret or ConfigMap (None: it is not there), of which pods want the keys `wanted`."""
    keys = ", ".join(key for key in wanted if key)
    users = _names(pod for group in wanted.values() for pod in group)
    if there is None:
        how = "".join(f" --from-file={key}=FILE" for key in wanted if key)
        how = f": kubectl create secret generic {name}{how}" if kind == "Secret" else ""
        return [f"{kind} {name} is missing ({users} want{f' {keys} of' if keys else ''} it){how}"]
    has = {**there.get("data", {}), **there.get("binaryData", {})}
    return [
        f"{kind} {name} has no key {key} ({_names(group)} want it); it has {', '.join(sorted(has)) or 'none'}"
        for key, group in wanted.items()
        if key and key not in has
    ]


def claim_problem(
    name: str, claim: Object | None, classes: Sequence[Object] | None, users: Sequence[Pod]
) -> tuple[str | None, str | None]:
    """(problem, note) about a PersistentVolumeClaim; `classes`: all StorageClasses, None where they cannot be seen."""
    where = f"PersistentVolumeClaim {name} ({_names(users)} mount it)"
    if claim is None:
        return f"{where} is missing; the chart makes it, or takes the name of one that is there", None
    phase, spec = claim.get("status", {}).get("phase"), claim["spec"]
    if phase == "Lost":
        return f"{where} is Lost: its volume {spec.get('volumeName', '')} is gone; remove it and make it anew", None
    if phase != "Pending" or spec.get("volumeName") or classes is None:
        return None, None
    by_name = {one["metadata"]["name"]: one for one in classes}
    wanted = spec.get("storageClassName")
    if wanted is None:
        marked = (
            n for n, one in by_name.items() if one["metadata"].get("annotations", {}).get(DEFAULT_CLASS) == "true"
        )
        if (wanted := next(marked, None)) is None:
            has = f"none of {', '.join(sorted(by_name))} is the default" if by_name else "the cluster has none"
            return f"{where} is Pending: it names no storage class, and {has}", None
    if wanted == "":
        return f"{where} is Pending: it waits for a volume made by hand (storageClassName ''), and none fits", None
    if wanted not in by_name:
        has = ", ".join(sorted(by_name)) or "none"
        return (
            f"{where} is Pending: there is no storage class {wanted} (the cluster has {has}), and no volume fits",
            None,
        )
    if by_name[wanted].get("volumeBindingMode") == "WaitForFirstConsumer":
        return None, (
            f"{where} gets its volume where the first pod runs (fetch-model, on CPU). Where volumes belong to a zone "
            "or a node, give the chart's stages.fetch-model the nodeSelector of the GPU nodes"
        )
    return None, f"{where} is still Pending; pods wait until {by_name[wanted]['provisioner']} has made its volume"


# ---- quotas


def quota_problems(
    pods: Sequence[Pod], quotas: Sequence[Object], limit_ranges: Sequence[Object] = ()
) -> tuple[list[str], list[str]]:
    """(problems, notes) about the namespace's ResourceQuotas: pods that never fit, and that do not fit at present."""
    problems, notes = [], []
    for quota in quotas:
        name = f"ResourceQuota {quota['metadata']['name']}"
        hard = quota.get("spec", {}).get("hard", {})
        used = quota.get("status", {}).get("used", {})
        scopes = set(quota["spec"].get("scopes", []))
        if quota["spec"].get("scopeSelector") or scopes - {"Terminating", "NotTerminating"}:
            notes.append(f"{name} is for some pods only ({', '.join(scopes) or 'scopeSelector'}); it was not looked at")
            continue
        counted = [pod for pod in pods if _counts(pod, scopes)]
        for resource, text in hard.items():
            most = _quantity(text)
            if most is None:
                continue
            silent = [pod for pod in counted if not _states(pod, resource, limit_ranges)]
            if silent:
                problems.append(f"{name} wants {resource} to be stated, and {_names(silent)} state none")
            asked = {pod.name: _amount(pod, resource, limit_ranges) for pod in counted}
            large = {pod: amount for pod, amount in asked.items() if amount > most}
            if large:
                each = ", ".join(f"{pod} {_shown(resource, amount)}" for pod, amount in large.items())
                problems.append(f"{name} allows {_shown(resource, most)} in all; one pod alone asks for more: {each}")
            left = most - (_quantity(used.get(resource, 0)) or Decimal(0))
            if now := [pod for pod, amount in asked.items() if left < amount <= most]:
                notes.append(f"{name} has {_shown(resource, left)} left now; {', '.join(now)} must wait for more")
    return problems, notes


def _counts(pod: Pod, scopes: set[str]) -> bool:
    ends = pod.spec["activeDeadlineSeconds"] is not None
    return not ("Terminating" in scopes and not ends) and not ("NotTerminating" in scopes and ends)


def _amount(pod: Pod, resource: str, limit_ranges: Sequence[Object]) -> Decimal:
    """What a pod counts against the entry `resource` of a quota."""
    requests, limits = amounts(pod, limit_ranges)
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
    return all(rest in amounts(one, limit_ranges)[kind == "limits"] for one in _containers(pod))


def limit_problems(pods: Sequence[Pod], limit_ranges: Sequence[Object]) -> list[str]:
    """Pods that a LimitRange of the namespace refuses, or whose limits it sets below what they ask for."""
    problems = []
    for item in (item for one in limit_ranges for item in one["spec"]["limits"]):
        for bound, more, outside in (("max", "more", operator.gt), ("min", "less", operator.lt)):
            for resource, text in item.get(bound, {}).items():
                allowed = parse_quantity(text)
                refused = [
                    pod
                    for pod in pods
                    if any(outside(asked, allowed) for asked in _asked(pod, item["type"], resource, limit_ranges))
                ]
                if refused:
                    problems.append(
                        f"a LimitRange allows {_shown(resource, allowed)} a {item['type'].lower()}; "
                        f"{_names(refused)} ask for {more}"
                    )
    for pod in pods:
        for one in _containers(pod):
            requests, limits = amounts(one, limit_ranges)
            for resource, asked in requests.items():
                if asked > limits.get(resource, asked):
                    problems.append(
                        f"{pod.name} asks for {_shown(resource, asked)}, above its limit of "
                        f"{_shown(resource, limits[resource])} (a LimitRange gives one to containers that state none); "
                        "state a limit in the chart's stages.*.resources"
                    )
    return problems


def _asked(pod: Pod, kind: str, resource: str, limit_ranges: Sequence[Object]) -> list[Decimal]:
    """Requests and limits of a resource: of the pod as a whole, of each of its containers, or of a volume (none)."""
    units = {"Pod": [pod], "Container": _containers(pod)}.get(kind, [])
    return [part[resource] for unit in units for part in amounts(unit, limit_ranges) if resource in part]


def _containers(pod: Pod) -> list[Pod]:
    """The pod once for each container, with that one alone."""
    return [Pod(pod.name, {**pod.spec, "containers": [one]}, {}) for one in pod.spec["containers"]]


# ---- the cluster itself


class Forbidden(Exception):
    """The service account may not look at this."""


class Api:
    """The API server, as far as it is asked here."""

    def __init__(self, connection: client.ApiClient):
        self._client = connection

    def get(self, path: str, **query: Any) -> Object | None:
        """The object at `path`, None where it is not there. Raises Forbidden, and TryAgain where nobody answers."""
        request = self._client.param_serialize(
            "GET",
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        host = self._client.configuration.host
        try:
            answer = self._client.call_api(*request, _request_timeout=TIMEOUT)
            body = answer.read()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TryAgain(f"the Kubernetes API at {host} cannot be reached: {error}") from error
        if answer.status == 404:
            return None
        if answer.status in (401, 403):
            raise Forbidden(path)
        if answer.status != 200:
            raise TryAgain(f"the Kubernetes API at {host} answers {answer.status} to GET {path}: {body[:200]!r}")
        return json.loads(body)

    def list(self, path: str) -> list[Object]:
        """All objects at `path`; none where their kind is unknown. Raises as `get`."""
        items: list[Object] = []
        more: dict[str, str] = {}
        while (page := self.get(path, limit=PAGE, **more)) is not None:
            items += page["items"]
            if not (token := page["metadata"].get("continue")):
                break
            more = {"continue": token}
        return items


def connect() -> tuple[Api, str]:
    """The cluster of this pod and its namespace; outside of a pod those of the KUBECONFIG, for trying things out."""
    try:
        config.load_incluster_config()
        settings = client.Configuration.get_default_copy()
        settings.proxy = None  # HTTPS_PROXY is for the way out of the cluster; Argo's own container does the same
        return Api(client.ApiClient(settings)), NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        try:
            context = config.list_kube_config_contexts()[1]
            config.load_kube_config()
        except (config.ConfigException, OSError):
            raise UserError(f"in_cluster is set, but this is no pod with a service account: {error}") from None
        return Api(client.ApiClient()), context["context"].get("namespace", "default")


def look(api: Api, namespace: str, parameters: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """(problems, notes) about the pods of a run with these parameters of the workflow. The most telling problems come
    first. Raises TryAgain where the API server cannot be reached."""
    problems: list[str] = []
    notes: list[str] = []
    inside = f"/api/v1/namespaces/{namespace}"

    def seen(what: str, ask: Callable[..., Any], *where: Any, default: Any = UNSEEN) -> Any:
        """What `ask` finds; `default`, and a note, where that may not be looked at."""
        try:
            return ask(*where)
        except Forbidden:
            notes.append(f"{what}: not looked at, the service account may not")
            return default

    templates = []
    for name in TEMPLATES:
        path = f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflowtemplates/{name}"
        template = seen(f"WorkflowTemplate {name}", api.get, path)
        if template is UNSEEN:
            return [], notes
        if template is None:
            return [f"WorkflowTemplate {name} is not in namespace {namespace}; install the chart there"], notes
        templates.append(template)
    run = pods(templates, parameters)
    limit_ranges = seen("LimitRanges", api.list, f"{inside}/limitranges", default=[])

    nodes: Any = UNSEEN
    if parameters.get("check_nodes") != "false":
        nodes = seen("nodes", api.list, "/api/v1/nodes")
    for kind, plural, wanted in (
        ("Secret", "secrets", wanted_secrets(run)),
        ("ConfigMap", "configmaps", wanted_config_maps(run)),
    ):
        for name, keys in wanted.items():
            there = seen(f"{kind} {name}", api.get, f"{inside}/{plural}/{name}")
            problems += [] if there is UNSEEN else key_problems(kind, name, there, keys)
    classes = seen("StorageClasses", api.list, "/apis/storage.k8s.io/v1/storageclasses", default=None)
    volumes: dict[str, Object] = {}
    for name, users in wanted_claims(run).items():
        claim = seen(f"PersistentVolumeClaim {name}", api.get, f"{inside}/persistentvolumeclaims/{name}")
        problem, note = (None, None) if claim is UNSEEN else claim_problem(name, claim, classes, users)
        problems += [problem] if problem else []
        notes += [note] if note else []
        if claim in (UNSEEN, None):
            continue
        if bound := claim["spec"].get("volumeName"):
            volume = seen(f"PersistentVolume {bound}", api.get, f"/api/v1/persistentvolumes/{bound}", default=None)
            volumes |= {name: volume} if volume else {}
        if parameters.get("shards", "1") != "1" and _one_node(claim, nodes):
            notes.append(
                f"PersistentVolumeClaim {name} is {', '.join(claim['spec']['accessModes'])}: shards that start on "
                "another node wait until the first ones have ended; a claim with ReadWriteMany (the chart's "
                "cache.existingClaim, or cache.accessModes before the claim is made) lets them run beside each other"
            )
    if nodes is not UNSEEN:
        problems = node_problems(run, nodes, limit_ranges, volumes) + problems
    for kind, path, field in (
        ("ServiceAccount", f"{inside}/serviceaccounts", "serviceAccountName"),
        ("PriorityClass", "/apis/scheduling.k8s.io/v1/priorityclasses", "priorityClassName"),
        ("RuntimeClass", "/apis/node.k8s.io/v1/runtimeclasses", "runtimeClassName"),
    ):
        for name in sorted({pod.spec[field] for pod in run} - {""}):
            if seen(f"{kind} {name}", api.get, f"{path}/{name}") is None:
                problems.append(f"{kind} {name} is missing ({_names(p for p in run if p.spec[field] == name)} want it)")
    for name in sorted({pod.labels[QUEUE] for pod in run if pod.labels.get(QUEUE)}):
        problem, note = seen(f"LocalQueue {name}", _queue, api, namespace, name, default=(None, None))
        problems += [problem] if problem else []
        notes += [note] if note else []
    quotas = seen("ResourceQuotas", api.list, f"{inside}/resourcequotas", default=[])
    found, said = quota_problems(run, quotas, limit_ranges)
    return problems + found + limit_problems(run, limit_ranges), notes + said


def _one_node(claim: Object, nodes: Any) -> bool:
    """Whether only one node at a time can mount what several nodes may have to."""
    modes = set(claim["spec"].get("accessModes", ()))
    return bool(modes) and modes <= {"ReadWriteOnce", "ReadWriteOncePod"} and (nodes is UNSEEN or len(nodes) > 1)


def _queue(api: Api, namespace: str, name: str) -> tuple[str | None, str | None]:
    """(problem, note) about the LocalQueue that pods are labelled with."""
    group = api.get("/apis/kueue.x-k8s.io")
    if group is None:
        return None, f"pods are labelled with the queue {name}, but the cluster has no Kueue: the label does nothing"
    version = group["preferredVersion"]["version"]
    if api.get(f"/apis/kueue.x-k8s.io/{version}/namespaces/{namespace}/localqueues/{name}") is None:
        return f"LocalQueue {name} of Kueue is missing: pods would wait for ever", None
    return None, None

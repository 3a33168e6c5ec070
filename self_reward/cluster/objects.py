"""Secrets, ConfigMaps and PersistentVolumeClaims that pods refer to by name."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from self_reward.cluster import Findings
from self_reward.cluster.pods import Object, Pod, names

DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"

Wanted = dict[str, dict[str, list[Pod]]]  # name -> key -> pods that need it; the key '' is the object as a whole


def wanted_secrets(pods: Sequence[Pod]) -> Wanted:
    """Secrets that pods cannot start without."""
    return _wanted(pods, "secretKeyRef", "secretRef", lambda volume: (volume.get("secret"), "secretName"))


def wanted_config_maps(pods: Sequence[Pod]) -> Wanted:
    """ConfigMaps that pods cannot start without."""
    return _wanted(pods, "configMapKeyRef", "configMapRef", lambda volume: (volume.get("configMap"), "name"))


def _wanted(
    pods: Sequence[Pod], by_key: str, whole: str, of_volume: Callable[[Object], tuple[Object | None, str]]
) -> Wanted:
    wanted: Wanted = {}

    def add(pod: Pod, reference: Object | None, name: str, keys: Iterable[str]) -> None:
        if reference and not reference.get("optional"):
            for key in keys:
                wanted.setdefault(reference[name], {}).setdefault(key, []).append(pod)

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
    return wanted


def wanted_claims(pods: Sequence[Pod]) -> dict[str, list[Pod]]:
    """PersistentVolumeClaims that pods mount, by name."""
    wanted: dict[str, list[Pod]] = {}
    for pod in pods:
        for volume in pod.spec["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                wanted.setdefault(claim["claimName"], []).append(pod)
    return wanted


def key_problems(kind: str, name: str, content: Object | None, wanted: Mapping[str, Sequence[Pod]]) -> list[str]:
    """What is wrong with a Secret or ConfigMap. `content`: the object, None if it does not exist; `wanted`: the keys
    that pods need of it."""
    keys = [key for key in wanted if key]
    if content is None:
        users = names(pod for group in wanted.values() for pod in group)
        needed = f"needed by {users}" + (f"; keys: {', '.join(keys)}" if keys else "")
        create = f": kubectl create secret generic {name}" + "".join(f" --from-file={key}=FILE" for key in keys)
        return [f"{kind} {name} is missing ({needed}){create if kind == 'Secret' else ''}"]
    existing = {**content.get("data", {}), **content.get("binaryData", {})}
    has = ", ".join(sorted(existing)) or "none"
    return [
        f"{kind} {name} has no key {key} (needed by {names(wanted[key])}); it has {has}"
        for key in keys
        if key not in existing
    ]


def check_claim(name: str, claim: Object | None, classes: Sequence[Object] | None, users: Sequence[Pod]) -> Findings:
    """Whether a PersistentVolumeClaim (None: it does not exist) has a volume, or can get one. `classes`: all
    StorageClasses, None if they cannot be read."""
    where = f"PersistentVolumeClaim {name} (mounted by {names(users)})"
    if claim is None:
        return Findings([f"{where} is missing; the chart creates it, or takes the name of an existing one"])
    phase, spec = claim.get("status", {}).get("phase"), claim["spec"]
    if phase == "Lost":
        return Findings([f"{where} is Lost: its volume {spec.get('volumeName', '')} is gone; delete and recreate it"])
    if phase != "Pending" or spec.get("volumeName") or classes is None:
        return Findings()
    by_name = {item["metadata"]["name"]: item for item in classes}
    has, wanted = ", ".join(sorted(by_name)) or "none", spec.get("storageClassName")
    if wanted is None:
        wanted = next((class_name for class_name, item in by_name.items() if _is_default(item)), None)
        if wanted is None:
            why = f"none of {has} is the default" if by_name else "the cluster has none"
            return Findings([f"{where} is Pending: it names no storage class, and {why}"])
    if wanted == "":
        problem = f"{where} is Pending: it waits for a volume made by hand (storageClassName ''), and none fits"
        return Findings([problem])
    if wanted not in by_name:
        problem = f"{where} is Pending: there is no storage class {wanted} (the cluster has {has}), and no volume fits"
        return Findings([problem])
    if by_name[wanted].get("volumeBindingMode") == "WaitForFirstConsumer":
        note = (
            f"{where} gets its volume where the first pod runs (fetch-model, on CPU). Where volumes belong to a zone "
            "or a node, give the chart's stages.fetch-model the nodeSelector of the GPU nodes"
        )
    else:
        note = f"{where} is still Pending; pods wait until {by_name[wanted]['provisioner']} has created its volume"
    return Findings(notes=[note])


def _is_default(storage_class: Object) -> bool:
    return storage_class["metadata"].get("annotations", {}).get(DEFAULT_CLASS) == "true"

"""Which pods a run has, what each is made of, and how much it asks for."""

from decimal import Decimal

import pytest

from self_reward.cluster.objects import wanted_claims, wanted_secrets
from self_reward.cluster.pods import pods_of_run, resources_of
from tests.support.kubernetes_objects import DEFAULTS, GIB, pod, templates


def test_pods_have_the_resources_that_the_parameters_ask_for():
    given = {**DEFAULTS, "train_gpus": "4", "generate_gpus": "0", "shards": "2"}
    pods = {pod.name: pod for pod in pods_of_run(templates(), given)}
    assert list(pods) == [
        "fetch-model", "train", "generate", "generate-shard", "merge", "gen-preferences", "export"
    ]  # fmt: skip
    gpus = {name: resources_of(pod).requests.get("nvidia.com/gpu", 0) for name, pod in pods.items()}
    assert gpus.pop("train") == 4 and not any(gpus.values())
    assert resources_of(pods["train"]).requests["memory"] >= GIB
    assert list(wanted_secrets(list(pods.values()))) == ["self-reward"]
    assert list(wanted_secrets(list(pods.values()))["self-reward"]) == ["OXEN_TOKEN"]
    assert set(wanted_claims(list(pods.values()))) == {"self-reward-cache"}
    assert {pod.spec["serviceAccountName"] for pod in pods.values()} == {"self-reward"}


def test_pods_that_the_parameters_switch_off_are_left_out():
    given = {**DEFAULTS, "shards": "1", "export_merged": "false"}
    assert [pod.name for pod in pods_of_run(templates(), given)] == [
        "fetch-model", "train", "generate", "gen-preferences"
    ]  # fmt: skip


def pods_of(leaf=None, **shared):
    leaf = {"name": "one", "container": {"image": "x"}, **(leaf or {})}
    return pods_of_run(
        [{"spec": {"templates": [leaf, {"name": "flow", "steps": []}], **shared}}], {"gpus": "2", "a": "b"}
    )


def test_leaf_settings_override_shared_ones_as_in_argo():
    shared = {"nodeSelector": {"a": "1"}, "tolerations": [{"key": "t"}], "podPriorityClassName": "low"}
    (pod,) = pods_of(**shared, podMetadata={"labels": {"x": "1", "y": "1"}})
    assert (pod.spec["nodeSelector"], pod.spec["tolerations"]) == ({"a": "1"}, [{"key": "t"}])
    assert (pod.spec["priorityClassName"], pod.spec["serviceAccountName"]) == ("low", "default")
    leaf = {"nodeSelector": {"b": "2"}, "tolerations": [{"key": "u"}], "metadata": {"labels": {"y": "2"}}}
    (pod,) = pods_of(leaf, **shared, podMetadata={"labels": {"x": "1", "y": "1"}})
    assert (pod.spec["nodeSelector"], pod.spec["tolerations"]) == ({"b": "2"}, [{"key": "u"}])
    assert pod.labels == {"x": "1", "y": "2"}


def test_patches_are_filled_with_parameters_and_merged_by_name():
    patch = '{"containers": [{"name": "main", "resources": {"limits": {"gpu": "{{ workflow.parameters.gpus }}"}}}]}'
    container = {"image": "x", "resources": {"limits": {"memory": "1Gi"}}, "env": [{"name": "A", "value": "b"}]}
    (pod,) = pods_of({"container": container, "podSpecPatch": patch}, podSpecPatch="nodeSelector: {disk: ssd}")
    assert pod.spec["containers"] == [
        {"name": "main", **container, "resources": {"limits": {"memory": "1Gi", "gpu": "2"}}},
    ]
    assert pod.spec["nodeSelector"] == {"disk": "ssd"}
    (pod,) = pods_of({"podSpecPatch": "nodeSelector: {disk: hdd}"}, podSpecPatch="nodeSelector: {disk: ssd}")
    assert pod.spec["nodeSelector"] == {"disk": "hdd"}


@pytest.mark.parametrize("patch", ['{"a": {{= 1 }}}', "just text", '{"containers": [{"name": "main", "x": "{{=1}}"}]}'])
def test_patch_that_only_argo_can_complete_is_ignored(patch):
    assert pods_of({"podSpecPatch": patch})[0].name == "one"


def test_only_mounted_volumes_count():
    volumes = [{"name": n, "persistentVolumeClaim": {"claimName": f"claim-{n}"}} for n in ("a", "b")]
    run = pods_of({"container": {"image": "x", "volumeMounts": [{"name": "b", "mountPath": "/b"}]}}, volumes=volumes)
    assert list(wanted_claims(run)) == ["claim-b"]


def test_requests_default_to_limits_and_limit_ranges():
    ranges = [{"spec": {"limits": [{"type": "Container", "default": {"cpu": "2"}, "defaultRequest": {"cpu": "500m"}}]}}]
    assert resources_of(pod(limits={"memory": "1Gi"})) == ({"memory": GIB}, {"memory": GIB})
    assert resources_of(pod(), ranges) == ({"cpu": Decimal("0.5")}, {"cpu": 2})
    assert resources_of(pod(limits={"cpu": "4"}), ranges) == ({"cpu": 4}, {"cpu": 4})
    assert resources_of(pod(requests={"cpu": "{{=x}}"})) == ({}, {})

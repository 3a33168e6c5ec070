"""The check of a whole run. The API server is the one double here."""

import re

import pytest
from kubernetes import client
from kubernetes.config import incluster_config

from self_reward.cluster import Findings, api
from self_reward.cluster.check import check_run
from self_reward.cluster.pods import QUEUE
from self_reward.errors import TryAgain
from tests.deploy.test_helm import rendered
from tests.support.fake_kubernetes import FakeCluster, serving
from tests.support.kubernetes_objects import DEFAULTS, claim, node, quota, templates, term

FLOWS = "/apis/argoproj.io/v1alpha1/namespaces/ns/workflowtemplates"
INSIDE = "/api/v1/namespaces/ns"


@pytest.fixture
def place():
    """A cluster that has all that a run needs, and a function that checks it."""
    fake = FakeCluster()
    for template in templates():
        fake.put(f"{FLOWS}/{template['metadata']['name']}", **template)
    fake.put(f"{INSIDE}/secrets/self-reward", data={"OXEN_TOKEN": "c2VjcmV0"})
    fake.put(f"{INSIDE}/persistentvolumeclaims/self-reward-cache", **claim("Bound"))
    fake.put(f"{INSIDE}/serviceaccounts/self-reward", metadata={"name": "self-reward"})
    fake.put("/api/v1/nodes/a", **node("a", gpu="8", cpu="64", memory="512Gi"))

    def check(**given):
        return check_run(api.Api(client.ApiClient(client.Configuration(host=url))), "ns", {**DEFAULTS, **given})

    with serving(fake) as url:
        fake.check = check
        yield fake


def test_a_cluster_with_everything_has_no_findings(place):
    assert place.check() == Findings()


def test_everything_missing_is_reported_at_once_nodes_first(place):
    place.objects = {path: content for path, content in place.objects.items() if "workflowtemplates" in path}
    place.put("/api/v1/nodes/a", **node("a", gpu="2", cpu="64", memory="512Gi"))
    place.put(f"{INSIDE}/resourcequotas/q", **quota({"requests.nvidia.com/gpu": "3"}))
    findings = place.check(train_gpus="4", shards="2")
    subjects = [text.split(" is ")[0].split(" allows ")[0].split(":")[0] for text in findings.problems]
    assert not findings.notes and subjects == [
        "train",
        "Secret self-reward",
        "PersistentVolumeClaim self-reward-cache (mounted by fetch-model, train, generate, generate-shard and 3 more)",
        "ServiceAccount self-reward",
        "ResourceQuota q",
    ]
    assert "a has 2 nvidia.com/gpu" in findings.problems[0]


def test_config_maps_and_limit_ranges_are_checked(place):
    leaves = {leaf["name"]: leaf for leaf in place.objects[f"{FLOWS}/self-reward-stages"]["spec"]["templates"]}
    leaf = leaves["merge"]
    leaf["container"]["env"].append({"name": "A", "valueFrom": {"configMapKeyRef": {"name": "texts", "key": "a"}}})
    limits = {"type": "Container", "max": {"memory": "1Gi"}, "defaultRequest": {"example.org/part": "1"}}
    place.put(f"{INSIDE}/limitranges/l", spec={"limits": [limits]})
    findings = place.check(shards="2")
    problems = findings.problems
    assert not findings.notes and "asks for 1 example.org/part, and no node" in problems[0]
    assert "ConfigMap texts is missing (needed by merge; keys: a)" in problems
    assert problems[-1].startswith(
        "a LimitRange allows at most 1 GiB of memory per container; these pods ask for more: fetch-model, train"
    )


def test_cache_that_two_nodes_cannot_mount_is_noted_for_shards(place):
    def notes(modes, **given):
        place.put(f"{INSIDE}/persistentvolumeclaims/self-reward-cache", **claim("Bound", accessModes=modes))
        findings = place.check(**given)
        assert not findings.problems
        return "; ".join(findings.notes)

    assert notes(["ReadWriteOnce"], shards="2") == ""
    place.put("/api/v1/nodes/b", **node("b", gpu="8", cpu="64", memory="512Gi"))
    assert "self-reward-cache is ReadWriteOnce: shards that start on another node wait" in notes(
        ["ReadWriteOnce"], shards="2"
    )
    assert notes(["ReadWriteOnce"]) == notes(["ReadWriteOnce", "ReadWriteMany"], shards="2") == ""


def test_nodes_are_not_read_with_check_nodes_off(place):
    assert place.check(check_nodes="false", train_gpus="64") == Findings()
    assert not [path for path in place.seen if "nodes" in path]


def test_nodes_are_read_in_pages(place, monkeypatch):
    monkeypatch.setattr(api, "PAGE", 2)
    for i in range(5):
        place.put(f"/api/v1/nodes/n{i}", **node(f"n{i}", gpu=str(i), cpu="64", memory="512Gi"))
    (problem,) = place.check(train_gpus="9", generate_gpus="0").problems
    assert all(f"n{i} has {i} nvidia.com/gpu" in problem for i in range(5))
    assert place.seen.count("/api/v1/nodes") == 3


@pytest.mark.parametrize("what", ["nodes", "secrets", "persistentvolumeclaims", "storageclasses", "resourcequotas",
                                  "limitranges", "serviceaccounts", "workflowtemplates"])  # fmt: skip
def test_missing_read_permission_is_a_note_not_a_problem(place, what):
    place.answers = [(f"/{what}", 403)]
    findings = place.check()
    (note,) = findings.notes
    assert not findings.problems and note.endswith(": not checked, the service account may not read it")


@pytest.mark.parametrize("name", ["self-reward", "self-reward-stages"])
def test_missing_template_is_reported(place, name):
    del place.objects[f"{FLOWS}/{name}"]
    problem = f"WorkflowTemplate {name} is not in namespace ns; install the chart there"
    assert place.check() == Findings([problem])


@pytest.mark.parametrize("status", [500, 429, 302])
def test_failing_api_server_means_try_again(place, status):
    place.answers = [("/secrets", status)]
    with pytest.raises(TryAgain, match=f"answers {status} to GET {INSIDE}/secrets"):
        place.check()


def test_missing_api_server_means_try_again():
    with serving(FakeCluster()) as url:
        pass
    connection = api.Api(client.ApiClient(client.Configuration(host=url)))
    with pytest.raises(TryAgain, match=f"the Kubernetes API at {url} cannot be reached"):
        check_run(connection, "ns", DEFAULTS)


def test_a_queue_of_kueue(place):
    place.objects[f"{FLOWS}/self-reward"]["spec"]["podMetadata"]["labels"][QUEUE] = "gpus"
    findings = place.check()
    assert not findings.problems and "no Kueue" in findings.notes[0]
    place.put("/apis/kueue.x-k8s.io", preferredVersion={"version": "v1beta1"})
    assert "LocalQueue gpus of Kueue is missing" in place.check().problems[0]
    place.put("/apis/kueue.x-k8s.io/v1beta1/namespaces/ns/localqueues/gpus")
    assert place.check() == Findings()


def test_the_volume_of_a_claim_is_checked(place):
    place.put(f"{INSIDE}/persistentvolumeclaims/self-reward-cache", **claim("Bound", volumeName="pv-1"))
    assert place.check() == Findings()  # a volume that was removed meanwhile: Kubernetes says so of the claim
    elsewhere = {"nodeAffinity": {"required": {"nodeSelectorTerms": [term("zone", "In", "b")]}}}
    place.put("/api/v1/persistentvolumes/pv-1", spec=elsewhere)
    assert "a cannot mount PersistentVolumeClaim self-reward-cache" in place.check().problems[0]


def test_a_runtime_class(place):
    for leaf in place.objects[f"{FLOWS}/self-reward-stages"]["spec"]["templates"]:
        leaf["podSpecPatch"] = '{"runtimeClassName": "nvidia"}'
    assert "RuntimeClass nvidia is missing" in place.check().problems[0]
    place.put("/apis/node.k8s.io/v1/runtimeclasses/nvidia")
    assert place.check() == Findings()


def test_inside_a_pod_no_proxy_is_used_for_the_api_server(tmp_path, monkeypatch):
    """HTTPS_PROXY is for connections that leave the cluster."""
    for name, text in (("token", "t"), ("ca.crt", "c"), ("namespace", "ns\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(api, "NAMESPACE_FILE", tmp_path / "namespace")
    given = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443", "HTTPS_PROXY": "http://p:1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(client.ApiClient, "__init__", lambda self, settings=None: setattr(self, "settings", settings))
    monkeypatch.setattr(client.Configuration, "_default", None)
    connection, namespace = api.connect()
    settings = connection._client.settings
    assert (settings.host, settings.proxy, namespace) == ("https://10.0.0.1:443", None, "ns")


def test_the_chart_lets_plan_read_what_it_reads_and_no_more(place):
    """A missing right would turn a check into a note that nobody reads."""
    stages = place.objects[f"{FLOWS}/self-reward-stages"]["spec"]["templates"]
    for leaf in stages:
        leaf["podSpecPatch"] = '{"runtimeClassName": "nvidia"}'
        leaf["priorityClassName"] = "batch"
        leaf.setdefault("metadata", {}).setdefault("labels", {})[QUEUE] = "gpus"
    place.put("/apis/kueue.x-k8s.io", preferredVersion={"version": "v1beta1"})
    place.put(f"{INSIDE}/persistentvolumeclaims/self-reward-cache", **claim("Bound", volumeName="pv-1"))
    stages[-1]["container"]["env"].append({"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "a"}}})
    place.check()
    asked = {
        (match["group"] or "", match["kind"], "get" if match["name"] else "list")
        for path in set(place.seen) - {"/apis/kueue.x-k8s.io"}  # discovery: everybody may
        for match in [re.fullmatch(
            r"/(api|apis/(?P<group>[\w.-]+))/v\w+(/namespaces/ns)?/(?P<kind>\w+)(/(?P<name>[\w.-]+))?", path)]
    }  # fmt: skip
    values = {"queue": "gpus", "stages": {"train": {"priorityClassName": "batch", "runtimeClassName": "nvidia"}}}
    rules = [
        rule
        for item in rendered(values)
        if item["metadata"]["name"].startswith("self-reward-plan")
        for rule in item.get("rules", ())
    ]
    allowed = {(group, kind, verb) for rule in rules for group in rule["apiGroups"] for kind in rule["resources"]
               for verb in rule["verbs"]}  # fmt: skip
    report = {("argoproj.io", "workflowtaskresults", verb) for verb in ("create", "patch")}
    assert len(asked) == 13 and allowed - report == asked


def test_a_priority_class(place):
    place.objects[f"{FLOWS}/self-reward"]["spec"]["podPriorityClassName"] = "low"
    assert "PriorityClass low is missing" in place.check().problems[0]
    place.put("/apis/scheduling.k8s.io/v1/priorityclasses/low")
    assert place.check() == Findings()

"""cluster.py: what pods ask for against what a cluster has. The API server is the one double here."""

import re
from decimal import Decimal
from pathlib import Path

import pytest
from kubernetes import client
from kubernetes.config import incluster_config

from self_reward import cluster
from self_reward.errors import TryAgain
from self_reward.parameters import generated
from tests.deploy.test_helm import rendered
from tests.support import argo
from tests.support.fake_kubernetes import FakeCluster, serving

ROOT = Path(__file__).parents[2]
GIB = 2**30
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
    return cluster.Pod(name, {**whole, **spec}, labels or {})


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


# ---- the pods


def test_the_pods_of_the_templates_have_gpus_claims_and_secrets_as_the_parameters_say():
    given = {**DEFAULTS, "train_gpus": "4", "generate_gpus": "0", "shards": "2"}
    found = {one.name: one for one in cluster.pods(templates(), given)}
    assert list(found) == [
        "fetch-model", "train", "generate", "generate-shard", "merge", "gen-preferences", "export"
    ]  # fmt: skip
    gpus = {name: cluster.amounts(one)[0].get("nvidia.com/gpu", 0) for name, one in found.items()}
    assert gpus.pop("train") == 4 and not any(gpus.values())
    assert cluster.amounts(found["train"])[0]["memory"] >= GIB
    assert list(cluster.wanted_secrets(list(found.values()))) == ["self-reward"]
    assert list(cluster.wanted_secrets(list(found.values()))["self-reward"]) == ["OXEN_TOKEN"]
    assert set(cluster.wanted_claims(list(found.values()))) == {"self-reward-cache"}
    assert {one.spec["serviceAccountName"] for one in found.values()} == {"self-reward"}


def test_pods_that_the_parameters_leave_out_ask_for_nothing():
    given = {**DEFAULTS, "shards": "1", "export_merged": "false"}
    assert [one.name for one in cluster.pods(templates(), given)] == [
        "fetch-model", "train", "generate", "gen-preferences"
    ]  # fmt: skip


def made(leaf=None, **shared):
    leaf = {"name": "one", "container": {"image": "x"}, **(leaf or {})}
    return cluster.pods(
        [{"spec": {"templates": [leaf, {"name": "flow", "steps": []}], **shared}}], {"gpus": "2", "a": "b"}
    )


def test_what_all_pods_share_is_the_first_templates_and_a_leaf_wins_as_in_argo():
    shared = {"nodeSelector": {"a": "1"}, "tolerations": [{"key": "t"}], "podPriorityClassName": "low"}
    (one,) = made(**shared, podMetadata={"labels": {"x": "1", "y": "1"}})
    assert (one.spec["nodeSelector"], one.spec["tolerations"]) == ({"a": "1"}, [{"key": "t"}])
    assert (one.spec["priorityClassName"], one.spec["serviceAccountName"]) == ("low", "default")
    leaf = {"nodeSelector": {"b": "2"}, "tolerations": [{"key": "u"}], "metadata": {"labels": {"y": "2"}}}
    (one,) = made(leaf, **shared, podMetadata={"labels": {"x": "1", "y": "1"}})
    assert (one.spec["nodeSelector"], one.spec["tolerations"]) == ({"b": "2"}, [{"key": "u"}])
    assert one.labels == {"x": "1", "y": "2"}


def test_patches_are_merged_by_name_with_the_parameters_in_their_places():
    patch = '{"containers": [{"name": "main", "resources": {"limits": {"gpu": "{{ workflow.parameters.gpus }}"}}}]}'
    container = {"image": "x", "resources": {"limits": {"memory": "1Gi"}}, "env": [{"name": "A", "value": "b"}]}
    (one,) = made({"container": container, "podSpecPatch": patch}, podSpecPatch="nodeSelector: {disk: ssd}")
    assert one.spec["containers"] == [
        {"name": "main", **container, "resources": {"limits": {"memory": "1Gi", "gpu": "2"}}},
    ]
    assert one.spec["nodeSelector"] == {"disk": "ssd"}
    (one,) = made({"podSpecPatch": "nodeSelector: {disk: hdd}"}, podSpecPatch="nodeSelector: {disk: ssd}")
    assert one.spec["nodeSelector"] == {"disk": "hdd"}


@pytest.mark.parametrize("patch", ['{"a": {{= 1 }}}', "just text", '{"containers": [{"name": "main", "x": "{{=1}}"}]}'])
def test_a_patch_that_only_argo_can_complete_is_no_error(patch):
    assert made({"podSpecPatch": patch})[0].name == "one"


def test_only_volumes_that_are_mounted_count():
    volumes = [{"name": n, "persistentVolumeClaim": {"claimName": f"claim-{n}"}} for n in ("a", "b")]
    run = made({"container": {"image": "x", "volumeMounts": [{"name": "b", "mountPath": "/b"}]}}, volumes=volumes)
    assert list(cluster.wanted_claims(run)) == ["claim-b"]


def test_amounts_follow_limits_and_the_namespaces_defaults():
    ranges = [{"spec": {"limits": [{"type": "Container", "default": {"cpu": "2"}, "defaultRequest": {"cpu": "500m"}}]}}]
    assert cluster.amounts(pod(limits={"memory": "1Gi"})) == ({"memory": GIB}, {"memory": GIB})
    assert cluster.amounts(pod(), ranges) == ({"cpu": Decimal("0.5")}, {"cpu": 2})
    assert cluster.amounts(pod(limits={"cpu": "4"}), ranges) == ({"cpu": 4}, {"cpu": 4})
    assert cluster.amounts(pod(requests={"cpu": "{{=x}}"})) == ({}, {})


# ---- nodes

GPU = {"nvidia.com/gpu": "4"}
TAINT = taint("nvidia.com/gpu")
EXISTS = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def required(*terms):
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}


def term(key, operator, *values, of="matchExpressions"):
    return {of: [{"key": key, "operator": operator, **({"values": list(values)} if values else {})}]}


def near(*terms, **spec):
    return pod(affinity={"nodeAffinity": required(*terms)}, **spec)


@pytest.mark.parametrize(
    "asked, nodes, said",
    [
        (pod(limits=GPU), [node("a", gpu="4")], None),
        (pod(limits={"nvidia.com/gpu": "0"}), [node("a")], None),
        (pod(limits=GPU), [node("a", gpu="2"), node("b")], "4 nvidia.com/gpu, and no node that takes it has as much: "
         "a has 2 nvidia.com/gpu, b has 0 nvidia.com/gpu"),
        (pod(limits=GPU, tolerations=EXISTS), [node("a", [TAINT], gpu="8")], None),
        (pod(limits=GPU), [node("a", [TAINT], gpu="8")], "no node takes this pod: a has the taint nvidia.com"),
        (pod(limits=GPU), [node("a", [TAINT], gpu="8"), node("b")], "large enough, but a has the taint"),
        (pod(tolerations=EXISTS), [node("a", [taint("x", value="y")])], "a has the taint x=y:NoSchedule"),
        (pod(tolerations=[{"key": "x", "value": "y"}]), [node("a", [taint("x", "NoExecute", "y")])], None),
        (pod(tolerations=[{"key": "x", "value": "z"}]), [node("a", [taint("x", value="y")])], "taint x=y"),
        (pod(tolerations=[{"operator": "Exists"}]), [node("a", [taint("x", value="y")])], None),
        (pod(tolerations=EXISTS), [node("a", [taint("nvidia.com/gpu", "NoExecute")])], "gpu:NoExecute"),
        (pod(), [node("a", [taint("x", "PreferNoSchedule")])], None),
        (pod(), [node("a", [taint("node.kubernetes.io/not-ready")])], None),
        (pod(), [node("a", unschedulable=True)], "a is cordoned"),
        (pod(nodeSelector={"disk": "ssd"}), [node("a", labels={"disk": "hdd"})], "a has not the label disk=ssd"),
        (pod(nodeSelector={"disk": "ssd"}), [node("a", labels={"disk": "ssd"})], None),
        (pod(requests={"memory": "128Gi"}), [node("a")], "asks for 128 GiB of memory"),
        (pod(requests={"memory": "128Gi"}), [node("a")], "a has 64 GiB of memory"),
        (pod(requests={"cpu": "6", "memory": "100Gi", "nvidia.com/gpu": "0"}),
         [node("a"), node("b", cpu="2", memory="200Gi")],
         "asks for 6 cpu and 100 GiB of memory, and no node"),
        (pod(requests={"cpu": "8"}), [node("a")], None),
        (pod(requests={"cpu": "8100m"}), [node("a")], "8.1 cpu"),
        (pod(), [], "there is none"),
        (near(term("zone", "In", "a", "b")), [node("n", labels={"zone": "c"})], "n is not in the pod's node affinity"),
        (near(term("zone", "In", "a", "b")), [node("n", labels={"zone": "b"})], None),
        (near(term("zone", "In", "a"), term("disk", "Exists")), [node("n", labels={"disk": "x"})], None),
        (near(term("zone", "NotIn", "a"), ), [node("n", labels={"zone": "a"})], "node affinity"),
        (near(term("zone", "DoesNotExist")), [node("n", labels={"zone": "a"})], "node affinity"),
        (near(term("zone", "DoesNotExist")), [node("n")], None),
        (near(term("metadata.name", "In", "n", of="matchFields")), [node("n")], None),
        (near(term("metadata.name", "In", "m", of="matchFields")), [node("n")], "node affinity"),
        (near(term("cores", "Gt", "4")), [node("n")], None),
        (pod(labels={cluster.QUEUE: "q"}), [node("a", [taint("x")])], None),
        (pod(labels={cluster.QUEUE: "q"}), [node("a", unschedulable=True)], "a is cordoned"),
    ],
)  # fmt: skip
def test_a_pod_that_no_node_could_run_is_named_with_what_the_nodes_have(asked, nodes, said):
    problems = cluster.node_problems([asked, asked], nodes)
    assert len(problems) == (1 if said else 0)
    if said:
        assert problems[0].startswith("train: ") and said in problems[0] and "check_nodes: false" in problems[0]


def test_a_volume_that_is_bound_elsewhere_keeps_its_pods_from_a_node():
    asked = pod(limits=GPU, volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "cache"}}])
    nodes = [node("a", gpu="8", labels={"zone": "a"}), node("b", labels={"zone": "b"})]
    volume = {"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [term("zone", "In", "b")]}}}}
    (problem,) = cluster.node_problems([asked], nodes, volumes={"cache": volume})
    assert "a cannot mount PersistentVolumeClaim cache, whose volume is bound to another zone or node" in problem
    assert cluster.node_problems([asked], nodes, volumes={"other": volume}) == []
    assert cluster.node_problems([asked], nodes, volumes={"cache": {"spec": {}}}) == []


def test_equal_pods_make_one_problem_and_many_nodes_are_counted():
    run = [pod("a", limits=GPU), pod("b", limits=GPU), pod("c", limits={"nvidia.com/gpu": "3"})]
    problems = cluster.node_problems(run, [node(f"n{i}", gpu="1") for i in range(20)])
    assert [problem.split(":")[0] for problem in problems] == ["a, b", "c"]
    assert "n7 has 1 nvidia.com/gpu and 12 more" in problems[0]
    assert [problem.count("check_nodes") for problem in problems] == [0, 1]


# ---- names


def test_secrets_and_config_maps_that_are_optional_are_not_wanted():
    def variable(kind, name, key, **more):
        return {"name": key, "valueFrom": {kind: {"name": name, "key": key, **more}}}

    containers = [
        {
            "name": "main",
            "env": [variable("secretKeyRef", "s", "A"), variable("secretKeyRef", "s", "B", optional=True),
                    variable("configMapKeyRef", "m", "C"), {"name": "D", "value": "d"}],
            "envFrom": [{"secretRef": {"name": "whole"}}, {"configMapRef": {"name": "off", "optional": True}}],
        }
    ]  # fmt: skip
    volumes = [
        {"name": "v", "secret": {"secretName": "files", "items": [{"key": "k", "path": "p"}]}},
        {"name": "w", "configMap": {"name": "texts"}},
    ]
    run = [pod(containers=containers, volumes=volumes)]
    assert {name: list(keys) for name, keys in cluster.wanted_secrets(run).items()} == {
        "s": ["A"], "whole": [""], "files": ["k"],
    }  # fmt: skip
    assert {name: list(keys) for name, keys in cluster.wanted_config_maps(run).items()} == {"m": ["C"], "texts": [""]}


def test_a_secret_that_is_missing_or_lacks_a_key():
    wanted = {"A": [pod("train"), pod("generate")], "": [pod("merge")]}
    assert cluster.key_problems("Secret", "s", {"data": {"A": "x"}}, wanted) == []
    assert cluster.key_problems("Secret", "s", {"data": {"B": "x"}}, wanted) == [
        "Secret s has no key A (train, generate want it); it has B"
    ]
    assert cluster.key_problems("Secret", "s", None, wanted) == [
        "Secret s is missing (train, generate, merge want A of it): kubectl create secret generic s --from-file=A=FILE"
    ]
    assert cluster.key_problems("ConfigMap", "m", None, {"": [pod()]}) == ["ConfigMap m is missing (train want it)"]


def claim(phase="Pending", storage_class=None, **spec):
    return {"spec": {**({"storageClassName": storage_class} if storage_class is not None else {}), **spec},
            "status": {"phase": phase}}  # fmt: skip


def storage_class(name, mode="Immediate", default=False):
    annotations = {cluster.DEFAULT_CLASS: "true"} if default else {}
    return {"metadata": {"name": name, "annotations": annotations}, "provisioner": "p", "volumeBindingMode": mode}


@pytest.mark.parametrize(
    "there, classes, problem, note",
    [
        (None, [], "is missing", None),
        (claim("Bound"), [], None, None),
        (claim("Lost", volumeName="v"), [], "is Lost: its volume v is gone", None),
        (claim(), [], "names no storage class, and the cluster has none", None),
        (claim(), [storage_class("fast")], "none of fast is the default", None),
        (claim(), [storage_class("fast", default=True)], None, "still Pending; pods wait until p has made"),
        (claim(storage_class="slow"), [storage_class("fast")], "no storage class slow (the cluster has fast)", None),
        (
            claim(storage_class="fast"),
            [storage_class("fast", "WaitForFirstConsumer")],
            None,
            "give the chart's stages.fe",
        ),
        (claim(storage_class="fast"), [storage_class("fast")], None, "still Pending"),
        (claim(storage_class=""), [storage_class("fast", default=True)], "a volume made by hand", None),
        (claim(volumeName="v"), [], None, None),
        (claim(), None, None, None),
    ],
)
def test_a_claim_that_will_never_be_bound(there, classes, problem, note):
    found = cluster.claim_problem("cache", there, classes, [pod()])
    for text, expected in zip(found, (problem, note), strict=True):
        assert (expected is None) == (text is None) and (expected is None or expected in text), found


# ---- quotas


def quota(hard, used=None, **spec):
    return {"metadata": {"name": "q"}, "spec": {"hard": hard, **spec}, "status": {"used": used or {}}}


@pytest.mark.parametrize(
    "asked, limit, problem, note",
    [
        (pod(limits=GPU), quota({"requests.nvidia.com/gpu": "4"}), None, None),
        (pod(limits=GPU), quota({"requests.nvidia.com/gpu": "2"}), "allows 2 requests.nvidia.com/gpu in all", None),
        (pod(limits=GPU), quota({"requests.nvidia.com/gpu": "2"}), "one pod alone asks for more: train 4", None),
        (pod(limits=GPU), quota({"requests.nvidia.com/gpu": "4"}, {"requests.nvidia.com/gpu": "1"}), None,
         "has 3 requests.nvidia.com/gpu left now; train must wait"),
        (pod(requests={"memory": "8Gi"}), quota({"memory": "4Gi"}), "allows 4 GiB of memory", None),
        (pod(requests={"memory": "8Gi"}), quota({"limits.memory": "16Gi"}), "wants limits.memory to be stated", None),
        (pod(limits={"memory": "8Gi"}), quota({"limits.memory": "16Gi", "requests.memory": "16Gi"}), None, None),
        (pod(limits={"memory": "8Gi"}), quota({"limits.memory": "4Gi"}), "allows 4 GiB of limits.memory", None),
        (pod(limits={"memory": "8Gi"}), quota({"requests.cpu": "4"}), "wants requests.cpu to be stated", None),
        (pod(), quota({"pods": "0"}), "allows 0 pods", None),
        (pod(), quota({"pods": "5"}, {"pods": "5"}), None, "has 0 pods left"),
        (pod(), quota({"count/workflows.argoproj.io": "0", "requests.storage": "0"}), None, None),
        (pod(), quota({"pods": "0"}, scopes=["NotTerminating"]), None, None),
        (pod(), quota({"pods": "0"}, scopes=["Terminating"]), "allows 0 pods", None),
        (pod(activeDeadlineSeconds=None), quota({"pods": "0"}, scopes=["Terminating"]), None, None),
        (pod(), quota({"pods": "0"}, scopes=["BestEffort"]), None, "is for some pods only (BestEffort)"),
        (pod(), quota({"pods": "0"}, scopeSelector={"matchExpressions": []}), None, "some pods only (scopeSelector)"),
    ],
)  # fmt: skip
def test_quotas(asked, limit, problem, note):
    for expected, found in zip((problem, note), cluster.quota_problems([asked], [limit]), strict=True):
        assert len(found) == (1 if expected else 0) and (not expected or expected in found[0]), found


def test_limit_ranges_state_what_a_pod_does_not_and_refuse_large_ones():
    item = {"type": "Container", "default": {"memory": "2Gi"}, "max": {"memory": "4Gi"}}
    ranges = [{"spec": {"limits": [item, {"type": "PersistentVolumeClaim", "max": {"memory": "1"}}]}}]
    assert cluster.quota_problems([pod()], [quota({"limits.memory": "8Gi"})], ranges) == ([], [])
    assert cluster.limit_problems([pod(), pod("big", limits={"memory": "8Gi"})], ranges) == [
        "a LimitRange allows 4 GiB of memory a container; big ask for more"
    ]


@pytest.mark.parametrize(
    "item, said",
    [
        ({"type": "Container", "min": {"memory": "16Gi"}}, "allows 16 GiB of memory a container; train ask for less"),
        ({"type": "Pod", "max": {"memory": "12Gi"}}, "allows 12 GiB of memory a pod; train ask for more"),
        ({"type": "Container", "max": {"memory": "12Gi"}}, None),
        ({"type": "Pod", "min": {"memory": "12Gi"}}, None),
        ({"type": "Container", "default": {"cpu": "1"}}, "train asks for 4 cpu, above its limit of 1 cpu"),
        ({"type": "Container", "default": {"cpu": "4"}}, None),
    ],
)
def test_limit_ranges(item, said):
    one = {"resources": {"requests": {"cpu": "4"}, "limits": {"memory": "8Gi"}}}
    asked = pod(containers=[{"name": "main", **one}, {"name": "beside", "resources": {"limits": {"memory": "8Gi"}}}])
    problems = cluster.limit_problems([asked], [{"spec": {"limits": [item]}}])
    assert len(problems) == (1 if said else 0) and (not said or said in problems[0]), problems


# ---- the API


FLOWS = "/apis/argoproj.io/v1alpha1/namespaces/ns/workflowtemplates"
INSIDE = "/api/v1/namespaces/ns"


@pytest.fixture
def place():
    """A cluster that lacks nothing, and a function that looks at it."""
    fake = FakeCluster()
    for template in templates():
        fake.put(f"{FLOWS}/{template['metadata']['name']}", **template)
    fake.put(f"{INSIDE}/secrets/self-reward", data={"OXEN_TOKEN": "c2VjcmV0"})
    fake.put(f"{INSIDE}/persistentvolumeclaims/self-reward-cache", **claim("Bound"))
    fake.put(f"{INSIDE}/serviceaccounts/self-reward", metadata={"name": "self-reward"})
    fake.put("/api/v1/nodes/a", **node("a", gpu="8", cpu="64", memory="512Gi"))

    def look(**given):
        return cluster.look(cluster.Api(client.ApiClient(client.Configuration(host=url))), "ns", {**DEFAULTS, **given})

    with serving(fake) as url:
        fake.look = look
        yield fake


def test_a_cluster_that_lacks_nothing(place):
    assert place.look() == ([], [])


def test_all_that_a_bare_namespace_lacks_is_said_at_once_nodes_first(place):
    place.objects = {path: content for path, content in place.objects.items() if "workflowtemplates" in path}
    place.put("/api/v1/nodes/a", **node("a", gpu="2", cpu="64", memory="512Gi"))
    place.put(f"{INSIDE}/resourcequotas/q", **quota({"requests.nvidia.com/gpu": "3"}))
    problems, notes = place.look(train_gpus="4", shards="2")
    assert not notes and [problem.split(" is ")[0].split(" allows ")[0].split(":")[0] for problem in problems] == [
        "train",
        "Secret self-reward",
        "PersistentVolumeClaim self-reward-cache (fetch-model, train, generate, generate-shard and 3 more mount it)",
        "ServiceAccount self-reward",
        "ResourceQuota q",
    ]
    assert "a has 2 nvidia.com/gpu" in problems[0]


def test_config_maps_and_what_the_namespace_limits_are_looked_at_too(place):
    leaf = next(
        one for one in place.objects[f"{FLOWS}/self-reward-stages"]["spec"]["templates"] if one["name"] == "merge"
    )
    leaf["container"]["env"].append({"name": "A", "valueFrom": {"configMapKeyRef": {"name": "texts", "key": "a"}}})
    limits = {"type": "Container", "max": {"memory": "1Gi"}, "defaultRequest": {"example.org/part": "1"}}
    place.put(f"{INSIDE}/limitranges/l", spec={"limits": [limits]})
    problems, notes = place.look(shards="2")
    assert not notes and "asks for 1 example.org/part, and no node" in problems[0]
    assert "ConfigMap texts is missing (merge want a of it)" in problems
    assert problems[-1].startswith("a LimitRange allows 1 GiB of memory a container; fetch-model, train")


def test_shards_that_cannot_mount_the_cache_on_two_nodes_are_a_note(place):
    def looked(modes, **given):
        place.put(f"{INSIDE}/persistentvolumeclaims/self-reward-cache", **claim("Bound", accessModes=modes))
        problems, notes = place.look(**given)
        assert not problems
        return "; ".join(notes)

    assert looked(["ReadWriteOnce"], shards="2") == ""
    place.put("/api/v1/nodes/b", **node("b", gpu="8", cpu="64", memory="512Gi"))
    assert "self-reward-cache is ReadWriteOnce: shards that start on another node wait" in looked(
        ["ReadWriteOnce"], shards="2"
    )
    assert looked(["ReadWriteOnce"]) == looked(["ReadWriteOnce", "ReadWriteMany"], shards="2") == ""


def test_nodes_are_not_asked_for_where_an_autoscaler_makes_them(place):
    assert place.look(check_nodes="false", train_gpus="64") == ([], [])
    assert not [path for path in place.seen if "nodes" in path]


def test_a_large_cluster_comes_in_pages(place, monkeypatch):
    monkeypatch.setattr(cluster, "PAGE", 2)
    for i in range(5):
        place.put(f"/api/v1/nodes/n{i}", **node(f"n{i}", gpu=str(i), cpu="64", memory="512Gi"))
    (problem,), _ = place.look(train_gpus="9", generate_gpus="0")
    assert all(f"n{i} has {i} nvidia.com/gpu" in problem for i in range(5))
    assert place.seen.count("/api/v1/nodes") == 3


@pytest.mark.parametrize("what", ["nodes", "secrets", "persistentvolumeclaims", "storageclasses", "resourcequotas",
                                  "limitranges", "serviceaccounts", "workflowtemplates"])  # fmt: skip
def test_what_may_not_be_looked_at_is_noted_and_refuses_nothing(place, what):
    place.answers = [(f"/{what}", 403)]
    problems, notes = place.look()
    assert not problems and len(notes) == 1 and notes[0].endswith("not looked at, the service account may not"), notes


def test_templates_that_are_not_there(place):
    del place.objects[f"{FLOWS}/self-reward-stages"]
    assert place.look() == (["WorkflowTemplate self-reward-stages is not in namespace ns; install the chart there"], [])


@pytest.mark.parametrize("status", [500, 429, 302])
def test_an_api_server_that_fails_is_tried_again(place, status):
    place.answers = [("/secrets", status)]
    with pytest.raises(TryAgain, match=f"answers {status} to GET {INSIDE}/secrets"):
        place.look()


def test_an_api_server_that_is_not_there_is_tried_again():
    with serving(FakeCluster()) as url:
        pass
    api = cluster.Api(client.ApiClient(client.Configuration(host=url)))
    with pytest.raises(TryAgain, match=f"the Kubernetes API at {url} cannot be reached"):
        cluster.look(api, "ns", DEFAULTS)


def test_a_queue_of_kueue(place):
    place.objects[f"{FLOWS}/self-reward"]["spec"]["podMetadata"]["labels"][cluster.QUEUE] = "gpus"
    problems, notes = place.look()
    assert not problems and "no Kueue" in notes[0]
    place.put("/apis/kueue.x-k8s.io", preferredVersion={"version": "v1beta1"})
    assert "LocalQueue gpus of Kueue is missing" in place.look()[0][0]
    place.put("/apis/kueue.x-k8s.io/v1beta1/namespaces/ns/localqueues/gpus")
    assert place.look() == ([], [])


def test_the_volume_of_a_claim_is_looked_at(place):
    place.put(f"{INSIDE}/persistentvolumeclaims/self-reward-cache", **claim("Bound", volumeName="pv-1"))
    assert place.look() == ([], [])  # a volume that was removed meanwhile: Kubernetes says so of the claim
    elsewhere = {"nodeAffinity": {"required": {"nodeSelectorTerms": [term("zone", "In", "b")]}}}
    place.put("/api/v1/persistentvolumes/pv-1", spec=elsewhere)
    problems, _ = place.look()
    assert "a cannot mount PersistentVolumeClaim self-reward-cache" in problems[0]


def test_a_runtime_class(place):
    for leaf in place.objects[f"{FLOWS}/self-reward-stages"]["spec"]["templates"]:
        leaf["podSpecPatch"] = '{"runtimeClassName": "nvidia"}'
    assert "RuntimeClass nvidia is missing" in place.look()[0][0]
    place.put("/apis/node.k8s.io/v1/runtimeclasses/nvidia")
    assert place.look() == ([], [])


def test_inside_a_pod_the_api_server_is_not_asked_through_a_proxy(tmp_path, monkeypatch):
    """HTTPS_PROXY is for the way out of the cluster."""
    for name, text in (("token", "t"), ("ca.crt", "c"), ("namespace", "ns\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(cluster, "NAMESPACE_FILE", tmp_path / "namespace")
    given = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443", "HTTPS_PROXY": "http://p:1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(client.ApiClient, "__init__", lambda self, settings=None: setattr(self, "settings", settings))
    monkeypatch.setattr(client.Configuration, "_default", None)
    api, namespace = cluster.connect()
    settings = api._client.settings
    assert (settings.host, settings.proxy, namespace) == ("https://10.0.0.1:443", None, "ns")


def test_the_chart_lets_plan_look_at_all_that_it_looks_at(place):
    """A right that is missing would turn a check into a note that nobody reads."""
    stages = place.objects[f"{FLOWS}/self-reward-stages"]["spec"]["templates"]
    for leaf in stages:
        leaf["podSpecPatch"] = '{"runtimeClassName": "nvidia"}'
        leaf["priorityClassName"] = "batch"
        leaf.setdefault("metadata", {}).setdefault("labels", {})[cluster.QUEUE] = "gpus"
    place.put("/apis/kueue.x-k8s.io", preferredVersion={"version": "v1beta1"})
    place.put(f"{INSIDE}/persistentvolumeclaims/self-reward-cache", **claim("Bound", volumeName="pv-1"))
    stages[-1]["container"]["env"].append({"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "a"}}})
    place.look()
    asked = {
        (match["group"] or "", match["kind"], "get" if match["name"] else "list")
        for path in set(place.seen) - {"/apis/kueue.x-k8s.io"}  # discovery: everybody may
        for match in [re.fullmatch(
            r"/(api|apis/(?P<group>[\w.-]+))/v\w+(/namespaces/ns)?/(?P<kind>\w+)(/(?P<name>[\w.-]+))?", path)]
    }  # fmt: skip
    values = {"queue": "gpus", "stages": {"train": {"priorityClassName": "batch", "runtimeClassName": "nvidia"}}}
    rules = [
        rule
        for one in rendered(values)
        if one["metadata"]["name"].startswith("self-reward-plan")
        for rule in one.get("rules", ())
    ]
    allowed = {(group, kind, verb) for rule in rules for group in rule["apiGroups"] for kind in rule["resources"]
               for verb in rule["verbs"]}  # fmt: skip
    report = {("argoproj.io", "workflowtaskresults", verb) for verb in ("create", "patch")}
    assert len(asked) == 13 and allowed - report == asked


def test_a_priority_class(place):
    place.objects[f"{FLOWS}/self-reward"]["spec"]["podPriorityClassName"] = "low"
    assert "PriorityClass low is missing" in place.look()[0][0]
    place.put("/apis/scheduling.k8s.io/v1/priorityclasses/low")
    assert place.look() == ([], [])

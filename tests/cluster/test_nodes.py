"""Pods that no node could run."""

import pytest

from self_reward.cluster.nodes import node_problems
from self_reward.cluster.pods import QUEUE
from tests.support.kubernetes_objects import GPU, node, pod, required, taint, term

TAINT = taint("nvidia.com/gpu")
EXISTS = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def near(*terms, **spec):
    return pod(affinity={"nodeAffinity": required(*terms)}, **spec)


@pytest.mark.parametrize(
    "asked, nodes, expected",
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
        (pod(nodeSelector={"disk": "ssd"}), [node("a", labels={"disk": "hdd"})], "a does not have the label disk=ssd"),
        (pod(nodeSelector={"disk": "ssd"}), [node("a", labels={"disk": "ssd"})], None),
        (pod(requests={"memory": "128Gi"}), [node("a")], "asks for 128 GiB of memory"),
        (pod(requests={"memory": "128Gi"}), [node("a")], "a has 64 GiB of memory"),
        (pod(requests={"cpu": "6", "memory": "100Gi", "nvidia.com/gpu": "0"}),
         [node("a"), node("b", cpu="2", memory="200Gi")],
         "asks for 6 cpu and 100 GiB of memory, and no node"),
        (pod(requests={"cpu": "8"}), [node("a")], None),
        (pod(requests={"cpu": "8100m"}), [node("a")], "8.1 cpu"),
        (pod(), [], "no node takes this pod: the cluster has no nodes"),
        (near(term("zone", "In", "a", "b")), [node("n", labels={"zone": "c"})],
         "n does not match the pod's node affinity"),
        (near(term("zone", "In", "a", "b")), [node("n", labels={"zone": "b"})], None),
        (near(term("zone", "In", "a"), term("disk", "Exists")), [node("n", labels={"disk": "x"})], None),
        (near(term("zone", "NotIn", "a"), ), [node("n", labels={"zone": "a"})], "node affinity"),
        (near(term("zone", "DoesNotExist")), [node("n", labels={"zone": "a"})], "node affinity"),
        (near(term("zone", "DoesNotExist")), [node("n")], None),
        (near(term("metadata.name", "In", "n", of="matchFields")), [node("n")], None),
        (near(term("metadata.name", "In", "m", of="matchFields")), [node("n")], "node affinity"),
        (near(term("cores", "Gt", "4")), [node("n")], None),
        (pod(labels={QUEUE: "q"}), [node("a", [taint("x")])], None),
        (pod(labels={QUEUE: "q"}), [node("a", unschedulable=True)], "a is cordoned"),
    ],
)  # fmt: skip
def test_pod_that_fits_no_node_is_reported_with_node_sizes(asked, nodes, expected):
    problems = node_problems([asked, asked], nodes)
    assert len(problems) == (1 if expected else 0)
    if expected:
        assert problems[0].startswith("train: ") and expected in problems[0] and "check_nodes: false" in problems[0]


def test_node_in_another_zone_than_the_volume_is_refused():
    asked = pod(limits=GPU, volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "cache"}}])
    nodes = [node("a", gpu="8", labels={"zone": "a"}), node("b", labels={"zone": "b"})]
    volume = {"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [term("zone", "In", "b")]}}}}
    (problem,) = node_problems([asked], nodes, volumes={"cache": volume})
    assert "a cannot mount PersistentVolumeClaim cache, whose volume is bound to another zone or node" in problem
    assert node_problems([asked], nodes, volumes={"other": volume}) == []
    assert node_problems([asked], nodes, volumes={"cache": {"spec": {}}}) == []


def test_equal_pods_share_a_problem_and_long_lists_are_cut():
    run = [pod("a", limits=GPU), pod("b", limits=GPU), pod("c", limits={"nvidia.com/gpu": "3"})]
    problems = node_problems(run, [node(f"n{i}", gpu="1") for i in range(20)])
    assert [problem.split(":")[0] for problem in problems] == ["a, b", "c"]
    assert "n7 has 1 nvidia.com/gpu and 12 more" in problems[0]
    assert [problem.count("check_nodes") for problem in problems] == [0, 1]

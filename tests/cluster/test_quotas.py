"""ResourceQuotas and LimitRanges."""

import pytest

from self_reward.cluster import Findings
from self_reward.cluster.quotas import check_quotas, limit_problems
from tests.support.kubernetes_objects import GPU, pod, quota


@pytest.mark.parametrize(
    "asked, limit, problem, note",
    [
        (pod(limits=GPU), quota({"requests.nvidia.com/gpu": "4"}), None, None),
        (pod(limits=GPU), quota({"requests.nvidia.com/gpu": "2"}), "allows 2 requests.nvidia.com/gpu in all", None),
        (pod(limits=GPU), quota({"requests.nvidia.com/gpu": "2"}), "one pod alone asks for more: train 4", None),
        (pod(limits=GPU), quota({"requests.nvidia.com/gpu": "4"}, {"requests.nvidia.com/gpu": "1"}), None,
         "has 3 requests.nvidia.com/gpu left now; train must wait"),
        (pod(requests={"memory": "8Gi"}), quota({"memory": "4Gi"}), "allows 4 GiB of memory", None),
        (pod(requests={"memory": "8Gi"}), quota({"limits.memory": "16Gi"}),
         "wants every container to state limits.memory, and these pods do not: train", None),
        (pod(limits={"memory": "8Gi"}), quota({"limits.memory": "16Gi", "requests.memory": "16Gi"}), None, None),
        (pod(limits={"memory": "8Gi"}), quota({"limits.memory": "4Gi"}), "allows 4 GiB of limits.memory", None),
        (pod(limits={"memory": "8Gi"}), quota({"requests.cpu": "4"}),
         "wants every container to state requests.cpu, and these pods do not: train", None),
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
    findings = check_quotas([asked], [limit])
    for texts, expected in ((findings.problems, problem), (findings.notes, note)):
        assert len(texts) == (1 if expected else 0) and (not expected or expected in texts[0]), findings


def test_a_limit_range_adds_defaults_and_refuses_large_pods():
    item = {"type": "Container", "default": {"memory": "2Gi"}, "max": {"memory": "4Gi"}}
    ranges = [{"spec": {"limits": [item, {"type": "PersistentVolumeClaim", "max": {"memory": "1"}}]}}]
    assert check_quotas([pod()], [quota({"limits.memory": "8Gi"})], ranges) == Findings()
    assert limit_problems([pod(), pod("big", limits={"memory": "8Gi"})], ranges) == [
        "a LimitRange allows at most 4 GiB of memory per container; these pods ask for more: big"
    ]


@pytest.mark.parametrize(
    "item, expected",
    [
        (
            {"type": "Container", "min": {"memory": "16Gi"}},
            "at least 16 GiB of memory per container; these pods ask for less: tr",
        ),
        (
            {"type": "Pod", "max": {"memory": "12Gi"}},
            "at most 12 GiB of memory per pod; these pods ask for more: train",
        ),
        ({"type": "Container", "max": {"memory": "12Gi"}}, None),
        ({"type": "Pod", "min": {"memory": "12Gi"}}, None),
        ({"type": "Container", "default": {"cpu": "1"}}, "train asks for 4 cpu, above its limit of 1 cpu"),
        ({"type": "Container", "default": {"cpu": "4"}}, None),
    ],
)
def test_limit_ranges(item, expected):
    sizes = {"resources": {"requests": {"cpu": "4"}, "limits": {"memory": "8Gi"}}}
    asked = pod(containers=[{"name": "main", **sizes}, {"name": "beside", "resources": {"limits": {"memory": "8Gi"}}}])
    problems = limit_problems([asked], [{"spec": {"limits": [item]}}])
    assert len(problems) == (1 if expected else 0) and (not expected or expected in problems[0]), problems

"""How much a pod asks for."""

from decimal import Decimal

from self_reward.cluster.resources import resources_of
from tests.support.kubernetes_objects import GIB, pod


def test_requests_default_to_limits_and_to_the_limit_ranges_defaults():
    ranges = [{"spec": {"limits": [{"type": "Container", "default": {"cpu": "2"}, "defaultRequest": {"cpu": "500m"}}]}}]
    assert resources_of(pod(limits={"memory": "1Gi"})) == ({"memory": GIB}, {"memory": GIB})
    assert resources_of(pod(), ranges) == ({"cpu": Decimal("0.5")}, {"cpu": 2})
    assert resources_of(pod(limits={"cpu": "4"}), ranges) == ({"cpu": 4}, {"cpu": 4})
    assert resources_of(pod(requests={"cpu": "{{=x}}"})) == ({}, {})

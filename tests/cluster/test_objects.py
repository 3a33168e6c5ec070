"""Secrets, ConfigMaps and claims that pods refer to by name."""

import pytest

from self_reward.cluster.objects import check_claim, key_problems, wanted_config_maps, wanted_secrets
from tests.support.kubernetes_objects import claim, pod, storage_class


def test_optional_secrets_and_config_maps_are_not_required():
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
    assert {name: list(keys) for name, keys in wanted_secrets(run).items()} == {
        "s": ["A"], "whole": [""], "files": ["k"],
    }  # fmt: skip
    assert {name: list(keys) for name, keys in wanted_config_maps(run).items()} == {"m": ["C"], "texts": [""]}


def test_a_missing_secret_or_key_is_reported():
    wanted = {"A": [pod("train"), pod("generate")], "": [pod("merge")]}
    assert key_problems("Secret", "s", {"data": {"A": "x"}}, wanted) == []
    assert key_problems("Secret", "s", {"data": {"B": "x"}}, wanted) == [
        "Secret s has no key A (needed by train, generate); it has B"
    ]
    assert key_problems("Secret", "s", None, wanted) == [
        "Secret s is missing (needed by train, generate, merge; keys: A): "
        "kubectl create secret generic s --from-file=A=FILE"
    ]
    assert key_problems("ConfigMap", "m", None, {"": [pod()]}) == ["ConfigMap m is missing (needed by train)"]


@pytest.mark.parametrize(
    "existing, classes, problem, note",
    [
        (None, [], "is missing", None),
        (claim("Bound"), [], None, None),
        (claim("Lost", volumeName="v"), [], "is Lost: its volume v is gone", None),
        (claim(), [], "names no storage class, and the cluster has none", None),
        (claim(), [storage_class("fast")], "none of fast is the default", None),
        (
            claim(),
            [storage_class("fast", default=True)],
            None,
            "still Pending; pods wait until p has created its volume",
        ),
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
def test_claim_that_will_never_be_bound_is_reported(existing, classes, problem, note):
    findings = check_claim("cache", existing, classes, [pod()])
    for texts, expected in ((findings.problems, problem), (findings.notes, note)):
        assert len(texts) == (1 if expected else 0) and (not expected or expected in texts[0]), findings

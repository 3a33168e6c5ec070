"""Every manifest against a strict schema: what is misspelled is refused here, and not ignored by the cluster."""

import copy
from functools import cache

import kubernetes_validate
import pytest

from tests.support import argo, argo_fields

KUBERNETES = "1.34"
ARGO = ("Workflow", "WorkflowTemplate")
VARIANTS = ["argo/", *(f"chart {values}".strip() for values in argo.charts())]


@cache
def documents(variant):
    return argo.plain() if variant == "argo/" else argo.chart(variant.removeprefix("chart").strip())


def problems(document):
    if document["apiVersion"].startswith("argoproj.io/"):
        return argo_fields.problems(document["kind"], document)
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}"]
    return []


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_manifest_has_only_fields_that_there_are(variant):
    for document in documents(variant):
        assert problems(document) == [], f"{document['kind']} {document['metadata']['name']}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pod_of_each_leaf_is_one_also_after_its_patches(variant):
    for name, leaf in argo.leaves(documents(variant)).items():
        pod = argo.pod(documents(variant), leaf)
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}
        assert problems(document) == [], name


def test_the_chart_has_values_files_to_be_tried():
    assert len(VARIANTS) > 2, "helm/self-reward/ci/*-values.yaml"


def test_the_chart_installs_the_very_templates_of_argo():
    """With no values: the chart's files are those of argo/ with an overlay, not a copy."""
    ours = argo.templates(documents("argo/"))
    theirs = argo.templates(documents("chart"))
    assert set(ours) == set(theirs)


def objects(value, kind):
    """Every object in `value`, an object of `kind`, that has a list of fields: (kind, object)."""
    found = argo_fields.listed().get(kind, kind)
    if isinstance(found, str):
        if found.startswith("["):
            for inner in value:
                yield from objects(inner, found[1:-1])
        elif found.startswith("{"):
            for inner in value.values():
                yield from objects(inner, found[1:-1])
        return
    yield kind, value
    words = {name.rstrip("!"): word for name, word in found.items()}
    for key, inner in value.items():
        yield from objects(inner, words[key])


def test_a_typo_in_any_field_is_caught():
    """Each field of each object is renamed once; the object is then none of its kind."""
    tried = set()
    for document in argo.of_kind(documents("argo/"), *ARGO):
        for kind, value in objects(document, document["kind"]):
            if (
                kind in ARGO or kind == "WorkflowSpec"
            ):  # their objects are large; what is in them is looked at by itself
                value = {key: {} for key in value}
            for key in value:
                if (kind, key) in tried:
                    continue
                tried.add((kind, key))
                typo = {f"{name}x" if name == key else name: copy.deepcopy(inner) for name, inner in value.items()}
                assert any(f"'{key}x'" in problem for problem in argo_fields.problems(kind, typo)), (kind, key)
    assert len(tried) > 100


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"retryStrategy": {"limt": "3"}}, "limt"),
        ({"activeDeadlineSeconds": True}, "True"),
        ({"container": {"image": "x", "comand": ["y"]}}, "comand"),
        ({"container": {"image": "x", "resources": {"limits": {"memory": ["1Gi"]}}}}, "1Gi"),
        ({"container": {"command": ["y"], "env": [{"value": "no name"}]}}, "'name' is a required"),
        ({"steps": [{"name": "not in a list"}]}, "is not of type 'array'"),
        ({"inputs": {"parameters": [{"name": "x", "value": 3}]}}, "3 is not of type 'string'"),
        (
            {"metrics": {"prometheus": [{"name": "x", "help": "y", "gauge": {"value": "1"}}]}},
            "'realtime' is a required",
        ),
    ],
)
def test_wrong_types_and_missing_fields_are_caught(planted, said):
    assert any(said in problem for problem in argo_fields.problems("Template", {"name": "x", **planted}))
    assert argo_fields.problems("Template", {"name": "x", "retryStrategy": {"limit": 3}}) == []


@pytest.mark.parametrize(
    ("kind", "planted"),
    [
        ("Deployment", {"spec": {"selector": {}, "template": {"spec": {"container": []}}}}),
        ("Deployment", {"spek": {}}),
        ("Deployment", {"metadata": {"name": "x", "label": {}}}),
    ],
)
def test_typos_in_what_kubernetes_has_itself_are_caught(kind, planted):
    assert problems({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "x"}, **planted})


def test_a_key_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="limit is there twice"):
        argo.load("retryStrategy:\n  limit: 1\n  limit: 2\n")

"""The chart: the files of argo/templates with values laid over them, and what it installs beside them.

Every manifest it renders is checked against strict schemas in test_argo_schema.py, and against the policies of
test_argo_policy.py; here is what each value does, and that it does nothing else.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from functools import cache

import jsonschema
import pytest
import yaml

import self_reward
from self_reward.parameters import generated, sources
from self_reward.parameters.stages import Plan
from tests.support import argo
from tests.support.fake_oxen import FakeOxen

CHART = argo.CHART
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
OXEN = "oxen+http://self-reward-oxen/self-reward/run"


def helm(*words, values=None):
    given = ["--values", "-"] if values is not None else []
    return subprocess.run(
        [argo.helm(), *map(str, words), *given],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        env={**os.environ, "KUBECONFIG": os.devnull},
    )


def template(values, *flags, chart=CHART):
    words = ["template", "release", chart, "--namespace", "somewhere", "--set", "checkArgo=false", *flags]
    return helm(*words, values=values)


@cache
def _rendered(values):
    ended = template(json.loads(values))
    assert ended.returncode == 0, ended.stderr
    return argo.load(ended.stdout)


def rendered(values=None):
    return _rendered(json.dumps(values or {}))


def refused(values, *flags):
    ended = template(values, *flags)
    assert ended.returncode != 0, "expected an error"
    return ended.stderr


def objects(values=None):
    """What is rendered, by `Kind name`."""
    return {f"{one['kind']} {one['metadata']['name']}": one for one in rendered(values)}


def flat(value, path=""):
    """Every scalar in `value` by its path; things in a list by their name, patches of Argo as what they hold."""
    if isinstance(value, str) and path.endswith("/podSpecPatch"):
        value = json.loads(value)
    if isinstance(value, list) and value and all(isinstance(one, dict) and "name" in one for one in value):
        value = {one["name"]: one for one in value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {} if value or not isinstance(value, dict | list) else {path: value}
    if not isinstance(value, dict | list):
        found[path] = value
    for key, inner in items:
        found |= flat(inner, f"{path}/{key}" if path else str(key))
    return found


def workflow_templates(values):
    """The two WorkflowTemplates, flat: `run/...` and `NAME OF THE LEAF/...`."""
    documents = rendered(values)
    (stages,) = [d["spec"] for d in documents if d["metadata"]["name"] == argo.STAGES]
    return flat(argo.run(documents), "run") | {
        name: value for leaf in stages["templates"] for name, value in flat(leaf, leaf["name"]).items()
    }


def changes(values):
    """What `values` change in the WorkflowTemplates: path -> new value, None for what is gone."""
    before, after = workflow_templates({}), workflow_templates(values)
    return {path: after.get(path) for path in {**before, **after} if before.get(path) != after.get(path)}


ALL = ["plan", "fetch-model", "train", "generate", "generate-shard", "merge", "gen-preferences", "export"]
GPU = ["train", "generate", "generate-shard"]


def image(leaf):
    return "data" if leaf in ("plan", "fetch-model", "merge", "gen-preferences") else "model"


def test_without_values_the_templates_are_the_files_of_argo():
    ours = {
        d["metadata"]["name"]: d
        for file in (argo.ROOT / "argo/templates").iterdir()
        for d in argo.load(file.read_text())
    }
    theirs = {d["metadata"]["name"]: d for d in argo.of_kind(rendered(), "WorkflowTemplate")}
    assert set(theirs) == set(ours) == {argo.RUN, argo.STAGES}
    for name, document in ours.items():
        assert theirs[name]["spec"] == document["spec"]
        assert theirs[name]["metadata"]["labels"].items() >= document["metadata"]["labels"].items()
        assert "namespace" not in theirs[name]["metadata"]  # argo lint --offline would not find it


def test_the_charts_files_are_those_of_the_repository():
    assert (CHART / "files/argo").resolve() == argo.ROOT / "argo/templates"
    assert (CHART / "files/presets").resolve() == argo.ROOT / "presets"


def test_a_package_holds_the_files_and_renders_as_the_folder_does(tmp_path):
    assert helm("package", CHART, "--destination", tmp_path).returncode == 0
    (package,) = tmp_path.iterdir()
    with tarfile.open(package) as archive:
        for name in ("argo/stages.yaml", "presets/demo.yaml"):
            held = archive.extractfile(f"self-reward/files/{name}").read()
            assert held == (CHART / "files" / name).read_bytes()
    values = {"preset": "demo"}
    ended = template(values, chart=package)
    assert ended.returncode == 0, ended.stderr
    assert argo.load(ended.stdout) == rendered(values)


def test_the_version_is_the_librarys():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == self_reward.__version__


@pytest.mark.parametrize("values", argo.charts())
def test_lint(values):
    ended = helm("lint", "--strict", CHART, *(["--values", CHART / "ci" / values] if values else []))
    assert ended.returncode == 0, ended.stdout + ended.stderr


# ---- what each value does to the WorkflowTemplates: value -> every path that changes
OVERLAY = {
    "registry": (
        {"image": {"registry": "registry.example.org/team"}},
        {f"{leaf}/container/image": f"registry.example.org/team/self-reward/{image(leaf)}:latest" for leaf in ALL},
    ),
    "prefix and tag": (
        {"image": {"prefix": "", "tag": 20261124}},
        {f"{leaf}/container/image": f"{image(leaf)}:20261124" for leaf in ALL},
    ),
    "pull policy": (
        {"image": {"pullPolicy": "Always"}},
        {f"{leaf}/container/imagePullPolicy": "Always" for leaf in ALL},
    ),
    "pull secrets": ({"image": {"pullSecrets": [{"name": "x"}]}}, {"run/imagePullSecrets/x/name": "x"}),
    "a leaf's resources are replaced": (
        {"stages": {"merge": {"resources": {"requests": {"memory": "1Gi"}}}}},
        {
            "merge/container/resources/requests/cpu": None,
            "merge/container/resources/requests/memory": "1Gi",
            "merge/container/resources/limits/memory": None,
        },
    ),
    "node selector of all, and of one": (
        {"stages": {"all": {"nodeSelector": {"a": "b"}}, "train": {"nodeSelector": {"gpu": "h100"}}}},
        {f"{leaf}/nodeSelector/a": "b" for leaf in ALL if leaf != "train"} | {"train/nodeSelector/gpu": "h100"},
    ),
    "tolerations are added": (
        {"stages": {"train": {"tolerations": [{"key": "team", "operator": "Exists"}]}}},
        {"train/tolerations/1/key": "team", "train/tolerations/1/operator": "Exists"},
    ),
    "affinity": (
        {"stages": {"export": {"affinity": {"nodeAffinity": {"x": 1}}}}},
        {"export/affinity/nodeAffinity/x": 1},
    ),
    "priority class": (
        {"stages": {"all": {"priorityClassName": "batch"}}},
        {f"{leaf}/priorityClassName": "batch" for leaf in ALL},
    ),
    "runtime class": (
        {"stages": {"generate": {"runtimeClassName": "nvidia"}}},
        {f"{leaf}/podSpecPatch/runtimeClassName": "nvidia" for leaf in GPU[1:]},
    ),
    "grace period": (
        {"stages": {"train": {"terminationGracePeriodSeconds": 300}, "plan": {"terminationGracePeriodSeconds": 0}}},
        {
            "train/podSpecPatch/terminationGracePeriodSeconds": 300,
            "plan/podSpecPatch/terminationGracePeriodSeconds": 0,
        },
    ),
    "deadline": (
        {"stages": {"train": {"activeDeadlineSeconds": 10000000}}},
        {"train/activeDeadlineSeconds": "10000000"},
    ),
    "retries, also none": (
        {"stages": {"all": {"retries": 0}, "gen-preferences": {"retries": 9}}},
        {f"{leaf}/retryStrategy/limit": "9" if leaf == "gen-preferences" else "0" for leaf in ALL},
    ),
    "backoff": (
        {"stages": {"fetch-model": {"backoff": {"duration": 7, "cap": "1h"}}}},
        {"fetch-model/retryStrategy/backoff/duration": "7", "fetch-model/retryStrategy/backoff/cap": "1h"},
    ),
    "environment": (
        {"stages": {"plan": {"env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]}}},
        {
            "plan/container/env/HTTPS_PROXY/name": "HTTPS_PROXY",
            "plan/container/env/HTTPS_PROXY/value": "http://proxy:3128",
        },
    ),
    "environment that the file sets too": (
        {"stages": {"train": {"env": [{"name": "OMP_NUM_THREADS", "value": "2"}]}}},
        {
            "train/container/env/OMP_NUM_THREADS/value": "2",
            "train/container/env/OMP_NUM_THREADS/valueFrom/resourceFieldRef/resource": None,
        },
    ),
    "parallelism": ({"generateParallelism": 3}, {"run/templates/divided/parallelism": 3}),
    "queue": ({"queue": "gpus"}, {f"{leaf}/metadata/labels/kueue.x-k8s.io/queue-name": "gpus" for leaf in GPU}),
    "existing claim": (
        {"cache": {"existingClaim": "team"}},
        {"run/volumes/cache/persistentVolumeClaim/claimName": "team"},
    ),
    "no cache volume": (
        {"cache": {"create": False}},
        {
            "run/volumes/cache/persistentVolumeClaim/claimName": None,
            "run/volumes/cache/emptyDir": {},
            "run/templates/main/steps/1/fetch-model/when": "false",
        },
    ),
    "shared memory": ({"sharedMemory": "99Gi"}, {"run/volumes/shm/emptyDir/sizeLimit": "99Gi"}),
    "existing secret": (
        {"secrets": {"existingSecret": "tokens"}},
        {
            f"{leaf}/container/env/{name}/valueFrom/secretKeyRef/name": "tokens"
            for leaf in ALL
            for name in ("OXEN_TOKEN", "HF_TOKEN")
        },
    ),
    "service accounts": (
        {"serviceAccounts": {"stages": "runner", "plan": "planner"}},
        {"run/serviceAccountName": "runner", "plan/serviceAccountName": "planner"},
    ),
    "logs": ({"archiveLogs": False}, {"run/archiveLogs": False}),
    "podGC": (
        {"podGC": {"strategy": "OnPodSuccess"}},
        {"run/podGC/strategy": "OnPodSuccess", "run/podGC/deleteDelayDuration": None},
    ),
    "ttl": (
        {"ttl": {"secondsAfterSuccess": 10000000}},
        {"run/ttlStrategy/secondsAfterSuccess": 10000000, "run/ttlStrategy/secondsAfterCompletion": None},
    ),
    "labels and annotations of the pods": (
        {"labels": {"team": 20261124}, "annotations": {"inject": False}},
        {"run/podMetadata/labels/team": "20261124", "run/podMetadata/annotations/inject": "false"},
    ),
    "a parameter": (
        {"parameters": {"judge_votes": 5}},
        {"run/arguments/parameters/judge_votes/value": "5"},
    ),
    "the server inside": (
        {"oxenServer": {"enabled": True}},
        {"run/arguments/parameters/data_repo/value": OXEN},
    ),
    "the server inside, and another data repository": (
        {"oxenServer": {"enabled": True}, "parameters": {"data_repo": "oxen://hub.oxen.ai/a/b"}},
        {"run/arguments/parameters/data_repo/value": "oxen://hub.oxen.ai/a/b"},
    ),
    "a preset, and a parameter that wins over it": (
        {"preset": "paper", "parameters": {"dpo_dropout": 0.3}},
        {
            f"run/arguments/parameters/{name}/value": value
            for name, value in {
                "sft_finetune": "full",
                "sft_learning_rate": "0.0000055",
                "sft_min_learning_rate": "0.0000011",
                "length_rho": "0",
                "min_margin": "0",
                "drop_identical": None,
                "dpo_finetune": "full",
                "nll_weight": "0",
                "label_smoothing": "0",
                "eft_replay": "0",
                "dpo_learning_rate": "0.000001",
                "dpo_min_learning_rate": "1e-7",
                "dpo_dropout": "0.3",
            }.items()
            if value is not None
        },
    ),
    # what has nothing to do with the WorkflowTemplates
    "elsewhere": (
        {
            "checkArgo": True,
            "cache": {"size": "1Gi", "storageClass": "x", "accessModes": ["ReadWriteMany"], "keep": False},
            "secrets": {"oxenToken": "x", "hfToken": "y"},
            "serviceAccounts": {"create": False, "annotations": {"a": "b"}},
            "rbac": {"create": False, "nodes": False},
            "networkPolicy": {"enabled": False, "ports": [443], "extraEgress": []},
        },
        {},
    ),
}


@pytest.mark.parametrize("case", OVERLAY)
def test_a_value_changes_this_and_nothing_else(case):
    values, expected = OVERLAY[case]
    assert changes(values) == expected


def test_every_value_that_concerns_the_workflow_has_a_case():
    tried = {name for values, _ in OVERLAY.values() for name in values}
    assert tried == set(VALUES)
    keys = {key for values, _ in OVERLAY.values() for stage in values.get("stages", {}).values() for key in stage}
    assert keys == set(SCHEMA["definitions"]["stage"]["properties"])


# ---- parameters
@pytest.mark.parametrize("preset", sorted(path.stem for path in (argo.ROOT / "presets").glob("*.yaml")))
def test_a_preset_means_what_its_file_means_to_the_programs(preset, monkeypatch):
    declared = argo.run_parameters(rendered({"preset": preset}))
    monkeypatch.setenv(sources.ENVIRONMENT, json.dumps([{"name": n, "value": p["value"]} for n, p in declared.items()]))
    by_chart = sources.parse(Plan, "", [])
    monkeypatch.delenv(sources.ENVIRONMENT)
    by_file = sources.parse(Plan, "", ["--parameter_file", str(argo.ROOT / "presets" / f"{preset}.yaml")])
    assert by_chart == by_file


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (5e-6, "0.000005"),
        (1e-7, "1e-7"),
        (20000000, "20000000"),
        (True, "true"),
        (["go to", "<b>"], '["go to","<b>"]'),
        ([], "[]"),
        (None, ""),
        ("{{braces}} \"and\" 'quotes'", "{{braces}} \"and\" 'quotes'"),
    ],
)
def test_a_parameter_is_the_text_that_submit_would_take(given, text):
    values = {"parameters": {"prompt_pattern": given}}
    ended = template(values, "--skip-schema-validation")  # any value, whatever this parameter takes
    assert argo.run_parameters(argo.load(ended.stdout))["prompt_pattern"]["value"] == text


def test_an_unknown_parameter_is_refused_by_schema_and_template():
    assert "iteratons" in refused({"parameters": {"iteratons": 3}})
    said = refused({"parameters": {"iteratons": 3, "seed": 1}}, "--skip-schema-validation")
    assert "has no parameter iteratons;" in said and " iterations," in said


def test_an_unknown_preset_is_refused_with_those_there_are():
    assert 'there is no "papper"; presets/ has demo, paper' in refused({"preset": "papper"})


# ---- the schema
def maps(values, path=()):
    """Every map in the values, by its path."""
    yield path, values
    for name, value in values.items():
        if isinstance(value, dict):
            yield from maps(value, (*path, name))


FREE = {"labels", "annotations", "nodeSelector", "affinity", "requests", "limits"}  # the user's own names


@pytest.mark.parametrize("path", [path for path, _ in maps(VALUES) if not FREE & set(path)], ids="/".join)
def test_a_name_that_does_not_exist_is_refused(path):
    validator = jsonschema.Draft7Validator(SCHEMA)
    assert not list(validator.iter_errors(VALUES))
    values = json.loads(json.dumps(VALUES))
    place = values
    for name in path:
        place = place[name]
    place["nmae"] = 1
    (error,) = validator.iter_errors(values)
    assert "nmae" in error.message


@pytest.mark.parametrize(
    "values",
    [
        {"image": {"pullPolicy": "Sometimes"}},
        {"stages": {"train": {"backoff": {"maxDuration": "1h"}}}},  # it would become the deadline of the next try
        {"stages": {"train": {"retries": -1}}},
        {"stages": {"train": {"env": [{"name": "OXEN_TOKEN", "value": "secret"}]}}},
        {"cache": {"size": "a lot"}},
        {"cache": None},
        {"podGC": {"strategy": "never"}},
        {"networkPolicy": {"ports": ["https"]}},
        {"parameters": {"seed": {}}},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused(values):
    assert "don't meet the specifications of the schema" in refused(values)


def test_the_parameters_of_the_schema_are_those_of_the_workflow():
    assert set(SCHEMA["properties"]["parameters"]["properties"]) == {p["name"] for p in generated.for_argo()}


# ---- values.yaml and README.md
def leaves(values, path=""):
    for name, value in values.items():
        if isinstance(value, dict) and value and "resources" not in name.lower():
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_readme_has_every_value():
    text = (CHART / "README.md").read_text()
    server = ("nodeSelector", "tolerations", "affinity", "priorityClassName")  # one row
    names = [n for n in leaves(VALUES) if not n.startswith("stages.") and n.removeprefix("oxenServer.") not in server]
    assert [name for name in names if f"`{name}`" not in text] == []
    keys = [*VALUES["stages"], *SCHEMA["definitions"]["stage"]["properties"], *server]
    assert [key for key in keys if f"`{key}`" not in text and f"stages.{key}`" not in text] == []


def test_values_yaml_has_a_comment_at_every_value():
    lines = (CHART / "values.yaml").read_text().splitlines()
    nodes = yaml.compose((CHART / "values.yaml").read_text())

    def check(node):
        for name, value in node.value:
            inner = isinstance(value, yaml.MappingNode) and value.value and "resources" not in name.value.lower()
            above = []
            for line in reversed(lines[: name.start_mark.line]):
                if not line.strip().startswith("#"):
                    break
                above.append(line)
            assert inner or any("# -- " in line for line in above), name.value
            if inner:
                check(value)

    check(nodes)


# ---- what is installed beside the WorkflowTemplates
def test_a_missing_argo_is_said():
    ended = helm("template", "release", CHART)
    assert ended.returncode != 0
    assert "Argo Workflows is not installed in this cluster" in ended.stderr and "checkArgo=false" in ended.stderr
    there = helm("template", "release", CHART, "--api-versions", "argoproj.io/v1alpha1/WorkflowTemplate")
    assert there.returncode == 0


def test_a_generated_token_is_for_the_server_inside_alone():
    def token(values):
        return objects(values)["Secret self-reward"]["data"]

    assert token({}) == {"OXEN_TOKEN": ""}
    values = {"oxenServer": {"enabled": True}}
    first = token(values)["OXEN_TOKEN"]
    again = [d for d in argo.load(template(values).stdout) if d["kind"] == "Secret"]
    assert len(first) == 64 and first != again[0]["data"]["OXEN_TOKEN"]  # 48 characters in base64
    both = token({"secrets": {"oxenToken": "one", "hfToken": "two"}, **values})
    assert both == {"OXEN_TOKEN": "b25l", "HF_TOKEN": "dHdv"}


def test_a_token_is_in_the_secret_and_nowhere_else():
    values = {"secrets": {"oxenToken": "hush-hush", "hfToken": "top-secret"}, "oxenServer": {"enabled": True}}
    for name, one in objects(values).items():
        if name != "Secret self-reward":
            assert not any(
                word in text
                for _, text in argo.strings(one)
                for word in ("hush", "top-secret", "aHVzaC1odXNo", "dG9wL")
            ), name


def test_what_exists_already_is_not_made():
    made = objects(
        {
            "secrets": {"existingSecret": "tokens"},
            "cache": {"existingClaim": "team"},
            "oxenServer": {"enabled": True, "persistence": {"existingClaim": "data"}},
            "serviceAccounts": {"create": False, "stages": "runner", "plan": "planner"},
        }
    )
    kinds = {name.split()[0] for name in made}
    assert not kinds & {"Secret", "PersistentVolumeClaim", "ServiceAccount"}
    spec = made["Deployment self-reward-oxen"]["spec"]["template"]["spec"]
    assert flat(spec)["volumes/data/persistentVolumeClaim/claimName"] == "data"
    assert flat(spec)["containers/proxy/env/OXEN_TOKEN/valueFrom/secretKeyRef/name"] == "tokens"
    assert (
        flat(made["Pod self-reward-test"])["spec/containers/main/env/OXEN_TOKEN/valueFrom/secretKeyRef/name"]
        == "tokens"
    )
    assert made["RoleBinding self-reward"]["subjects"][0]["name"] == "runner"
    assert made["RoleBinding self-reward-plan"]["subjects"][0]["name"] == "planner"
    assert made["Role self-reward-plan"]["rules"][2]["resourceNames"] == ["tokens"]


def test_everything_off_leaves_the_templates_and_the_test():
    values = yaml.safe_load((CHART / "ci/off-values.yaml").read_text())
    assert set(objects(values)) == {
        "WorkflowTemplate self-reward",
        "WorkflowTemplate self-reward-stages",
        "Pod self-reward-test",
    }


def test_claims():
    values = {
        "cache": {"size": "5Gi", "storageClass": "-"},
        "oxenServer": {"enabled": True, "persistence": {"keep": False}},
    }
    made = objects(values)
    cache, data = made["PersistentVolumeClaim self-reward-cache"], made["PersistentVolumeClaim self-reward-oxen"]
    assert cache["spec"]["resources"]["requests"]["storage"] == "5Gi" and cache["spec"]["storageClassName"] == ""
    assert cache["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert data["spec"]["resources"]["requests"]["storage"] == "100Gi" and "storageClassName" not in data["spec"]
    assert "annotations" not in data["metadata"]
    named = objects({"cache": {"storageClass": "fast", "accessModes": ["ReadWriteMany"]}})
    spec = named["PersistentVolumeClaim self-reward-cache"]["spec"]
    assert spec["storageClassName"] == "fast" and spec["accessModes"] == ["ReadWriteMany"]


def test_stages_may_report_their_result_and_nothing_else():
    made = objects({"queue": "gpus", "stages": {"train": {"priorityClassName": "batch"}}})
    rules = made["Role self-reward"]["rules"]
    report = {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"], "verbs": ["create", "patch"]}
    assert rules == [report]
    plan = made["Role self-reward-plan"]["rules"]
    assert plan[0] == report
    assert {verb for rule in plan[1:] for verb in rule["verbs"]} == {"get", "list"}
    assert [rule["resourceNames"] for rule in plan if rule["resources"] == ["secrets"]] == [["self-reward"]]
    assert [rule["resourceNames"] for rule in plan if rule["resources"] == ["localqueues"]] == [["gpus"]]
    cluster = made["ClusterRole self-reward-plan-somewhere"]["rules"]
    assert {verb for rule in cluster for verb in rule["verbs"]} == {"get", "list"}
    assert cluster[-1]["resourceNames"] == ["batch"]
    assert not any(name.startswith("ClusterRole") for name in objects({"rbac": {"nodes": False}}))


def test_each_account_has_its_own_roles_and_no_other():
    made = objects({"serviceAccounts": {"stages": "runner", "plan": "planner"}})
    bindings = {
        name: (one["roleRef"]["kind"], one["roleRef"]["name"], one["subjects"][0]["name"], len(one["subjects"]))
        for name, one in made.items()
        if "Binding" in name
    }
    assert bindings == {
        "RoleBinding self-reward": ("Role", "self-reward", "runner", 1),
        "RoleBinding self-reward-plan": ("Role", "self-reward-plan", "planner", 1),
        "ClusterRoleBinding self-reward-plan-somewhere": ("ClusterRole", "self-reward-plan-somewhere", "planner", 1),
    }


def test_the_program_of_helm_test_finds_what_is_wrong():
    container = objects({"oxenServer": {"enabled": True}})["Pod self-reward-test"]["spec"]["containers"][0]
    assert container["command"] == ["python", "-c"]

    def ended(address, token):
        given = {"OXEN_SERVER": address, "OXEN_TOKEN": token, "PYTHONPATH": str(argo.ROOT)}
        return subprocess.run(
            [sys.executable, "-c", *container["args"]], cwd=argo.ROOT, env=given, capture_output=True, text=True
        )

    with FakeOxen(token="right") as server:
        good, bad = ended(f"{server.url}/api/version", "right\n"), ended(f"{server.url}/api/version", "other")
    assert good.returncode == 0 and good.stdout.count("as expected") == 3, good.stderr
    assert bad.returncode == 1 and "with the token: expected HTTP 200, got 401" in bad.stderr


# ---- the notes
@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    """What NOTES.txt says with these values; without a cluster `helm install` does not get as far as showing it."""
    chart = tmp_path_factory.mktemp("notes") / "self-reward"
    shutil.copytree(CHART, chart)
    shutil.move(chart / "templates/NOTES.txt", chart)
    (chart / "templates/notes.yaml").write_text('text: {{ tpl (.Files.Get "NOTES.txt") . | toJson }}\n')

    def said(values):
        ended = template(values, "--show-only", "templates/notes.yaml", chart=chart)
        assert ended.returncode == 0, ended.stderr
        (document,) = argo.load(ended.stdout)
        return document["text"]

    return said


@pytest.mark.parametrize("values", argo.charts())
def test_the_notes_name_what_there_is(notes, values):
    given = yaml.safe_load((CHART / "ci" / values).read_text()) if values else {}
    text, made = notes(given), objects(given)
    makefile = (argo.ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in re.findall(r"\bmake ([a-z-]+)", text))
    assert set(re.findall(r"-p (\w+)=", text)) <= {p["name"] for p in generated.for_argo()}
    paths = re.findall(r"\b((?:argo|docs)/[\w.-]+\w)", text)
    assert paths and all((argo.ROOT / path).exists() for path in paths)
    services = re.findall(r"service/([\w-]+) \d+:(\d+)", text)
    assert [f"Service {name}" in made and port for name, port in services] == ["80"] * (
        "Service self-reward-oxen" in made and not given.get("parameters", {}).get("data_repo")
    )
    kept = {
        n.split()[1] for n, one in made.items() if "helm.sh/resource-policy" in one["metadata"].get("annotations", {})
    }
    assert set(re.findall(r"persistentvolumeclaim/([\w-]+)", text)) == kept
    assert set(re.findall(r" secret ([\w-]+)", text)) <= {
        given.get("secrets", {}).get("existingSecret") or "self-reward"
    }
    assert "somewhere" in text and "<no value>" not in text
    for line in text.splitlines():
        if re.search(r"^ +(argo|kubectl|helm) ", line):
            assert "somewhere" in line, line
    for words in re.findall(r"self-reward data (\w+)", text):
        assert words in ("ls", "get", "log", "diff", "put")


def test_only_the_proxy_reaches_the_server_and_only_stages_reach_the_proxy():
    made = objects({"oxenServer": {"enabled": True, "allowFrom": [{"namespaceSelector": {}}]}})
    spec = made["Deployment self-reward-oxen"]["spec"]
    assert spec["replicas"] == 1 and spec["strategy"] == {"type": "Recreate"}
    server, proxy = spec["template"]["spec"]["containers"]
    assert {"name": "BIND_ADDRESS", "value": "127.0.0.1"} in server["env"] and "ports" not in server
    assert proxy["ports"] == [{"name": "http", "containerPort": 8080}]
    service = made["Service self-reward-oxen"]["spec"]
    assert service["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    # a busy server is not to be killed
    assert (proxy["livenessProbe"]["httpGet"]["path"], proxy["readinessProbe"]["httpGet"]["path"]) == (
        "/healthz",
        "/readyz",
    )
    labels = spec["template"]["metadata"]["labels"]
    assert labels.items() >= service["selector"].items() and labels.items() >= spec["selector"]["matchLabels"].items()

    policy = made["NetworkPolicy self-reward-oxen"]["spec"]
    assert labels.items() >= policy["podSelector"]["matchLabels"].items()
    assert policy["policyTypes"] == ["Ingress", "Egress"] and policy["egress"] == []
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": 8080, "protocol": "TCP"}]
    own, added = rule["from"]
    assert added == {"namespaceSelector": {}}
    pods = argo.run(rendered())["podMetadata"]["labels"]
    for one in (pods, made["Pod self-reward-test"]["metadata"]["labels"]):
        assert one.items() >= own["podSelector"]["matchLabels"].items()
        assert one["app.kubernetes.io/component"] in own["podSelector"]["matchExpressions"][0]["values"]
    assert labels["app.kubernetes.io/component"] not in own["podSelector"]["matchExpressions"][0]["values"]


@pytest.mark.parametrize(
    ("values", "ports"),
    [
        ({}, {53, 443, 6443}),
        ({"oxenServer": {"enabled": True}}, {53, 443, 6443, 8080}),
        ({"parameters": {"data_repo": "oxen+http://oxen.example.org:3000/a/b"}}, {53, 443, 6443, 3000}),
        ({"parameters": {"data_repo": "oxen+http://oxen.example.org/a/b"}}, {53, 443, 6443, 80}),
        (
            {"parameters": {"data_repo": "oxen+http://self-reward-oxen/a/b"}, "oxenServer": {"enabled": True}},
            {53, 443, 6443, 8080},
        ),
        ({"parameters": {"data_repo": "oxen://oxen.example.org/a/b:7/"}}, {53, 443, 6443}),
        ({"networkPolicy": {"ports": [443], "extraEgress": [{"ports": [{"port": 3128}]}]}}, {53, 443, 3128}),
    ],
    ids=str,
)
def test_stages_reach_what_they_need_and_nobody_reaches_them(values, ports):
    policy = objects(values)["NetworkPolicy self-reward"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in policy
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == ports
    assert all("to" in rule for rule in policy["egress"] if {"port": 8080, "protocol": "TCP"} in rule["ports"])
    pods = argo.run(rendered())["podMetadata"]["labels"]
    assert pods.items() >= policy["podSelector"]["matchLabels"].items()
    assert pods["app.kubernetes.io/component"] in policy["podSelector"]["matchExpressions"][0]["values"]


def test_labels_and_annotations_are_on_every_object_and_pod():
    values = {"labels": {"team": "research"}, "annotations": {"note": 20261124}, "oxenServer": {"enabled": True}}
    for name, one in objects(values).items():
        metadata = [one["metadata"]]
        if one["kind"] == "Deployment":
            metadata.append(one["spec"]["template"]["metadata"])
        for found in metadata:
            assert found["labels"]["team"] == "research" and found["annotations"]["note"] == "20261124", name


def test_the_oxen_servers_pod_takes_its_values():
    values = {
        "image": {"pullSecrets": [{"name": "registry"}], "pullPolicy": "Always"},
        "secrets": {"oxenToken": "x"},
        "oxenServer": {
            "enabled": True,
            "image": "a:1",
            "proxyImage": "b:2",
            "resources": {"limits": {"memory": "9Gi"}},
            "proxyResources": {"limits": {"memory": "8Gi"}},
            "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "t"}],
            "affinity": {"nodeAffinity": {"x": 1}},
            "priorityClassName": "high",
            "service": {"type": "NodePort", "annotations": {"a": "b"}},
        },
    }
    made = objects(values)
    pod = flat(made["Deployment self-reward-oxen"]["spec"]["template"])
    assert (
        pod.items()
        >= {
            "spec/imagePullSecrets/registry/name": "registry",
            "spec/containers/oxen-server/image": "a:1",
            "spec/containers/oxen-server/imagePullPolicy": "Always",
            "spec/containers/oxen-server/resources/limits/memory": "9Gi",
            "spec/containers/proxy/image": "b:2",
            "spec/containers/proxy/resources/limits/memory": "8Gi",
            "spec/nodeSelector/disk": "fast",
            "spec/tolerations/0/key": "t",
            "spec/affinity/nodeAffinity/x": 1,
            "spec/priorityClassName": "high",
            "spec/automountServiceAccountToken": False,
        }.items()
    )
    assert pod["metadata/annotations/self-reward/token"] == "2d711642"  # so that the proxy starts anew with a new token
    service = made["Service self-reward-oxen"]
    assert service["spec"]["type"] == "NodePort" and service["metadata"]["annotations"] == {"a": "b"}

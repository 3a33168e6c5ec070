"""The product on a real cluster with a real Argo: README.md says how to run it. About half an hour on CPUs.

One small iteration of the demo over the Oxen server of the chart; then what must not go wrong is made to happen.
"""

import os
import re
import time

import pytest
from kubernetes import client

from demo import make_data
from tests.real_cluster.place import Place, missing, new_name, node, nodes, outputs, told, tries
from tests.stages.test_loop import SMALL
from tests.support import argo

STAGES = ["00_sft", "01_gen_prompts", "02_gen_responses", "03_gen_scores", "04_gen_preferences", "05_dpo",
          "06_evaluate", "07_export"]  # fmt: skip
CPU_LEAVES = ("plan", "fetch-model", "merge", "gen-preferences", "export")
VALUES = {
    "preset": "demo",
    "image": {"registry": os.environ.get("IMAGE_REGISTRY", ""), "tag": os.environ.get("TAG", "")},
    "parameters": {"base_model": "oxen:models/base", "train_gpus": 0, "generate_gpus": 0, "shards": 2, **SMALL},
    "oxenServer": {"enabled": True, "persistence": {"size": "2Gi", "keep": False}},
    "cache": {"size": "2Gi", "keep": False},
    "sharedMemory": "256Mi",
    "stages": {"all": {
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}},
        "backoff": {"duration": "2", "factor": "2", "cap": "1m"},
    }},
}  # fmt: skip
SIZES = {"INSTRUCTIONS": 900, "JUDGEMENTS": 1300, "NEW_TASKS": 250, "REPETITIONS": 300, "COMPARISONS": 300,
         "HELD_OUT": 60}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _everything_is_there():
    if problems := missing():
        pytest.exit("make test-cluster: " + "; ".join(problems), returncode=2)


def _place():
    place = Place(new_name())
    print(f"namespace {place.name}")
    try:
        yield place
    finally:
        if not os.environ.get("KEEP"):
            place.remove()


@pytest.fixture(scope="module")
def place(_everything_is_there, tmp_path_factory):
    """The chart with its server, filled with the demo's data."""
    for place in _place():
        if not place.controller_answers():
            pytest.exit(
                f"make test-cluster: no Argo controller picks up workflows in namespace {place.name}; is it running, "
                "and does it look at all namespaces?",
                returncode=2,
            )
        values = dict(VALUES)
        if os.environ.get("HOST_PATH"):
            for claim in ("self-reward-cache", "self-reward-oxen"):
                place.make_volume(claim)
            values["cache"] = VALUES["cache"] | {"storageClass": "-"}
            persistence = VALUES["oxenServer"]["persistence"] | {"storageClass": "-"}
            values["oxenServer"] = {"enabled": True, "persistence": persistence}
        place.install(values, "--wait", "--timeout", "5m")
        folder = tmp_path_factory.mktemp("cluster")
        patch = pytest.MonkeyPatch()
        for name, value in SIZES.items():
            patch.setattr(make_data, name, value)
        make_data.make(folder / "data", 0)
        patch.undo()
        files = {str(p.relative_to(folder / "data")): p for p in (folder / "data").rglob("*") if p.is_file()}
        with place.server(folder / "cache") as store:
            store.create()
            store.put(files, message="the demo's data")
        place.cache = folder / "cache"
        yield place


@pytest.fixture(scope="module")
def done(place):
    """One iteration with two shards."""
    workflow = place.run(iterations="1")
    assert workflow["status"]["phase"] == "Succeeded", told(workflow)
    return workflow


@pytest.fixture(scope="module")
def bare(_everything_is_there):
    """The chart in a namespace that has neither secret nor volume, and a quota too small for a stage."""
    for place in _place():
        hard = {"requests.memory": "3Gi"}
        place.core.create_namespaced_resource_quota(place.name, {"metadata": {"name": "small"}, "spec": {"hard": hard}})
        place.install(
            {
                "image": VALUES["image"],
                "parameters": {"base_model": "oxen:models/base", "train_gpus": 0, "generate_gpus": 0},
                "oxenServer": {"enabled": False},
                "cache": {"existingClaim": "no-such-claim"},
                "secrets": {"existingSecret": "no-such-secret"},
                "stages": {
                    "all": {"resources": {"requests": {"cpu": "100m", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}},
                    "plan": {"resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}},
                },
            }
        )
        yield place


def log(place):
    with place.server(place.cache) as store:
        snapshot = store.resolve()
        assert not store.branches("shards/")
        return [(commit.id, commit.message.split(":")[0]) for commit in snapshot.log if commit.key]


def refused(place, seconds=90, **parameters):
    """The message on plan's node of a workflow that it refused."""
    begun = time.monotonic()
    workflow = place.run(300, **parameters)
    plan = node(workflow, "plan")
    print(f"refused after {time.monotonic() - begun:.0f} s: {plan['message']}")
    assert workflow["status"]["phase"] == "Failed", told(workflow)
    assert len(tries(workflow, plan)) == 1 and node(workflow, "fetch-model") is None
    assert time.monotonic() - begun < seconds
    return tries(workflow, plan)[0]["message"]


def test_a_run_succeeds_and_its_outputs_are_the_commits_in_the_server(place, done):
    commits = {message.replace(" ", "-"): commit for commit, message in log(place)}
    assert set(commits) == {f"M0-{stage}" for stage in STAGES}
    assert outputs(done) == commits | {"commit": commits["M0-07_export"], "stop": ""}


def test_the_shards_ran_beside_each_other_and_no_pod_was_tried_twice(place, done):
    shards = [node(done, "generate-shard", stage="02_gen_responses", shard=f"{i}/2") for i in range(2)]
    assert all(shards) and max(s["startedAt"] for s in shards) < min(s["finishedAt"] for s in shards)
    assert all(len(tries(done, one)) == 1 for one in nodes(done) if one["type"] == "Retry")


def test_pods_are_restricted_and_no_cpu_stage_asked_for_a_gpu(place, done):
    pods = place.pods(done)
    assert len(pods) == len([one for one in nodes(done) if one["type"] == "Pod"])
    leaves = {one["id"]: one.get("templateRef", {}).get("template") for one in nodes(done) if one["type"] == "Pod"}
    for pod in pods:
        leaf = leaves[pod.metadata.annotations["workflows.argoproj.io/node-id"]]
        limits = next(c for c in pod.spec.containers if c.name == "main").resources.limits
        assert leaf not in CPU_LEAVES or "nvidia.com/gpu" not in limits
        assert pod.spec.service_account_name == ("self-reward-plan" if leaf == "plan" else "self-reward")
        assert pod.spec.termination_grace_period_seconds >= 30


def test_progress_of_a_long_stage_comes_to_the_workflow_and_moves(place, done):
    """Argo passes it on once a minute."""
    name = place.submit(iterations="1", seed="8", sft_max_steps="5000")

    def shown(workflow):
        one = node(workflow, "train", stage="00_sft")
        return [n["progress"] for n in (tries(workflow, one) if one else ()) if n.get("progress", "").endswith("/5000")]

    try:
        first = shown(place.wait(name, 600, shown))
        later = shown(place.wait(name, 300, lambda workflow: shown(workflow) != first))
    finally:
        place.argo("terminate", name)
        place.wait(name, 300)
    assert int(first[0].split("/")[0]) < int(later[0].split("/")[0]) < 5000


def test_an_upgrade_keeps_the_token_of_the_server(place, done):
    """A template cannot look it up where nothing is installed, so that only a real upgrade shows it."""
    token = place.core.read_namespaced_secret("self-reward", place.name).data["OXEN_TOKEN"]
    place.helm("upgrade", "run", str(argo.CHART), "--reuse-values", "--set", "stages.all.backoff.duration=3")
    assert place.core.read_namespaced_secret("self-reward", place.name).data["OXEN_TOKEN"] == token


def test_run_again_everything_is_skipped_and_nothing_is_committed(place, done):
    before = log(place)
    again = place.run(iterations="1")
    assert again["status"]["phase"] == "Succeeded", told(again)
    assert log(place) == before and outputs(again) == outputs(done)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"itertions": "1"}, "did you mean iterations"),
        ({"iterations": "91"}, "iterations = '91'"),
        ({"train_gpus": "64"}, "nvidia.com/gpu"),
        ({"base_model": "oxen:models/no-such"}, "models/no-such"),
    ],
)
def test_plan_refuses_what_would_fail_later(place, done, parameters, said):
    assert said in refused(place, **parameters)


def test_plan_says_all_that_a_bare_namespace_lacks(bare):
    message = refused(bare, data_repo="oxen+http://self-reward-oxen/self-reward/run")
    for said in ("no-such-secret", "no-such-claim", "small"):
        assert said in message


def test_an_error_of_the_users_is_not_tried_again_and_its_words_are_on_the_node(place, done):
    before = log(place)
    failed = place.run(iterations="1", min_prompt_yield="1", prompt_temperature="1.5")
    assert failed["status"]["phase"] == "Failed", told(failed)
    prompts = node(failed, "generate", stage="01_gen_prompts")
    assert [one["phase"] for one in tries(failed, prompts)] == ["Failed"]
    message = tries(failed, prompts)[0]["message"]
    assert "the model cannot write prompts" in message and "exit code 2" in message, message
    assert node(failed, "generate-shard") is None and log(place) == before


def test_a_stop_rule_ends_the_run_well_and_says_why(place, done):
    before = log(place)
    stopped = place.run(iterations="2", min_pairs="1000000")
    assert stopped["status"]["phase"] == "Succeeded", told(stopped)
    assert "Expected at least 1000000 pairs" in outputs(stopped)["stop"]
    assert node(stopped, "train", stage="05_dpo") is None
    assert not [one for one in nodes(stopped) if one["displayName"] == "next" and one["phase"] != "Skipped"]
    assert log(place) == before


# Scores that take a while, in parts small enough that some are done when the pod is lost
LONG = {"iterations": "1", "num_prompts": "60", "judge_votes": "32", "sampler_batch_size": "8"}
SCORES = {"stage": "03_gen_scores", "shard": "0/2"}


def tries_of_scores(place, workflow):
    """Of each try of that shard of the scores whose container has begun: its pod, and what it has said."""
    one = node(workflow, "generate-shard", **SCORES)
    ids = [n["id"] for n in tries(workflow, one)] if one else []
    pods = {pod.metadata.annotations["workflows.argoproj.io/node-id"]: pod for pod in place.pods(workflow)}
    begun = [
        pods[i]
        for i in ids
        if i in pods
        for container in pods[i].status.container_statuses or ()
        if container.name == "main" and (container.state.running or container.state.terminated)
    ]
    return [(pod, place.core.read_namespaced_pod_log(pod.metadata.name, place.name, container="main")) for pod in begun]


def scoring(place):
    """A function that finds the pod of that shard in a workflow, once some of its work is done."""

    def found(workflow):
        return [pod for pod, said in tries_of_scores(place, workflow) if re.search(r" (?!1/)[1-9]\d*/\d+, about", said)]

    return found


def resumed(place, workflow):
    """Whether the last try of that shard resumed from what an earlier one had done."""
    return re.search(r"resuming .* after [1-9]\d* of \d+ prompts", tries_of_scores(place, workflow)[-1][1])


def all_committed_once(place, before, workflow):
    made = log(place)[: -len(before)]
    assert sorted(message for _, message in made) == sorted(f"M0 {stage}" for stage in STAGES)
    assert {commit for commit, _ in made} < set(outputs(workflow).values())


@pytest.mark.parametrize("how", ["delete", "evict"])
def test_a_lost_pod_is_replaced_resumes_and_commits_once(place, done, how):
    before = log(place)
    name = place.submit(**LONG, seed={"delete": "3", "evict": "4"}[how])
    pod = scoring(place)(place.wait(name, 900, scoring(place)))[0]
    if how == "delete":
        place.core.delete_namespaced_pod(pod.metadata.name, place.name)
    else:
        eviction = {"metadata": {"name": pod.metadata.name, "namespace": place.name}}
        place.core.create_namespaced_pod_eviction(pod.metadata.name, place.name, body=eviction)
    workflow = place.wait(name, 1200)
    assert workflow["status"]["phase"] == "Succeeded", told(workflow)
    assert len(tries(workflow, node(workflow, "generate-shard", **SCORES))) == 2 and resumed(place, workflow)
    all_committed_once(place, before, workflow)


def test_after_a_stop_the_same_submit_resumes(place, done):
    before = log(place)
    name = place.submit(**LONG, seed="5")
    place.wait(name, 900, scoring(place))
    place.argo("stop", name)
    stopped = place.wait(name, 300)
    assert stopped["status"]["phase"] == "Failed" and "Stop" in stopped["status"]["message"], told(stopped)
    made = log(place)
    assert [message for _, message in made[: -len(before)]] == [f"M0 {stage}" for stage in STAGES[2::-1]]
    workflow = place.run(**LONG, seed="5")
    assert workflow["status"]["phase"] == "Succeeded", told(workflow)
    assert resumed(place, workflow) and log(place)[-len(made) :] == made
    all_committed_once(place, before, workflow)


def test_a_server_that_is_away_for_a_minute_is_waited_for(place, done):
    before = log(place)
    name = place.submit(**LONG, seed="6")
    place.wait(name, 900, scoring(place))
    for replicas in (0, 1):
        body = {"spec": {"replicas": replicas}}
        client.AppsV1Api().patch_namespaced_deployment_scale("self-reward-oxen", place.name, body)
        time.sleep(60 if not replicas else 0)
    workflow = place.wait(name, 1200)
    assert workflow["status"]["phase"] == "Succeeded", told(workflow)
    all_committed_once(place, before, workflow)


def test_after_a_failure_argo_retry_resumes(place, done):
    """A wrong token is the user's error: one try, its words on the node; what was finished is not run again."""
    before = log(place)
    right = place.core.read_namespaced_secret("self-reward", place.name).data
    name = place.submit(**LONG, seed="7")
    place.wait(name, 900, scoring(place))
    place.core.patch_namespaced_secret("self-reward", place.name, {"stringData": {"OXEN_TOKEN": "wrong"}})
    try:
        failed = place.wait(name, 900)
    finally:
        place.core.patch_namespaced_secret("self-reward", place.name, {"data": right})
    assert failed["status"]["phase"] == "Failed", told(failed)
    merge = tries(failed, node(failed, "merge", stage="03_gen_scores"))
    assert len(merge) == 1 and "HTTP 401" in merge[0]["message"] and "exit code 2" in merge[0]["message"]
    place.argo("retry", name)
    workflow = place.wait(name, 1200)
    assert workflow["status"]["phase"] == "Succeeded", told(workflow)
    assert len(tries(workflow, node(workflow, "train", stage="00_sft"))) == 1
    all_committed_once(place, before, workflow)

"""Each leaf of argo/ as its pod would run it: the manifest's command, environment and paths, on the real programs.

One iteration in the order of the flow, with shards, over a tiny model and a data repository on a server: a real one
where OXEN_SERVER names it, else the double. What the manifests and the programs must agree on is seen here: names of
programs and flags, paths of outputs, what is in them. A pod has its own /tmp; /cache is shared by all.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from self_reward.repository import jsonl
from self_reward.store import open_store
from tests.support import argo, argo_simulated, servers
from tests.support.fake_kubernetes import FakeCluster, serving
from tests.support.running import TOKEN, address, running
from tests.support.tiny import WORDS, make_tiny_model

GIVEN = {
    "base_model": "oxen:models/base", "iterations": "1", "shards": "2", "rubric": "rubric.txt",
    "sampler": "transformers", "train_gpus": "0", "generate_gpus": "0",
    "sft_max_steps": "2", "sft_batch_size": "4", "sft_max_length": "128",
    "num_prompts": "8", "prompt_min_words": "1", "prompt_max_tokens": "12", "prompt_max_requests": "40",
    "prompt_similarity": "1", "min_prompt_yield": "0", "prompt_keywords": "[]", "prompt_seed_shots": "2",
    "prompt_generated_shots": "0", "sampler_batch_size": "4", "responses_per_prompt": "2", "response_max_tokens": "8",
    "judge_votes": "2", "judge_max_tokens": "8", "judge_forced_score": "true", "dpo_max_steps": "2",
    "dpo_batch_size": "4", "dpo_max_length": "128", "eval_prompts": "4", "eval_judge_groups": "2",
}  # fmt: skip
ORDER = [
    "plan", "fetch-model", "train", "generate", "generate-shard", "generate-shard", "merge", "generate-shard",
    "generate-shard", "merge", "gen-preferences", "train", "generate", "export",
]  # fmt: skip
COMMITS = ["00_sft", "01_gen_prompts", "02_gen_responses", "03_gen_scores", "04_gen_preferences", "05_dpo",
           "06_evaluate", "07_export"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A server with the user's data, a cluster to be looked at, and a function that runs a leaf."""
    folder = tmp_path_factory.mktemp("leaves")
    make_tiny_model(folder / "data/models/base")
    texts = [" ".join(WORDS[(7 * i + j) % 40] for j in range(2 + i % 5)) for i in range(40)]
    (folder / "data/M0/train").mkdir(parents=True)
    rows = [{"prompt": text, "response": " ".join(reversed(text.split())), "source": "ift"} for text in texts]
    for name in ("ift", "ift+eft"):
        jsonl.write(folder / f"data/M0/train/{name}.jsonl", rows)
    (folder / "data/rubric.txt").write_text("judge the response {response} of {prompt} . score : 0 1 2 3 4 5")
    files = {str(p.relative_to(folder / "data")): p for p in (folder / "data").rglob("*") if p.is_file()}
    kind = "guarded" if servers.missing("real") else "real"
    with running(kind, folder / "server") as server, serving(cluster()) as api:
        repository = address(server.url, "leaves")
        patch = pytest.MonkeyPatch()
        patch.setenv("OXEN_TOKEN", TOKEN)
        store = open_store(repository, branch="main", lock_timeout=1, store_timeout=60, cache_dir=folder / "user")
        store.create()
        store.put(files, message="user data")
        yield Place(folder, repository, store, api)
        patch.undo()


def cluster():
    """A cluster that lacks nothing that plan looks at."""
    fake = FakeCluster()
    for template in argo.of_kind(argo.plain(), "WorkflowTemplate"):
        path = "/apis/argoproj.io/v1alpha1/namespaces/default/workflowtemplates"
        fake.put(f"{path}/{template['metadata']['name']}", **template)
    inside = "/api/v1/namespaces/default"
    fake.put(f"{inside}/secrets/self-reward", data={"OXEN_TOKEN": "eA=="})
    fake.put(f"{inside}/persistentvolumeclaims/self-reward-cache", spec={}, status={"phase": "Bound"})
    fake.put(f"{inside}/serviceaccounts/self-reward", metadata={"name": "self-reward"})
    amounts = {"cpu": "64", "memory": "512Gi", "pods": "100"}
    fake.put("/api/v1/nodes/a", metadata={"name": "a"}, spec={}, status={"allocatable": amounts})
    return fake


class Place:
    def __init__(self, folder, address, store, api):
        self.folder, self.address, self.store, self.pods = folder, address, store, []
        self.documents = argo.plain()
        kubeconfig = {
            "apiVersion": "v1", "kind": "Config", "current-context": "a", "users": [{"name": "a", "user": {}}],
            "clusters": [{"name": "a", "cluster": {"server": api}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        }  # fmt: skip
        (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))

    def pod(self, template, inputs, **given):
        """Run the leaf `template` as its pod would; returns how it ended, with its outputs by name."""
        leaf = argo.leaves(self.documents)[template]
        container = leaf["container"]
        own = self.folder / f"pod-{len(self.pods)}"
        (own / "tmp").mkdir(parents=True)
        values = {"data_repo": self.address, **GIVEN, **given}
        entries = [
            {**one, "value": values.get(name, one["value"])}
            for name, one in argo.run_parameters(self.documents).items()
        ]
        assert set(values) <= {one["name"] for one in entries}
        scope = {f"workflow.parameters.{one['name']}": one["value"] for one in entries}
        scope |= {f"inputs.parameters.{key}": value for key, value in inputs.items()}
        scope |= {"workflow.parameters.json": json.dumps(entries)}

        def at(path):
            """Where a path of the pod is on this machine."""
            for inside, outside in {"/tmp": own / "tmp", "/cache": self.folder / "cache", "/dev": own}.items():
                if path == inside or path.startswith(f"{inside}/"):
                    return str(outside) + path.removeprefix(inside)
            return path

        environment = {one["name"]: at(argo_simulated.substituted(one["value"], scope))
                       for one in container["env"] if "value" in one}  # fmt: skip
        secrets = {one["name"]: TOKEN for one in container["env"] if one["name"] == "OXEN_TOKEN"}
        # what images/ set, and what a machine without GPUs needs
        image = {"HOME": at("/tmp/home"), "TMPDIR": at("/tmp"), "PYTHONPATH": str(argo.ROOT), "OMP_NUM_THREADS": "1"}
        around = {"PATH": os.environ["PATH"], "KUBECONFIG": str(self.folder / "kubeconfig"), "CUDA_VISIBLE_DEVICES": ""}
        words = [at(argo_simulated.substituted(word, scope)) for word in container["command"] + container["args"]]
        assert words[0] == "python" and container["workingDir"] == "/app"
        ended = subprocess.run(
            [sys.executable, *words[1:]], cwd=argo.ROOT, env=around | image | environment | secrets,
            capture_output=True, text=True,
        )  # fmt: skip
        outputs = {}
        for one in leaf.get("outputs", {}).get("parameters", ()) if ended.returncode == 0 else ():
            with open(at(one["valueFrom"]["path"]), encoding="utf-8") as file:
                outputs[one["name"]] = file.read()
        last_words = own / "termination-log"
        ended.said = last_words.read_text() if last_words.exists() else ""
        self.pods.append(SimpleNamespace(template=template, inputs=inputs, outputs=outputs, ended=ended))
        return self.pods[-1]


@pytest.fixture(scope="module")
def done(place):
    """The whole flow; returns the outputs of the workflow."""

    def leaf(template, inputs):
        pod = place.pod(template, inputs)
        assert pod.ended.returncode == 0, f"{template} {inputs}: {pod.ended.stderr}"
        return pod.outputs

    return argo_simulated.run(place.documents, GIVEN, leaf)


def test_every_leaf_runs_and_hands_on_what_the_next_needs(place, done):
    assert [pod.template for pod in place.pods[: len(ORDER)]] == ORDER
    for pod in place.pods[: len(ORDER)]:
        if pod.template not in ("plan", "fetch-model"):
            assert pod.outputs["stop"] == "" and pod.outputs["result"] == pod.outputs["commit"]
            assert len(pod.outputs["commit"]) > 20
        assert pod.ended.said == ""
    assert json.loads(place.pods[0].outputs["sft"]) == [0]


def test_the_workflows_outputs_are_the_commits_of_the_server(place, done):
    log = place.store.resolve().log
    made = {c.message.splitlines()[0].split(":")[0].replace(" ", "-"): c.id for c in log if c.key}
    assert set(made) == {f"M0-{stage}" for stage in COMMITS}
    assert done == made | {"commit": made["M0-07_export"], "stop": ""}
    assert not place.store.branches("shards/")


def test_the_base_model_and_partial_results_are_in_the_cache(place, done):
    assert any((place.folder / "cache").rglob("*.safetensors"))
    assert not any((place.folder / "cache/work").glob("*/*/outputs"))  # removed when it was committed


def test_a_stage_that_is_done_is_skipped_with_the_same_outputs(place, done):
    """What the next stage reads is the newest commit; what the workflow says is the one that brought the result."""
    head = place.store.resolve().head
    pod = place.pod("train", {"stage": "05_dpo", "iteration": "0", "revision": head})
    assert pod.ended.returncode == 0, pod.ended.stderr
    assert "skipped" in pod.ended.stdout
    assert pod.outputs == {"commit": head, "result": done["M0-05_dpo"], "stop": ""} and head != done["M0-05_dpo"]
    pod = place.pod("train", {"stage": "05_dpo", "iteration": "0", "revision": done["M0-04_gen_preferences"]})
    assert pod.ended.returncode == 0, pod.ended.stderr
    assert "skipped" in pod.ended.stdout
    assert pod.outputs == {"commit": done["M0-05_dpo"], "result": done["M0-05_dpo"], "stop": ""}
    assert place.store.resolve().head == head


def test_a_stop_rule_is_an_output(place, done):
    inputs = {"iteration": "0", "revision": done["commit"]}
    pod = place.pod("gen-preferences", inputs, min_pairs="1000000")
    assert pod.ended.returncode == 0, pod.ended.stderr
    assert "Expected at least 1000000 pairs" in pod.outputs["stop"] and pod.outputs["commit"]


@pytest.mark.parametrize(
    ("template", "inputs", "said"),
    [
        ("gen-preferences", {"iteration": "5"}, "M5/generated/scores.jsonl"),
        ("merge", {"iteration": "0", "stage": "04_gen_preferences"}, "--merge is not a parameter of this stage"),
        ("train", {"iteration": "-1", "stage": "05_dpo"}, "iteration"),
    ],
)
def test_the_last_words_of_a_stage_are_where_argo_looks(place, done, template, inputs, said):
    pod = place.pod(template, {"revision": done["commit"], **inputs})
    assert pod.ended.returncode == 2 and said in pod.ended.said, pod.ended.stderr


def test_plan_says_all_that_is_wrong(place, done):
    pod = place.pod("plan", {}, train_gpus="3", iterations="91", sampler="vlmm")
    assert pod.ended.returncode == 2
    for said in ("iterations", "sampler", "nvidia.com/gpu"):
        assert said in pod.ended.said

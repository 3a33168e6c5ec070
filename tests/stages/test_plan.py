"""plan as a program, on a repository on a server (the double): what it makes there, and what it does not fetch."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from self_reward.parameters import generated
from self_reward.repository import jsonl
from self_reward.store import open_store
from tests.support.fake_kubernetes import FakeCluster, serving
from tests.support.fake_oxen import FakeOxen
from tests.support.running import address
from tests.support.tiny import WORDS, make_tiny_model

ROOT = Path(__file__).parents[2]
WEIGHTS = "models/base/model.safetensors"
NOT_IN_THE_DATA_IMAGE = ("torch", "transformers", "trl", "peft", "vllm", "datasets", "accelerate", "oxen")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A user's files: seed prompts, and a base model whose weights are above the size that plan looks into."""
    folder = tmp_path_factory.mktemp("plan")
    make_tiny_model(folder / "models/base", hidden=128, layers=4)
    assert (folder / WEIGHTS).stat().st_size > 1 << 20
    (folder / "M0/train").mkdir(parents=True)
    rows = [{"prompt": f"repeat {word}", "response": word} for word in WORDS[:30]]
    jsonl.write(folder / "M0/train/ift.jsonl", rows)
    return folder


@pytest.fixture
def place(tmp_path):
    with FakeOxen() as server:
        repository = address(server.url, "plan")
        store = open_store(repository, branch="main", lock_timeout=1, store_timeout=20, cache_dir=tmp_path / "cache")

        def plan(*words):
            ended = subprocess.run(
                [sys.executable, "stages/plan.py", "--data_repo", repository, "--base_model", "oxen:models/base",
                 "--sft", "never", "--cache_dir", tmp_path / "cache", "--store_timeout", "20", *words],
                cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            assert "Traceback" not in ended.stderr
            return ended.returncode, ended.stdout, ended.stderr

        yield SimpleNamespace(server=server, address=repository, store=store, plan=plan, work=tmp_path / "cache/work")


def put(place, files, **changed):
    """Commit the files of `files`, with those in `changed` replaced."""
    local = {path.relative_to(files).as_posix(): path for path in files.rglob("*") if path.is_file()}
    return place.store.put({**local, **changed}, message="user data")


def test_a_repository_is_created_only_on_request(place):
    code, _, err = place.plan()
    assert code == 2 and f"{place.address} does not exist" in err and "--create_repo" in err
    assert not place.server.repositories
    code, _, err = place.plan("--create_repo", "--revision", "x")
    assert code == 2 and "revision is for one stage" in err and not place.server.repositories
    code, _, err = place.plan("--create_repo")
    assert code == 2 and f"plan: created {place.address}, private" in err and "is empty" in err
    assert len(place.server.repositories) == 1
    assert [one.path for one in place.server.seen("POST", "/repos$")] == ["/api/repos"]


def test_run_is_pinned_to_the_checked_commit(place, files):
    place.store.create()
    commit = put(place, files)
    code, out, err = place.plan("--create_repo")
    assert code == 0 and re.search(rf" commit={commit}$", out, re.M), err
    read = [one.path for one in place.server.requests if one.method == "GET"]
    assert [path for path in read if path.endswith("models/base/config.json")]
    assert not [path for path in read if path.endswith(WEIGHTS)]
    assert not place.work.exists() or not list(place.work.iterdir())


def test_problems_of_a_base_model_on_the_server(place, files, tmp_path):
    place.store.create()
    pointer = tmp_path / "pointer"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n")
    broken = tmp_path / "broken"
    broken.write_text("{")
    put(place, files, **{WEIGHTS: pointer, "models/base/config.json": broken})
    code, _, err = place.plan()
    assert code == 2, err
    assert f"error: {WEIGHTS}: a Git LFS pointer" in err and "error: models/base/config.json: not JSON" in err


def test_a_read_only_token_is_reported_before_the_first_stage(place, files):
    place.store.create()
    put(place, files)
    code, _, err = place.plan()
    (repository,) = place.server.repositories.values()
    assert code == 0 and not repository.workspaces, err
    place.server.fail("PUT|POST|DELETE", ".*", "403", times=None)
    code, _, err = place.plan()
    assert code == 2 and f"{place.address} can be read, but not written: " in err, err
    assert "may not do this" in err or "set OXEN_TOKEN" in err


# ---- in a cluster


@pytest.fixture
def cluster(tmp_path):
    """A cluster with everything that the workflow's pods ask for."""
    fake = FakeCluster()
    flows, inside = "/apis/argoproj.io/v1alpha1/namespaces/ns/workflowtemplates", "/api/v1/namespaces/ns"
    for name in ("self-reward", "stages"):
        template = yaml.safe_load((ROOT / f"argo/templates/{name}.yaml").read_text())
        fake.put(f"{flows}/{template['metadata']['name']}", **template)
    fake.put(f"{inside}/secrets/self-reward", data={"OXEN_TOKEN": "c2VjcmV0"})
    fake.put(f"{inside}/persistentvolumeclaims/self-reward-cache", spec={}, status={"phase": "Bound"})
    fake.put(f"{inside}/serviceaccounts/self-reward")
    sizes = {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "2"}
    fake.put("/api/v1/nodes/node-1", metadata={"name": "node-1"}, spec={}, status={"allocatable": sizes})
    with serving(fake) as url:
        config = {
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "ns"}}],
            "current-context": "x",
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        yield fake


@pytest.fixture
def step(place, cluster, tmp_path):
    """A function that runs a program as a step of the workflow, whose parameters have their defaults but for those
    that are given, with the packages of the data image."""
    (tmp_path / "absent").mkdir()
    for name in NOT_IN_THE_DATA_IMAGE:
        (tmp_path / f"absent/{name}.py").write_text(f"raise ImportError('{name} is not in this image')")

    def run(program, *flags, more=(), **given):
        values = {entry["name"]: entry["value"] for entry in generated.for_argo()}
        values |= {"data_repo": place.address, "base_model": "oxen:models/base", "sft": "never", **given}
        listed = [{"name": name, "value": value} for name, value in [*values.items(), *more]]
        ended = subprocess.run(
            [sys.executable, f"stages/{program}.py", "--cache_dir", tmp_path / "cache", *map(str, flags)],
            cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}/absent:{ROOT}", "KUBECONFIG": str(tmp_path / "kubeconfig"),
                 "SELF_REWARD_PARAMETERS": json.dumps(listed), "TERMINATION_LOG": str(tmp_path / "last")},
        )  # fmt: skip
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended.returncode, ended.stdout, ended.stderr

    def plan(**given):
        files = ("--commit_file", tmp_path / "out/commit", "--sft_file", tmp_path / "out/sft")
        return run("plan", "--in_cluster", *files, **given)

    return SimpleNamespace(run=run, plan=plan, out=tmp_path / "out", last=tmp_path / "last", cache=tmp_path / "cache")


def test_plan_writes_commit_and_sft_iterations_for_the_workflow(place, files, step, tmp_path):
    place.store.create()
    rows = [{"prompt": f"repeat {word}", "response": word, "source": "ift"} for word in WORDS[:30]]
    jsonl.write(tmp_path / "train.jsonl", rows)
    train = {f"M{k}/train/ift+eft.jsonl": tmp_path / "train.jsonl" for k in (0, 2)}
    commit = put(place, files, **train)
    for sft, expected in (("auto", [0, 2]), ("never", [])):
        code, out, err = step.plan(iterations="3", sft=sft)
        assert code == 0 and "export" not in out, err
        assert (step.out / "commit").read_text() == commit
        assert json.loads((step.out / "sft").read_text()) == expected
    assert step.plan(start_iteration="1", iterations="2", create_repo="true", base_model="oxen:models/none")[0] == 2


def test_all_problems_are_in_the_one_message_that_argo_shows(place, cluster, step):
    cluster.objects = {path: content for path, content in cluster.objects.items() if "/secrets/" not in path}
    code, _, err = step.plan(train_gpus="4", verifier="no.such:thing", base_model="oxen:models/none")
    said = ["train: the pod asks for 4 nvidia.com/gpu", "node-1 has 2 nvidia.com/gpu", "Secret self-reward is missing",
            "verifier = no.such:thing", "does not exist on its server"]  # fmt: skip
    assert code == 2 and all(words in step.last.read_text() for words in said), err


def test_parameter_and_cluster_problems_are_reported_together(cluster, step):
    cluster.objects = {path: content for path, content in cluster.objects.items() if "/secrets/" not in path}
    given = {"iterations": "91", "shards": "2.0", "export_merged": "yes", "data_repo": "data", "seed_data": "./seed"}
    code, _, err = step.plan(iteratons="3", iteration="1", work_dir="/x", base_model="/models/a", **given)
    assert code == 2, err
    for words in (
        "unknown parameter iteratons (from SELF_REWARD_PARAMETERS); did you mean iterations?",
        "iteration (from SELF_REWARD_PARAMETERS): the workflow sets it itself; leave it out",
        "work_dir (from SELF_REWARD_PARAMETERS): the workflow sets it itself",
        "iterations = '91' (from SELF_REWARD_PARAMETERS): must be less than or equal to 90",
        "data_repo = data is a folder, and the pods of a workflow share none",
        "seed_data = ./seed is a folder",
        "base_model = /models/a is a folder",
        "Secret self-reward is missing",
    ):
        assert f"error: {words}" in step.last.read_text(), err
    code, _, err = step.plan(shards="2.0", export_merged="yes", iterations="010")
    assert code == 2
    for words in ("shards = '2.0': write 2,", "export_merged = 'yes': write true,", "iterations = '010': write 10,"):
        assert words in step.last.read_text(), err


def test_problems_are_reported_even_if_the_api_server_is_down(cluster, step):
    cluster.answers = [("", 500)]
    code, _, err = step.plan()
    assert code == 75 and "the Kubernetes API at" in err, err
    for given, said in (({"iteratons": "3"}, "did you mean iterations?"), ({"verifier": "no.such:thing"}, "no.such")):
        code, _, err = step.plan(**given)
        last = step.last.read_text()
        assert code == 2 and said in last and "and for now: the Kubernetes API at" in last, err


def test_a_parameter_given_twice(step):
    code, _, err = step.run("plan", "--in_cluster", more=[("seed", "1")])
    assert code == 2 and "SELF_REWARD_PARAMETERS gives seed twice: '0' and '1'" in err


def test_nothing_is_created_for_a_run_that_cannot_begin(place, step):
    for given in ({"train_gpus": "4"}, {"base_model": "no such model!"}, {"verifier": "no.such:thing"}):
        code, _, err = step.plan(create_repo="true", **given)
        assert code == 2 and not place.server.repositories, err
    code, _, err = step.plan(create_repo="true")
    assert code == 2 and "is empty" in err and len(place.server.repositories) == 1


def test_problems_are_reported_even_if_the_oxen_server_is_down(place, step):
    place.server.kill()
    code, _, err = step.plan(train_gpus="4", store_timeout="600")
    assert (
        code == 2
        and "asks for 4 nvidia.com/gpu" in err
        and "error: and for now: " in err
        and "cannot be reached" in err
    )
    code, _, err = step.plan(store_timeout="1")
    assert code == 75 and "error: " not in err, err


def test_the_plan_pod_need_not_be_able_to_run_models(place, files, step):
    place.store.create()
    put(place, files)
    code, _, err = step.plan(sampler="vllm", verifier="demo.world:verify")
    assert code == 0, err


def test_a_model_that_does_not_divide_over_the_gpus_is_refused(place, files, step):
    place.store.create()
    commit = put(place, files)
    for program, flags in (("plan", ["--in_cluster"]), ("fetch_model", ["--revision", commit])):
        code, _, err = step.run(program, *flags, generate_gpus="3", check_nodes="false")
        assert code == 2 and "num_attention_heads" in err and "cannot be divided by it" in err, err
        assert step.run(program, *flags, generate_gpus="2", check_nodes="false")[0] == 0


def test_the_base_model_is_fetched_once_into_the_cache(place, files, step):
    place.store.create()
    commit = put(place, files)
    code, out, err = step.run("fetch_model", "--revision", commit)
    (found,) = (step.cache / "base_models").rglob("model.safetensors")
    assert code == 0 and str(found.parent) in out and found.read_bytes() == (files / WEIGHTS).read_bytes(), err
    asked = len(place.server.seen("GET", WEIGHTS))
    code, out, err = step.run("fetch_model", "--revision", commit)
    assert code == 0 and str(found.parent) in out and len(place.server.seen("GET", WEIGHTS)) == asked > 0, err
    assert not list((step.cache / "work").rglob("*.safetensors"))


def test_a_base_model_that_cannot_be_fetched(place, files, step):
    place.store.create()
    put(place, files)
    code, _, err = step.run("fetch_model", base_model="oxen:models/none")
    assert code == 2 and "no folder 'models/none' in the data repository" in err
    place.server.fail("GET", WEIGHTS, "503", times=None)
    code, _, err = step.run("fetch_model", store_timeout="1")
    assert code == 75 and "the server reports an error" in err

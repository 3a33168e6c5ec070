"""Shards of 02 and 03 and their merge: the real programs, a tiny model, a server. What they make is compared with an
undivided run on a local data repository."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from self_reward.errors import UserError
from self_reward.repository import jsonl
from self_reward.rows import Response
from self_reward.run import shards
from self_reward.store import open_store
from tests.support.running import address, running
from tests.support.tiny import WORDS

ROOT = Path(__file__).parents[2]
RUBRIC = "rubric.txt"
PROMPTS = "M0/generated/prompts.jsonl"
RESPONSES = "M0/generated/responses.jsonl"
SCORES = "M0/generated/scores.jsonl"
MANIFEST = "M0/02_gen_responses.manifest.json"
SETTINGS = {
    "02_gen_responses": ["--responses_per_prompt", "2", "--response_max_tokens", "12"],
    "03_gen_scores": ["--judge_votes", "2", "--judge_max_tokens", "8", "--judge_forced_score", "--rubric", RUBRIC],
}
KILLED_IN = """
import os, runpy, sys
import {module} as module
def killed(*_, calls=[]):
    calls.append(0)
    return original(*_) if len(calls) < {call} else os.kill(os.getpid(), 9)
original, {target} = {target}, killed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """The user's data: 18 prompts of different lengths, five chunks of four."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "model").symlink_to(tiny_model)
    prompts = [" ".join(WORDS[(7 * i + j) % 40] for j in range(1 + i * 5 % 9)) for i in range(18)]
    rows = [{"prompt_id": f"id-{i}", "prompt": text, "source": "generated"} for i, text in enumerate(prompts)]
    (folder / "data/M0/generated").mkdir(parents=True)
    jsonl.write(folder / "data" / PROMPTS, rows)
    (folder / "data" / RUBRIC).write_text("judge the response {response} of {prompt} . score : 0 1 2 3 4 5")
    return folder


def start(folder, data_repo, words, *before):
    command = [
        sys.executable, *before, *words, *SETTINGS[next(stage for stage in SETTINGS if stage in str(words))],
        "--data_repo", data_repo, "--base_model", folder / "model", "--sft", "never", "--sampler", "transformers",
        "--sampler_batch_size", "4", "--cache_dir", folder / "cache", "--store_timeout", "60",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def whole(folder):
    """Both stages undivided, on a local data repository."""
    for stage in SETTINGS:
        code, _, err = end(start(folder, folder / "data", [f"stages/{stage}.py"]))
        assert code == 0, err
    return folder / "data"


@pytest.fixture(scope="module", params=["fake", "real"])
def place(request, folder, whole, tmp_path_factory):
    """A repository with the user's data on a server, and what runs on it."""
    with running(request.param, tmp_path_factory.mktemp(request.param)) as server:
        repository = address(server.url, "shards")
        store = open_store(repository, branch="main", lock_timeout=1, store_timeout=60, cache_dir=folder / "cache")
        store.create()
        store.put({path: whole / path for path in (PROMPTS, RUBRIC)}, message="user data")

        def run(*words, before=()):
            return end(start(folder, repository, words, *before))

        def all_shards(stage, count):
            words = [[f"stages/{stage}.py", "--shard", f"{i}/{count}"] for i in range(count)]
            return [end(process) for process in [start(folder, repository, shard) for shard in words]]

        yield SimpleNamespace(address=repository, store=store, run=run, all_shards=all_shards, server=server)


def merge(place, stage="02_gen_responses", count=3, before=()):
    return place.run(f"stages/{stage}.py", "--merge", "--shards", count, before=before)


def small(place, path):
    return json.loads(place.store.resolve().contents[path])


@pytest.fixture(scope="module")
def parts(place):
    """The three shards of 02, the first of which was killed on its way: branch -> commit."""
    code, _, err = merge(place)
    assert code == 2 and "missing shards of M0 02_gen_responses: all of them. Run python stages/02" in err, err
    code, _, err = place.run(
        "stages/02_gen_responses.py", "--shard", "0/3",
        before=["-c", KILLED_IN.format(
            module="self_reward.models.engines.transformers", target="module.TransformersSampler._sample_chunk", call=2
        )],
    )  # fmt: skip
    assert code == -signal.SIGKILL, err
    assert not place.store.branches("shards/")
    for number, (code, out, err) in enumerate(place.all_shards("02_gen_responses", 3)):
        assert code == 0 and out.startswith(f"M0 02_gen_responses {number}/3  "), err
        assert ("resuming partial/samples.jsonl after 4 of 8 prompts" in err) == (number == 0), err
    return place.store.branches("shards/")


def test_each_shard_has_a_branch_and_is_skipped_when_run_again(place, parts):
    main = place.store.resolve()
    assert RESPONSES not in main.files
    assert [name.rpartition("/")[2] for name in sorted(parts)] == ["0-of-3", "1-of-3", "2-of-3"]
    for name in parts:
        log = place.store.on(name).resolve().log
        assert len(log) == len(main.log) + 1 and log[1].id == main.commit
    commits = dict(parts)
    code, out, err = place.run("stages/02_gen_responses.py", "--shard", "1/3", before=["-X", "importtime"])
    (branch,) = [name for name in parts if name.endswith("1-of-3")]
    assert (code, out) == (0, f"M0 02_gen_responses 1/3  skipped  (commit {commits[branch]})\n"), err
    imported = {line.rpartition("|")[2].strip() for line in err.splitlines()}
    assert "json" in imported and not imported & {"torch", "transformers"}
    assert place.store.branches("shards/") == commits


def test_missing_shard_is_reported(place, parts):
    (name,) = [name for name in parts if name.endswith("1-of-3")]
    place.store.remove_branch(name)
    code, out, err = merge(place)
    assert (code, out) == (2, "") and "missing shards of M0 02_gen_responses: 1/3. Run python stages" in err
    place.store.make_branch(name, place.store.resolve().commit)  # a shard that was killed before its commit
    code, _, err = merge(place)
    assert code == 2 and "missing shards of M0 02_gen_responses: 1/3" in err
    place.store.remove_branch(name)
    place.store.make_branch(name, parts[name])


def test_foreign_shards_are_reported(place, parts, tmp_path):
    first, second, third = sorted(parts)
    other = first.replace("0-of-3", "3-of-4")
    place.store.make_branch(other, parts[first])
    place.store.remove_branch(second)
    place.store.make_branch(second, parts[third])
    code, _, err = merge(place)
    assert code == 2 and f"foreign shard {other}: " in err and f"{place.server.url}/api/repos/ns/shards/" in err
    assert f"foreign shard in branch {second}: expected shard 1/3 with key " in err and "found 2/3" in err
    for name in (other, second):
        place.store.remove_branch(name)

    with_seed = f"shards/{'0' * 16}/1-of-3"
    place.store.make_branch(with_seed, parts[second])
    manifest = json.loads(place.store.on(with_seed).resolve().contents[MANIFEST])
    manifest |= {"key": "0" * 64, "parameters": {**manifest["parameters"], "seed": 7}}
    change(place, with_seed, tmp_path, {MANIFEST: json.dumps(manifest)})
    code, _, err = merge(place)
    assert code == 2 and f"foreign shard 1/3 in branch {with_seed}: made with different" in err
    assert "(seed is 7 there, 0 here)" in err and "missing shards of M0 02_gen_responses: 1/3." in err
    place.store.remove_branch(with_seed)
    place.store.make_branch(second, parts[second])


def change(place, branch, tmp_path, files):
    store = place.store.on(branch)
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    message = "changed"
    store.push({path: tmp_path / path for path in files}, key="cd", message=message, expected_head=store.resolve().head)


def test_shard_that_differs_from_its_manifest_is_reported(place, parts, tmp_path):
    name = min(parts)
    change(place, name, tmp_path, {RESPONSES: "{}\n"})
    code, _, err = merge(place)
    assert code == 2 and RESPONSES in err and "XXH3-128 recorded" in err
    place.store.remove_branch(name)
    place.store.make_branch(name, parts[name])


def test_duplicate_missing_and_foreign_rows_are_reported():
    def row(name, n, position=None):
        return Response(prompt_id=name, prompt="p", completion=str(n), position=position)

    def rows(*pairs):
        return [row(name, n, position) for name, position in pairs for n in range(2)]

    ids = ["a", "b", "c"]
    joined = shards.join([rows(("a", 0), ("c", 2)), rows(("b", 1))], ids, 2)
    assert joined == [row(name, n) for name in ids for n in range(2)]
    with pytest.raises(UserError) as found:
        shards.join([rows(("a", 0), ("b", 1)), rows(("b", 1), ("b", 2), ("d", 3)), rows(("c", 2))[:1]], ids, 2)
    assert found.value.problems[:-1] == [
        *["shard 1/3 has prompt b at 2, where the input has c"] * 2,
        *["shard 1/3 has prompt d at 3, where the input has none"] * 2,
        "prompt b (row 2 of the input) occurs twice: 4 rows in shard 0/3 and 1/3, expected 2",
        "prompt c (row 3 of the input) has 1 of 2 rows in shard 2/3",
    ]
    with pytest.raises(UserError, match="prompt c .row 3 of the input. is in no shard"):
        shards.join([rows(("a", 0)), rows(("b", 1))], ids, 2)


@pytest.fixture(scope="module")
def merged(place, parts):
    """02 merged; the first merge was killed between its commit and the removal of the branches."""
    script = KILLED_IN.format(module="self_reward.run.shards", target="module.remove", call=1)
    code, _, err = merge(place, before=["-c", script])
    assert code == -signal.SIGKILL, err
    commit = place.store.resolve().commit
    assert place.store.branches("shards/") == parts
    for _ in range(2):
        code, out, err = merge(place)
        assert (code, out) == (0, f"M0 02_gen_responses  skipped  (commit {commit})\n"), err
        assert not place.store.branches("shards/")
    return commit


def pulled(place, path, to):
    place.store.pull(place.store.resolve(), [path], to)
    return to / path


def test_merge_is_one_commit_and_equals_the_undivided_run(place, merged, whole, tmp_path):
    own, undivided = small(place, MANIFEST), json.loads((whole / MANIFEST).read_text())
    log = place.store.resolve().log
    assert [commit.key for commit in log].count(own["key"]) == 1 and log[0].id == merged
    assert own["key"] == undivided["key"] and own["counts"] == undivided["counts"] and "shard" not in own
    assert len(own["details"]["shards"]) == 3 and own["details"]["sampler"] == undivided["details"]["sampler"]
    assert pulled(place, RESPONSES, tmp_path).read_bytes() == (whole / RESPONSES).read_bytes()


def test_hashes_of_inputs_are_known_from_manifests(place, merged, whole, tmp_path):
    """A machine with nothing on its disk finds the stage's key without fetching gigabytes of base model."""
    store = open_store(place.address, branch="main", lock_timeout=1, store_timeout=60, cache_dir=tmp_path)
    fake = place.server.fake
    before = len(fake.requests) if fake else 0
    assert store.resolve().sha256[PROMPTS] == hashlib.sha256((whole / PROMPTS).read_bytes()).hexdigest()
    if fake:
        assert not [one.path for one in fake.requests[before:] if one.path.endswith(PROMPTS)]


def test_shard_is_skipped_if_the_whole_result_exists(place, merged):
    code, out, err = place.run("stages/02_gen_responses.py", "--shard", "2/3")
    assert (code, out) == (0, f"M0 02_gen_responses 2/3  skipped  (commit {merged})\n"), err
    assert not place.store.branches("shards/")


def test_scores_are_divided_and_merged_too(place, merged, whole, tmp_path):
    for code, _, err in place.all_shards("03_gen_scores", 2):
        assert code == 0, err
    code, out, err = merge(place, "03_gen_scores", 2)
    assert code == 0 and out.startswith("M0 03_gen_scores  "), err
    assert not place.store.branches("shards/")
    own, undivided = (list(jsonl.read(path)) for path in (pulled(place, SCORES, tmp_path), whole / SCORES))
    for one, other in zip(own, undivided, strict=True):
        # a forced score is computed in other batches, so it is rounded differently
        assert one.pop("votes") == pytest.approx(other.pop("votes")) and one.pop("score") == pytest.approx(
            other.pop("score")
        )
        assert one == other
    assert len({json.dumps(row) for row in own}) == len(own)
    counts = json.loads((whole / "M0/03_gen_scores.manifest.json").read_text())["counts"]
    assert small(place, "M0/03_gen_scores.manifest.json")["counts"] == counts


SIXTEEN = """
import sys
from self_reward.parameters.stages import GenResponses
from self_reward.repository import jsonl
from self_reward.rows import Prompt, Response
from self_reward.run import stage

def work(p, run):
    number, count = run.job.shard
    rows = [
        Response(prompt_id=row.prompt_id, prompt=row.prompt, completion=str(n), finish_reason="stop", tokens=1,
                 position=position)
        for position, row in enumerate(run.rows("prompts", Prompt, p.max_bad_rows))
        if position % count == number
        for n in range(2)
    ]
    run.counts["responses"] = jsonl.write(run.output("responses"), rows)
    run.details["sampler"] = "none"

stage.main("02_gen_responses", GenResponses, work, "In place of stages/02_gen_responses.py.")
"""


def test_sixteen_shards_at_once_while_another_run_commits(place, merged, folder, tmp_path):
    """Work without a model: what is tried here is the repository. 18 prompts, so that two shards have more than one."""
    (tmp_path / "02_gen_responses.py").write_text(SIXTEEN)
    seed = ["--seed", "16"]  # another key than that of what is there
    running = [
        start(folder, place.address, [tmp_path / "02_gen_responses.py", "--shard", f"{i}/16", *seed]) for i in range(16)
    ]
    other, commits = place.store.on("other"), []
    while any(process.poll() is None for process in running):
        (tmp_path / "note").write_text("x" * (len(commits) + 1))  # a size of its own, see test_remote_writers.py
        commits.append(other.put({"notes/note.txt": tmp_path / "note"}, message=f"note {len(commits)}"))
    for process in running:
        code, _, err = end(process)
        assert code == 0, err
    assert len(place.store.branches("shards/")) == 16
    assert [commit.id for commit in other.resolve().log][: len(commits)] == commits[::-1] and len(commits) > 2
    code, out, err = place.run("stages/02_gen_responses.py", "--merge", "--shards", "16", *seed)
    assert code == 0 and "prompts=18 responses=36 truncated=0 tokens=36" in out, err
    rows = list(jsonl.read(pulled(place, RESPONSES, tmp_path), Response))
    assert [(row.prompt_id, row.completion, row.position) for row in rows] == [
        (f"id-{i}", str(n), None) for i in range(18) for n in range(2)
    ]
    assert not place.store.branches("shards/")
    place.store.remove_branch("other")


def test_shards_need_a_server_and_exclude_merge(folder, whole):
    for words in (["--shard", "0/2"], ["--merge", "--shards", "2"]):
        code, out, err = end(start(folder, whole, ["stages/02_gen_responses.py", *words]))
        assert (code, out) == (2, "") and "shards need a data repository on a server" in err
    code, _, err = end(start(folder, whole, ["stages/02_gen_responses.py", "--shard", "2/2"]))
    assert code == 2 and "of 2 shards the first is 0/2, the last 1/2" in err
    code, _, err = end(start(folder, whole, ["stages/03_gen_scores.py", "--merge", "--shard", "0/2"]))
    assert code == 2 and "--shard 0/2 is for one part of the work; --merge takes --shards, the number of parts" in err

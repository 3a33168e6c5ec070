"""The loop end to end, in a small size: the real script, stages, Oxen, trainer and sampler, over the demo's world.

The model is trained for too short to be good; that it learns is shown by `make demo` (docs/experiments.md).
"""

import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from self_reward.repository import artifacts, jsonl
from self_reward.store import is_manifest, open_store, recorded_sha256
from tests.stages.test_golden import GOLDEN, shape
from tests.support import servers
from tests.support.running import address, running

ROOT = Path(__file__).parents[2]
SMALL = {
    "sft_max_steps": 70, "num_prompts": 24, "eval_prompts": 40, "eval_judge_groups": 10, "min_margin": 0,
    "judge_votes": 2, "prompt_pattern": "", "prompt_min_words": 3, "prompt_max_requests": 40, "sampler_batch_size": 32,
    "dpo_epochs": 1, "dpo_batch_size": 8, "dpo_micro_batch_size": 8, "dpo_warmup_ratio": 0,
}  # fmt: skip
ORDER = ["00_sft", "01_gen_prompts", "02_gen_responses", "03_gen_scores", "04_gen_preferences", "05_dpo", "06_evaluate"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from demo import make_data

    folder = tmp_path_factory.mktemp("loop") / "data"
    patch = pytest.MonkeyPatch()
    sizes = {"INSTRUCTIONS": 900, "JUDGEMENTS": 1300, "NEW_TASKS": 250, "REPETITIONS": 300, "COMPARISONS": 300}
    for name, value in {**sizes, "HELD_OUT": 60}.items():
        patch.setattr(make_data, name, value)
    make_data.make(folder, 0)
    patch.undo()
    return folder


def run(data, start, *words, cache=None):
    begin = time.monotonic()
    ended = subprocess.run(
        [ROOT / "self-reward.sh", "stages", "oxen:models/base", start, "--data_repo", str(data),
         "--cache_dir", str(cache or data.parent / "cache"), "--parameter_file", "presets/demo.yaml",
         *(word for name, value in SMALL.items() for word in (f"--{name}", str(value))), *words],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    return ended, time.monotonic() - begin


def log(data):
    return open_store(str(data), branch="main", lock_timeout=60, store_timeout=60).resolve().log


def digest(data, pattern):
    return {
        str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(data.glob(pattern))
    }


def manifest(data, k, stage):
    return json.loads((data / f"M{k}/{stage}.manifest.json").read_text())


@pytest.fixture(scope="module")
def done(data):
    ended, _ = run(data, "M0", "--iterations", "2")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, log(data)


def test_b6_two_iterations_write_every_result_to_its_place(data, done):
    shown, commits = done
    lines = shown.splitlines()
    ran = [re.match(r"(M\d \S+)  +(\d+\.\d s|nothing to do)", line) for line in lines[:-1]]
    expected = [f"M{k} {stage}" for k in range(2) for stage in ORDER] + ["M1 07_export"]
    assert [match and match[1] for match in ran] == expected
    assert "M1 00_sft  nothing to do (M1 has no SFT; its policy is M0/dpo)" in shown
    assert lines[-1] == f"done: the model is M1/dpo; everything is in {data}, one commit per stage"
    of_stages = [c.message.splitlines()[0].split(":")[0] for c in reversed(commits) if c.key]
    assert of_stages == [name for name in expected if name != "M1 00_sft"]  # one commit a stage, in order (B21)
    for k in range(2):
        for template in (artifacts.PROMPTS, artifacts.RESPONSES, artifacts.SCORES, artifacts.PREFERENCES):
            assert (data / template.format(k=k)).stat().st_size > 0
        assert (data / artifacts.DPO.format(k=k) / "adapter_model.safetensors").is_file()
        assert (data / artifacts.EVAL_OF_DPO.format(k=k)).is_file()
    assert (data / artifacts.SFT.format(k=0) / "model.safetensors").is_file()
    assert (data / artifacts.MERGED.format(k=1) / "model.safetensors").is_file()


def test_rows_have_the_documented_columns_and_belong_together(data, done):
    for k in range(2):
        rows = {
            name: list(jsonl.read(data / artifacts.ARTIFACTS[name].path.format(k=k)))
            for name in ("prompts", "responses", "scores", "preferences")
        }
        for name, found in rows.items():
            kind = artifacts.ARTIFACTS[name].rows
            assert list(found[0]) == [column for column in kind.__struct_fields__ if column != "position"]
        assert len(rows["prompts"]) == 24
        assert [row["prompt_id"] for row in rows["prompts"] for _ in range(4)] == [
            row["prompt_id"] for row in rows["responses"]
        ]
        assert [row["response_id"] for row in rows["responses"]] == [row["response_id"] for row in rows["scores"]]
        answers = {(row["prompt_id"], row["completion"]): row["score"] for row in rows["scores"]}
        for pair in rows["preferences"]:
            assert pair["score_chosen"] > pair["score_rejected"]  # B14: an unreadable score is never paired
            assert (pair["prompt_id"], pair["chosen"]) in answers and (pair["prompt_id"], pair["rejected"]) in answers
        assert all(len(row["votes"]) == 2 for row in rows["scores"])  # B12


def test_b2_new_prompts_are_unique_and_neither_seed_nor_held_out(data, done):
    seeds = {row["prompt"] for row in jsonl.read(data / "M0/train/ift.jsonl")}
    held_out = {row["prompt"] for row in jsonl.read(data / "M0/eval/prompts.jsonl")}
    written = [row["prompt"] for k in range(2) for row in jsonl.read(data / artifacts.PROMPTS.format(k=k))]
    assert len(set(written)) == len(written)
    assert not set(written) & (seeds | held_out)


def test_b21_manifest_records_how_each_result_was_made(data, done):
    for stage in ORDER:
        found = manifest(data, 0, stage)
        assert found["key"] and found["seconds"] > 0 and found["versions"]["trl"] == "1.16.0"
        assert found["parameters"]["seed"] == 0 and found["inputs"]
        for path, output in found["outputs"].items():
            assert hashlib.sha256((data / path).read_bytes()).hexdigest() == output["sha256"]
    assert manifest(data, 1, "02_gen_responses")["inputs"]["checkpoint:M0/dpo"]


def test_manifests_have_the_shape_of_version_0_1(data, done):
    golden = json.loads((GOLDEN / "manifests.json").read_text())
    found = {
        str(path.relative_to(data)): shape(json.loads(path.read_text())) for path in data.glob("M*/*.manifest.json")
    }
    assert sorted(found) == sorted(golden)
    for path, expected in golden.items():
        assert found[path] == expected, path


def test_b22_judge_and_model_are_measured(data, done):
    for name in ("M0/eval/sft.json", "M0/eval/dpo.json", "M1/eval/dpo.json"):
        found = json.loads((data / name).read_text())
        assert found["prompts"] == 40 and found["verifier"]["reward"]["n"] == 40
        assert 0 <= found["verifier"]["reward"]["mean"] <= 5
        assert 0 < found["judge"]["parse_rate"] <= 1
        assert found["judge"]["agreement"]["groups"] == 10


def test_second_run_skips_everything_without_a_commit(data, done):
    ended, seconds = run(data, "M0", "--iterations", "2")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("  skipped  (commit ") == 14
    assert seconds < 60
    assert log(data) == done[1]


def test_changed_parameter_runs_04_and_all_later_stages(data, done):
    before = digest(data, "M1/**/*.jsonl") | digest(data, "M1/models/dpo/final_checkpoint/*")
    ended, _ = run(data, "M1", "--max_pairs", "2")
    assert ended.returncode == 0, ended.stderr
    again = [line.split()[1] for line in ended.stdout.splitlines() if "  skipped  " not in line][:-1]
    assert again == ["00_sft", "04_gen_preferences", "05_dpo", "06_evaluate", "07_export"]  # 00 has nothing to do
    changed = digest(data, "M1/generated/*.jsonl")
    assert [name for name in changed if changed[name] != before[name]] == ["M1/generated/preferences.jsonl"]
    ended, _ = run(data, "M1")
    assert ended.returncode == 0 and ended.stdout.count("  skipped  ") == 7
    assert digest(data, "M1/**/*.jsonl") | digest(data, "M1/models/dpo/final_checkpoint/*") == before


def test_stop_rule_ends_the_run_with_a_reason(data, done):
    ended, _ = run(data, "M1", "--min_pairs", "1000")
    assert ended.returncode == 0
    last = ended.stdout.splitlines()[-1]
    assert last.startswith("stopped after M1 04_gen_preferences: ") and "Expected at least 1000 pairs" in last
    assert "05_dpo" not in ended.stdout
    assert "M1 04_gen_preferences  skipped" in ended.stdout  # another bound is asked of the counts that are there


def test_b21_impossible_run_ends_before_the_first_stage(data, done):
    ended, _ = run(data, "M5", "--sampler", "vlmm", "--rubrik", "x")
    assert ended.returncode == 2 and "did you mean rubric?" in ended.stderr and "sampler = 'vlmm'" in ended.stderr
    ended, _ = run(data, "M5", "--rubric", "no/such.txt", "--verifier", "no.such:thing", "--iteration", "7")
    assert ended.returncode == 2
    for expected in (
        "M4/dpo does not exist; the data repository has M0/dpo, M0/sft, M1/dpo",
        "no/such.txt",
        "no.such",
        "iteration is for one",
    ):
        assert expected in ended.stderr
    assert ended.stdout == ""


def test_loop_writes_the_same_files_on_a_server(data, done, tmp_path):
    """On a real server where there is one, else on the double."""
    local = open_store(str(data), branch="main", lock_timeout=60, store_timeout=60).resolve()
    written = recorded_sha256(local.contents)
    users = {path: data / path for path in local.files if path not in written and not is_manifest(path)}
    with running("fake" if servers.missing("real") else "real", tmp_path / "server") as server:
        repository = address(server.url, "loop")
        store = open_store(repository, branch="main", lock_timeout=0, store_timeout=60, cache_dir=tmp_path / "cache")
        store.create()
        first = store.put(users, message="user data")
        ended, _ = run(repository, "M0", cache=tmp_path / "cache")
        assert ended.returncode == 0, ended.stderr
        remote = store.resolve()
        made = [path for path in remote.files if path.startswith("M0/") and path in recorded_sha256(remote.contents)]
        assert len([path for path in made if path.startswith("M0/generated/")]) == 4
        assert len([path for path in made if path.endswith("/adapter_model.safetensors")]) == 1
        # M0/models/dpo/merged is of the last iteration alone, which was M1 there
        assert {path: remote.sha256[path] for path in made if "/merged/" not in path} == {
            path: sha256 for path, sha256 in written.items() if path.startswith("M0/")
        }
        assert [c.message.split(":")[0] for c in reversed(remote.log) if c.key] == [
            f"M0 {stage}" for stage in [*ORDER, "07_export"]
        ]
        assert first in [commit.id for commit in remote.log]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended, _ = run(repository, "M0", cache=tmp_path / "cache")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert ended.returncode == 0 and ended.stdout.count("  skipped  ") == 8, ended.stderr
        assert store.resolve().log == remote.log and not store.branches("shards/")
        # processor time: what else runs on the machine is not the stages' doing; plan is one of the nine programs
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 9 * 3


def test_b3_responses_come_from_the_requested_policy(data, done):
    """`--sft never` makes the untrained base model the policy; a stage that ignored it would write the same again."""
    before = [row["completion"] for row in jsonl.read(data / artifacts.RESPONSES.format(k=0))]
    ended = subprocess.run(
        [sys.executable, "stages/02_gen_responses.py", "--sft", "never", "--base_model", "oxen:models/base",
         "--data_repo", str(data), "--cache_dir", str(data.parent / "cache"), "--response_max_tokens", "24",
         "--sampler", "transformers", "--sampler_batch_size", "32", "--branch", "untrained"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    after = [row["completion"] for row in jsonl.read(data / artifacts.RESPONSES.format(k=0))]
    assert len(after) == len(before) and sum(a == b for a, b in zip(after, before, strict=True)) < len(after) / 10


def test_exported_folder_loads_and_equals_the_merged_model(data, done, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "self_reward.cli", "export", "M1/dpo", "--to", str(tmp_path / "model"), "--data_repo",
         str(data), "--base_model", "oxen:models/base", "--cache_dir", str(data.parent / "cache")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template
    assert sum(p.numel() for p in model.parameters()) > 800_000
    weights = "model.safetensors"
    assert (tmp_path / "model" / weights).read_bytes() == (data / "M1/models/dpo/merged" / weights).read_bytes()

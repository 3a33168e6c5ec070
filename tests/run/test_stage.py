"""The stage contract, on a program of a few lines that runs as a process on a real local repository."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xxhash

from tests.support.stage_program import (
    KILLED,
    MANIFEST,
    PREFERENCES,
    ROOT,
    leftovers,
    log_of,
    run,
    snapshot_of,
)


def test_a_stage_commits_once_and_is_skipped_after_that(scored_repo, tmp_path):
    commit_file, result_file, stop_file = tmp_path / "commit", tmp_path / "result", tmp_path / "stop"
    flags = ("--commit_file", str(commit_file), "--result_file", str(result_file), "--stop_file", str(stop_file))
    code, out, err = run(scored_repo, *flags)
    assert code == 0, err
    commit = commit_file.read_text()
    assert out.count("\n") == 1 and out.startswith("M0 04_gen_preferences  ") and "pairs=2" in out and commit in out
    assert stop_file.read_text() == "" and result_file.read_text() == commit and not leftovers(scored_repo)
    assert (scored_repo / PREFERENCES).read_text() == '{"a": 1} 0.0\n{"a": 2} 0.0\n'
    manifest = json.loads((scored_repo / MANIFEST).read_text())
    scores = "M0/generated/scores.jsonl"
    assert manifest["inputs"]["scores"][scores] == sha256(scored_repo / scores)
    assert manifest["outputs"] == {
        PREFERENCES: {"sha256": sha256(scored_repo / PREFERENCES), "xxh3": xxh3(scored_repo / PREFERENCES), "size": 26}
    }
    assert manifest["counts"] == {"pairs": 2} and manifest["versions"]["oxenai"] and manifest["seed"] == 0
    assert log_of(scored_repo) == ["M0 04_gen_preferences: 2 pairs", "user data: M0/generated/scores.jsonl"]

    commit_file.unlink()
    result_file.unlink()
    code, out, err = run(scored_repo, *flags, body="raise RuntimeError('not skipped')")
    assert (code, out) == (0, f"M0 04_gen_preferences  skipped  (commit {commit})\n"), err
    assert commit_file.read_text() == result_file.read_text() == commit and f"done already: {commit}" in err
    assert len(log_of(scored_repo)) == 2


def test_the_manifest_has_the_revision_of_the_image(scored_repo, monkeypatch):
    monkeypatch.setenv("SELF_REWARD_REVISION", "abc-dirty")
    assert run(scored_repo)[0] == 0
    assert json.loads((scored_repo / MANIFEST).read_text())["versions"]["revision"] == "abc-dirty"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def xxh3(path: Path) -> str:
    return format(xxhash.xxh3_128_intdigest(path.read_bytes()), "x")


def test_changed_inputs_run_again_but_neutral_parameters_do_not(scored_repo):
    assert run(scored_repo)[0] == 0
    assert "skipped" in run(scored_repo, "--lock_timeout", "7")[1]
    for flags in (["--min_margin", "0.5"], ["--seed", "1"]):
        code, out, err = run(scored_repo, *flags)
        assert code == 0 and "pairs=2" in out, err
    (scored_repo / "M0/generated/scores.jsonl").write_text('{"a": 3}\n')
    code, out, err = run(scored_repo)
    assert code == 0 and "pairs=1" in out, err
    assert (scored_repo / PREFERENCES).read_text() == '{"a": 3} 0.0\n'


def test_the_result_of_an_older_commit_is_committed_again(scored_repo):
    first = run(scored_repo)[1]
    assert run(scored_repo, "--min_margin", "0.5")[0] == 0
    code, out, err = run(scored_repo, body="raise RuntimeError('not found')")
    assert code == 0 and "skipped" in out, err
    assert (scored_repo / PREFERENCES).read_text() == '{"a": 1} 0.0\n{"a": 2} 0.0\n'
    messages = log_of(scored_repo)
    assert len(messages) == 4 and messages[0].startswith("M0 04_gen_preferences: 2 pairs (again, from commit ")
    assert first.split()[-1] in messages[0] and not leftovers(scored_repo)


def test_force_runs_and_commits_again(scored_repo):
    assert run(scored_repo)[0] == 0
    code, out, err = run(scored_repo, "--force")
    assert code == 0 and "pairs=2" in out, err
    assert len(log_of(scored_repo)) == 3


def test_force_uses_the_commit_of_an_earlier_try_of_this_step(scored_repo):
    """A pod may be lost between its commit and its end; its next try is pinned to the same commit."""
    assert run(scored_repo)[0] == 0
    start = snapshot_of(scored_repo).head
    assert run(scored_repo, "--force", "--revision", start)[0] == 0
    made = snapshot_of(scored_repo).head
    assert made != start
    code, out, err = run(scored_repo, "--force", "--revision", start, body="raise RuntimeError('done twice')")
    assert code == 0 and f"skipped  (commit {made})" in out and snapshot_of(scored_repo).head == made, err


def test_pinned_step_finds_its_own_earlier_commit_only(scored_repo, tmp_path):
    def commits() -> list[str]:
        return [commit.id for commit in snapshot_of(scored_repo).log]

    start_commit = commits()[0]
    assert run(scored_repo, "--revision", start_commit)[0] == 0
    head = commits()[0]
    code, out, err = run(scored_repo, "--revision", start_commit, "--commit_file", str(tmp_path / "commit"))
    assert code == 0 and "skipped" in out, err
    assert (tmp_path / "commit").read_text() == head
    code, out, err = run(scored_repo, "--revision", start_commit, "--min_margin", "1")
    assert (
        code == 2 and f"starts from commit {start_commit}, after which another run or person committed {head} by" in err
    )
    assert re.search(r" by self-reward at 20\d\d-\d\d-\d\d.*: 'M0 04_gen_preferences: 2 pairs'. To continue", err), err
    assert commits() == [head, start_commit]

    (scored_repo / "M0/more.txt").write_text("user data")
    assert len(commits()) == 3
    code, out, err = run(scored_repo, "--revision", start_commit, "--commit_file", str(tmp_path / "commit"))
    assert code == 0 and "skipped" in out, err
    assert (tmp_path / "commit").read_text() == head and len(commits()) == 3


OTHER = "__import__('subprocess').run([sys.executable, *sys.argv, '--work_dir', {work!r}, *{flags}], check=True)"


@pytest.mark.parametrize("flags", [[], ["--min_margin", "1"]])
def test_second_run_on_a_branch_stops_unless_results_are_equal(scored_repo, tmp_path, flags):
    """While this one works, another makes its commit, and continues with more."""
    other = OTHER.format(work=str(tmp_path / "other"), flags=flags)
    body = f"""if 'other' not in ' '.join(sys.argv):
        {other}
        open({str(scored_repo / "M0/more.txt")!r}, 'w').write('user data')
        {OTHER.format(work=str(tmp_path / "other"), flags=["--min_margin", "2"])}"""
    code, out, err = run(scored_repo, "--commit_file", str(tmp_path / "commit"), body=body)
    messages = log_of(scored_repo)
    assert len(messages) == 4 and messages[1] == "user data: M0/more.txt"
    if flags:
        assert (code, out.count("commit ")) == (2, 2) and "branch main moved while this stage ran" in err, err
        assert re.search(r"found \w+ \('M0 04_gen_preferences: 2 pairs' by self-reward at 20\d\d-", err), err
    else:
        assert code == 0 and "another process has committed this very result" in err, err
        assert (tmp_path / "commit").read_text() in out.splitlines()[0]
    assert "Traceback" not in err


def test_older_result_is_not_committed_after_another_runs_commit(scored_repo):
    for margin in ("0", "1", "2"):
        code, out, err = run(scored_repo, "--min_margin", margin)
        assert code == 0, err
        if margin == "1":
            middle = out.split()[-1]
    code, _, err = run(scored_repo, "--min_margin", "0", "--revision", middle)
    assert code == 2 and "has moved on" in err and len(log_of(scored_repo)) == 4


def test_a_stop_rule_is_recorded_and_repeated_when_skipped(scored_repo, tmp_path):
    stop_file = tmp_path / "stop"
    rule = "lambda p, counts, details: 'too few pairs' if p.min_pairs > 3 else None"
    for words in ([], ["--min_pairs", "9"]):
        code, out, err = run(scored_repo, "--stop_file", str(stop_file), "--min_pairs", "5", *words, rule=rule)
        assert (code, stop_file.read_text()) == (0, "too few pairs"), err
        stop_file.unlink()
    assert "skipped" in out
    code, out, err = run(scored_repo, "--stop_file", str(stop_file), rule=rule)  # a lower bound needs no new run
    assert (code, stop_file.read_text(), "skipped" in out) == (0, "", True), err
    assert json.loads((scored_repo / MANIFEST).read_text())["stop"] == "too few pairs"


def test_missing_inputs_and_typos_are_reported_before_work(scored_repo):
    code, _, err = run(scored_repo, "--iteration", "1")
    assert code == 2 and "M1/generated/scores.jsonl" in err and "03_gen_scores" in err
    code, _, err = run(scored_repo, "--min_margn", "1", "--seed", "x")
    assert code == 2 and "min_margin" in err and "seed" in err and "Traceback" not in err
    code, _, err = run(scored_repo, "--work_dir", str(scored_repo / "work"))
    assert code == 2 and "inside the data repository" in err


def test_users_file_in_place_of_an_output_is_not_overwritten(scored_repo):
    (scored_repo / PREFERENCES).write_text("mine\n")
    code, _, err = run(scored_repo)
    assert code == 2 and PREFERENCES in err and "no manifest" in err
    assert (scored_repo / PREFERENCES).read_text() == "mine\n"


def test_progress_is_a_few_lines_and_a_file_for_argo(scored_repo, tmp_path):
    body = "[run.progress(i, 1000, 'prompts') for i in range(1001)]"
    code, _, err = run(scored_repo, body=body, ARGO_PROGRESS_FILE=str(tmp_path / "progress"))
    assert code == 0 and (tmp_path / "progress").read_text() == "1000/1000"
    assert 1 <= err.count("prompts ") <= 3, err
    assert all(line[2] == ":" and " 04_gen_preferences " in line for line in err.splitlines()), err


def test_a_skipped_stage_costs_little(scored_repo):
    assert run(scored_repo)[0] == 0
    began = time.monotonic()
    assert "skipped" in run(scored_repo)[1]
    assert time.monotonic() - began < 10  # seconds; about 0.7 on an idle machine


def test_nothing_heavy_is_imported_by_the_contract():
    script = (
        "import sys, self_reward.run.stage, self_reward.store.local.store;"
        "print([m for m in ('torch', 'transformers', 'vllm', 'oxen', 'polars', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_kill_right_after_the_commit_leaves_nothing(scored_repo, tmp_path):
    commit_file = tmp_path / "commit"
    body = f"stage.finish = lambda p, commit, *rest: {KILLED} if commit else None"
    assert run(scored_repo, "--commit_file", str(commit_file), body=body)[0] == -signal.SIGKILL
    assert leftovers(scored_repo) and commit_file.read_text() == ""
    code, out, err = run(scored_repo, "--commit_file", str(commit_file), body="raise RuntimeError('not skipped')")
    assert code == 0 and out == f"M0 04_gen_preferences  skipped  (commit {commit_file.read_text()})\n", err
    assert not leftovers(scored_repo)
    assert log_of(scored_repo) == ["M0 04_gen_preferences: 2 pairs", "user data: M0/generated/scores.jsonl"]


def test_accepted_file_counts_as_written_by_its_stage(scored_repo):
    def changed(content: str) -> None:
        (scored_repo / PREFERENCES).write_text(content)
        code, _, err = run(scored_repo)
        assert code == 2
        words = re.findall(r"self-reward (accept .*)", err)[0].split()
        command = [sys.executable, "-m", "self_reward.cli", *words]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)

    assert run(scored_repo)[0] == 0
    changed("mine\n")
    code, out, err = run(scored_repo, body="raise RuntimeError('not skipped')")
    assert code == 0 and "skipped" in out and (scored_repo / PREFERENCES).read_text() == "mine\n", err
    assert run(scored_repo, "--min_margin", "0.5")[0] == 0
    code, out, err = run(scored_repo, body="raise RuntimeError('not skipped')")
    assert code == 0 and "skipped" in out and (scored_repo / PREFERENCES).read_text() == "mine\n", err
    assert run(scored_repo, "--force")[0] == 0
    assert (scored_repo / PREFERENCES).read_text() == '{"a": 1} 0.0\n{"a": 2} 0.0\n'

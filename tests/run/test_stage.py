"""The stage contract, on programs of a few lines that run as processes on a real local repository."""

import fcntl
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

ROOT = Path(__file__).parents[2]
PREFERENCES = "M0/generated/preferences.jsonl"
MANIFEST = "M0/04_gen_preferences.manifest.json"
PROGRAM = """
import os, sys, time
from self_reward.run import stage
from self_reward.errors import TryAgain, UserError

def work(p, run):
    assert "torch" not in sys.modules and "vllm" not in sys.modules
    rows = run.input("scores").read_text().splitlines()
    {body}
    run.output("preferences").write_text("".join(f"{{row}} {{p.min_margin}}\\n" for row in rows))
    run.counts["pairs"] = len(rows)

sys.exit(stage.main("04_gen_preferences", work, "A program for tests.", {rule}))
"""


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "data"
    (folder / "M0/generated").mkdir(parents=True)
    (folder / "M0/generated/scores.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    return folder


def start(repo: Path, *flags: str, body: str = "pass", rule: str = "None", **environment: str) -> subprocess.Popen:
    program = repo.parent / f"program_{hashlib.sha256(f'{body} {rule}'.encode()).hexdigest()[:8]}.py"
    program.write_text(PROGRAM.format(body=body, rule=rule))
    command = [sys.executable, str(program), "--data_repo", str(repo), "--work_dir", str(repo.parent / "work"), *flags]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(repo: Path, *flags: str, body: str = "pass", rule: str = "None", **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = start(repo, *flags, body=body, rule=rule, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def log_of(repo: Path) -> list[str]:
    from self_reward.store import open_store

    snapshot = open_store(str(repo), branch="main", lock_timeout=10, store_timeout=60).resolve()
    return [commit.message for commit in snapshot.log]


def head_of(repo: Path) -> str:
    from self_reward.store import open_store

    return open_store(str(repo), branch="main", lock_timeout=10, store_timeout=60).resolve().head


def leftovers(repo: Path) -> list[Path]:
    work = repo.parent / "work"
    return list(work.iterdir()) if work.exists() else []


def test_a_stage_commits_once_and_is_skipped_after_that(repo, tmp_path):
    commit_file, result_file, stop_file = tmp_path / "commit", tmp_path / "result", tmp_path / "stop"
    flags = ("--commit_file", str(commit_file), "--result_file", str(result_file), "--stop_file", str(stop_file))
    code, out, err = run(repo, *flags)
    assert code == 0, err
    commit = commit_file.read_text()
    assert out.count("\n") == 1 and out.startswith("M0 04_gen_preferences  ") and "pairs=2" in out and commit in out
    assert stop_file.read_text() == "" and result_file.read_text() == commit and not leftovers(repo)
    assert (repo / PREFERENCES).read_text() == '{"a": 1} 0.0\n{"a": 2} 0.0\n'
    manifest = json.loads((repo / MANIFEST).read_text())
    assert manifest["inputs"]["scores"]["M0/generated/scores.jsonl"] == sha256(repo / "M0/generated/scores.jsonl")
    assert manifest["outputs"] == {
        PREFERENCES: {"sha256": sha256(repo / PREFERENCES), "xxh3": xxh3(repo / PREFERENCES), "size": 26}
    }
    assert manifest["counts"] == {"pairs": 2} and manifest["versions"]["oxenai"] and manifest["seed"] == 0
    assert log_of(repo) == ["M0 04_gen_preferences: 2 pairs", "user data: M0/generated/scores.jsonl"]

    commit_file.unlink()
    result_file.unlink()
    code, out, err = run(repo, *flags, body="raise RuntimeError('not skipped')")
    assert (code, out) == (0, f"M0 04_gen_preferences  skipped  (commit {commit})\n"), err
    assert commit_file.read_text() == result_file.read_text() == commit and f"done already: {commit}" in err
    assert len(log_of(repo)) == 2


def test_the_manifest_has_the_revision_of_the_image(repo, monkeypatch):
    monkeypatch.setenv("SELF_REWARD_REVISION", "abc-dirty")
    assert run(repo)[0] == 0
    assert json.loads((repo / MANIFEST).read_text())["versions"]["revision"] == "abc-dirty"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def xxh3(path: Path) -> str:
    return format(xxhash.xxh3_128_intdigest(path.read_bytes()), "x")


def test_changed_parameters_inputs_and_seed_run_again_but_neutral_ones_do_not(repo):
    assert run(repo)[0] == 0
    assert "skipped" in run(repo, "--lock_timeout", "7")[1]
    for flags in (["--min_margin", "0.5"], ["--seed", "1"]):
        code, out, err = run(repo, *flags)
        assert code == 0 and "pairs=2" in out, err
    (repo / "M0/generated/scores.jsonl").write_text('{"a": 3}\n')
    code, out, err = run(repo)
    assert code == 0 and "pairs=1" in out, err
    assert (repo / PREFERENCES).read_text() == '{"a": 3} 0.0\n'


def test_the_result_of_an_older_commit_is_committed_again(repo):
    first = run(repo)[1]
    assert run(repo, "--min_margin", "0.5")[0] == 0
    code, out, err = run(repo, body="raise RuntimeError('not found')")
    assert code == 0 and "skipped" in out, err
    assert (repo / PREFERENCES).read_text() == '{"a": 1} 0.0\n{"a": 2} 0.0\n'
    messages = log_of(repo)
    assert len(messages) == 4 and messages[0].startswith("M0 04_gen_preferences: 2 pairs (again, from commit ")
    assert first.split()[-1] in messages[0] and not leftovers(repo)


def test_force_runs_and_commits_again(repo):
    assert run(repo)[0] == 0
    code, out, err = run(repo, "--force")
    assert code == 0 and "pairs=2" in out, err
    assert len(log_of(repo)) == 3


def test_force_takes_what_a_try_of_this_very_step_has_committed(repo):
    """A pod may be lost between its commit and its end; its next try is pinned to the same commit."""
    assert run(repo)[0] == 0
    start = head_of(repo)
    assert run(repo, "--force", "--revision", start)[0] == 0
    made = head_of(repo)
    assert made != start
    code, out, err = run(repo, "--force", "--revision", start, body="raise RuntimeError('done twice')")
    assert code == 0 and f"skipped  (commit {made})" in out and head_of(repo) == made, err


def test_a_pinned_step_finds_the_commit_of_its_own_earlier_try_and_stops_at_another_runs(repo, tmp_path):
    def commits() -> list[str]:
        from self_reward.store import open_store

        store = open_store(str(repo), branch="main", lock_timeout=10, store_timeout=60)
        return [commit.id for commit in store.resolve().log]

    start_commit = commits()[0]
    assert run(repo, "--revision", start_commit)[0] == 0
    head = commits()[0]
    code, out, err = run(repo, "--revision", start_commit, "--commit_file", str(tmp_path / "commit"))
    assert code == 0 and "skipped" in out, err
    assert (tmp_path / "commit").read_text() == head
    code, out, err = run(repo, "--revision", start_commit, "--min_margin", "1")
    assert (
        code == 2 and f"starts from commit {start_commit}, after which another run or person committed {head} by" in err
    )
    assert re.search(r" by self-reward at 20\d\d-\d\d-\d\d.*: 'M0 04_gen_preferences: 2 pairs'. To go on", err), err
    assert commits() == [head, start_commit]

    (repo / "M0/more.txt").write_text("user data")
    assert len(commits()) == 3
    code, out, err = run(repo, "--revision", start_commit, "--commit_file", str(tmp_path / "commit"))
    assert code == 0 and "skipped" in out, err
    assert (tmp_path / "commit").read_text() == head and len(commits()) == 3


OTHER = "__import__('subprocess').run([sys.executable, *sys.argv, '--work_dir', {work!r}, *{flags}], check=True)"


@pytest.mark.parametrize("flags", [[], ["--min_margin", "1"]])
def test_of_two_runs_on_one_branch_the_second_stops_unless_the_first_made_the_very_same(repo, tmp_path, flags):
    """While this one works, another makes its commit, and goes on with more."""
    other = OTHER.format(work=str(tmp_path / "other"), flags=flags)
    body = f"""if 'other' not in ' '.join(sys.argv):
        {other}
        open({str(repo / "M0/more.txt")!r}, 'w').write('user data')
        {OTHER.format(work=str(tmp_path / "other"), flags=["--min_margin", "2"])}"""
    code, out, err = run(repo, "--commit_file", str(tmp_path / "commit"), body=body)
    messages = log_of(repo)
    assert len(messages) == 4 and messages[1] == "user data: M0/more.txt"
    if flags:
        assert (code, out.count("commit ")) == (2, 2) and "branch main moved while this stage ran" in err, err
        assert re.search(r"found \w+ \('M0 04_gen_preferences: 2 pairs' by self-reward at 20\d\d-", err), err
    else:
        assert code == 0 and "another process has committed this very result" in err, err
        assert (tmp_path / "commit").read_text() in out.splitlines()[0]
    assert "Traceback" not in err


def test_the_result_of_an_older_commit_is_not_brought_back_on_top_of_another_runs_commit(repo):
    for margin in ("0", "1", "2"):
        code, out, err = run(repo, "--min_margin", margin)
        assert code == 0, err
        if margin == "1":
            middle = out.split()[-1]
    code, _, err = run(repo, "--min_margin", "0", "--revision", middle)
    assert code == 2 and "has moved on" in err and len(log_of(repo)) == 4


def test_a_stop_rule_is_recorded_and_repeated_when_skipped(repo, tmp_path):
    stop_file = tmp_path / "stop"
    rule = "lambda p, counts, details: 'too few pairs' if p.min_pairs > 3 else None"
    for words in ([], ["--min_pairs", "9"]):
        code, out, err = run(repo, "--stop_file", str(stop_file), "--min_pairs", "5", *words, rule=rule)
        assert (code, stop_file.read_text()) == (0, "too few pairs"), err
        stop_file.unlink()
    assert "skipped" in out
    code, out, err = run(repo, "--stop_file", str(stop_file), rule=rule)  # a lower bound needs no new run
    assert (code, stop_file.read_text(), "skipped" in out) == (0, "", True), err
    assert json.loads((repo / MANIFEST).read_text())["stop"] == "too few pairs"


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("raise UserError(['first thing', 'second thing'])", 2, ["error: first thing", "error: second thing"]),
        ("raise TryAgain('the hub is away')", 75, ["the hub is away"]),
        ("raise OSError(28, 'No space left on device')", 75, ["disk is full"]),
        ("raise type('OutOfMemoryError', (RuntimeError,), {})('CUDA out of memory')", 75, ["memory"]),
        ("raise KeyError('oops')", 1, ["Traceback", "KeyError: 'oops'"]),
        ("return", 1, ["without writing"]),
    ],
)
def test_exit_codes_and_the_termination_log(repo, tmp_path, body, code, said):
    last = tmp_path / "termination"
    found, out, err = run(repo, body=body, TERMINATION_LOG=str(last))
    assert (found, out) == (code, ""), err
    for text in said:
        assert text in err and text in last.read_text()
    assert ("Traceback" in err) == (code == 1)
    assert log_of(repo) == ["user data: M0/generated/scores.jsonl"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_of_the_output_that_has_ended_is_no_bug(repo, unbuffered):
    process = start(repo, PYTHONUNBUFFERED=unbuffered)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 75 and "try again: what reads this program's output" in err and "Traceback" not in err
    assert "skipped" in run(repo)[1]


def test_what_is_missing_or_misspelled_is_said_before_anything_runs(repo):
    code, _, err = run(repo, "--iteration", "1")
    assert code == 2 and "M1/generated/scores.jsonl" in err and "03_gen_scores" in err
    code, _, err = run(repo, "--min_margn", "1", "--seed", "x")
    assert code == 2 and "min_margin" in err and "seed" in err and "Traceback" not in err
    code, _, err = run(repo, "--work_dir", str(repo / "work"))
    assert code == 2 and "inside the data repository" in err


def test_a_users_file_in_the_place_of_an_output_is_not_overwritten(repo):
    (repo / PREFERENCES).write_text("mine\n")
    code, _, err = run(repo)
    assert code == 2 and PREFERENCES in err and "no manifest" in err
    assert (repo / PREFERENCES).read_text() == "mine\n"


@pytest.mark.parametrize("busy", ["time.sleep(60)", "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"])
def test_sigterm_ends_a_stage_with_143_and_the_next_run_goes_on_from_partial_results(repo, tmp_path, busy):
    """The second case is one long call of a C library, in which no Python signal handler runs."""
    body = f"(run.partial / 'chunk').write_text('kept'); print('working', flush=True); {busy}"
    process = start(repo, body=body, TERMINATION_LOG=str(tmp_path / "termination"))
    assert process.stdout and process.stdout.readline() == "working\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143 and time.monotonic() - began < 20
    assert "SIGTERM" in (tmp_path / "termination").read_text()
    code, _, err = run(repo, body="assert (run.partial / 'chunk').read_text() == 'kept'")
    assert code == 0, err
    assert not leftovers(repo)


def test_two_processes_do_not_write_the_same_partial_results(repo):
    process = start(repo, body="print('working', flush=True); time.sleep(60)")
    assert process.stdout and process.stdout.readline() == "working\n"
    code, _, err = run(repo)
    process.kill()
    process.communicate()
    assert code == 75 and str(process.pid) in err
    assert run(repo)[0] == 0


def test_progress_is_sparse_lines_and_a_file_for_argo(repo, tmp_path):
    body = "[run.progress(i, 1000, 'prompts') for i in range(1001)]"
    code, _, err = run(repo, body=body, ARGO_PROGRESS_FILE=str(tmp_path / "progress"))
    assert code == 0 and (tmp_path / "progress").read_text() == "1000/1000"
    assert 1 <= err.count("prompts ") <= 3, err
    assert all(line[2] == ":" and " 04_gen_preferences " in line for line in err.splitlines()), err


def test_a_skipped_stage_costs_little(repo):
    assert run(repo)[0] == 0
    began = time.monotonic()
    assert "skipped" in run(repo)[1]
    assert time.monotonic() - began < 10  # seconds; about 0.7 on an idle machine


def test_nothing_heavy_is_imported_by_the_contract():
    script = (
        "import sys, self_reward.run.stage, self_reward.store.local.store;"
        "print([m for m in ('torch', 'transformers', 'vllm', 'oxen', 'polars', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


KILLED = "os.kill(os.getpid(), 9)"


def test_a_kill_between_the_commit_and_what_follows_it_leaves_nothing(repo, tmp_path):
    commit_file = tmp_path / "commit"
    body = f"stage.finish = lambda p, commit, *rest: {KILLED} if commit else None"
    assert run(repo, "--commit_file", str(commit_file), body=body)[0] == -signal.SIGKILL
    assert leftovers(repo) and commit_file.read_text() == ""
    code, out, err = run(repo, "--commit_file", str(commit_file), body="raise RuntimeError('not skipped')")
    assert code == 0 and out == f"M0 04_gen_preferences  skipped  (commit {commit_file.read_text()})\n", err
    assert not leftovers(repo)
    assert log_of(repo) == ["M0 04_gen_preferences: 2 pairs", "user data: M0/generated/scores.jsonl"]


def test_given_up_work_is_removed_after_two_weeks_but_not_what_is_young_or_in_use(repo):
    for margin in ("1", "2", "3"):
        body = f"(run.partial / 'rows').write_text('x'); {KILLED}"
        assert run(repo, "--min_margin", margin, body=body)[0] == -signal.SIGKILL
    (own,) = leftovers(repo)
    old, used, young = sorted((path for path in own.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for path in [path for folder in (old, used) for path in [*folder.rglob("*"), folder, lock_of(folder)]]:
        os.utime(path, (0, time.time() - 15 * 86400))
    orphan = own / "0123.lock"
    orphan.touch()
    os.utime(orphan, (0, 0))
    with open(lock_of(used)) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, err = run(repo)
    assert code == 0, err
    assert sorted(own.iterdir()) == sorted([used, lock_of(used), young, lock_of(young)])
    assert f"removed {old}: uncommitted work that nobody touched for 15 days" in err and err.count("removed ") == 1
    assert (young / "partial" / "rows").exists()


def test_a_neighbour_that_has_just_begun_is_not_locked_out(tmp_path, monkeypatch):
    """Of sixteen shards that began together one ended with 75: its lock was made, but not yet taken, when another
    looked for abandoned work."""
    from self_reward.run import stage

    (tmp_path / "beginning.lock").touch()
    monkeypatch.setattr(stage, "_only_worker", lambda folder: pytest.fail(f"{folder} was locked"))
    stage._remove_abandoned(tmp_path / "own")


def test_a_running_neighbour_may_remove_files_while_abandoned_work_is_looked_for(tmp_path, monkeypatch):
    """A training that removes its older checkpoints ended another stage with a traceback."""
    from self_reward.run import stage

    rows = tmp_path / "neighbour/partial/rows"
    rows.parent.mkdir(parents=True)
    rows.touch()

    def after_removal(look):
        def removed_first(path, **keywords):
            if str(path) == str(rows):
                rows.unlink(missing_ok=True)
            return look(path, **keywords)

        return removed_first

    monkeypatch.setattr(os, "stat", after_removal(os.stat))
    monkeypatch.setattr(os, "lstat", after_removal(os.lstat))
    stage._remove_abandoned(tmp_path / "own")
    assert rows.parent.exists() and not rows.exists()


def test_an_accepted_file_counts_as_what_its_stage_wrote(repo):
    def changed(content: str) -> None:
        (repo / PREFERENCES).write_text(content)
        code, _, err = run(repo)
        assert code == 2
        words = re.findall(r"self-reward (accept .*)", err)[0].split()
        command = [sys.executable, "-m", "self_reward.cli", *words]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)

    assert run(repo)[0] == 0
    changed("mine\n")
    code, out, err = run(repo, body="raise RuntimeError('not skipped')")
    assert code == 0 and "skipped" in out and (repo / PREFERENCES).read_text() == "mine\n", err
    assert run(repo, "--min_margin", "0.5")[0] == 0
    code, out, err = run(repo, body="raise RuntimeError('not skipped')")
    assert code == 0 and "skipped" in out and (repo / PREFERENCES).read_text() == "mine\n", err
    assert run(repo, "--force")[0] == 0
    assert (repo / PREFERENCES).read_text() == '{"a": 1} 0.0\n{"a": 2} 0.0\n'


def test_an_export_that_is_killed_leaves_nothing_that_the_next_one_does_not_remove(repo, tmp_path):
    checkpoint = repo / "M0/models/dpo/final_checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "self_reward.json").write_text('{"finetune": "full", "parent": null, "base_model": "path:ab"}')
    (checkpoint / "model.safetensors").touch()
    (tmp_path / "tmp").mkdir()
    for ending, code in ((KILLED, -signal.SIGKILL), ("(_ for _ in ()).throw(UserError('no'))", 2)):
        program = f"""
import os, sys
from self_reward.models import checkpoints
from self_reward.cli import __main__ as cli
from self_reward.errors import UserError
from self_reward.run import stage
checkpoints.export = lambda *_, **__: {ending}
sys.argv[1:] = ["export", "M0/dpo", "--to", {str(tmp_path / "to")!r}, "--data_repo", {str(repo)!r},
                "--cache_dir", {str(tmp_path)!r}]
sys.exit(cli.main())
"""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
        ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert ended.returncode == code, ended.stderr
        assert not list((tmp_path / "tmp").iterdir())
        assert bool(leftovers(repo)) == (code != 2)


def test_much_uncommitted_work_of_other_runs_is_told(repo):
    body = f"(run.partial / 'rows').write_bytes(bytes(3 << 20)); {KILLED}"
    assert run(repo, "--min_margin", "1", body=body)[0] == -signal.SIGKILL
    code, _, err = run(repo, "--seed", "1", body="pass")
    assert code == 0 and "uncommitted work" not in err
    code, _, err = run(repo, "--seed", "2", rule="setattr(stage, 'MUCH', 1 << 20)")
    assert code == 0 and "uncommitted work of other runs takes 0.0 GB in " in err


def lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def test_what_kubernetes_shows_of_many_problems_are_the_first_and_of_a_traceback_the_end():
    from self_reward.run import stage

    problems = [f"number {i} {'ü' * 200}" for i in range(50)]
    text = "\n".join(f"error: {problem}" for problem in problems)
    short = stage._shortened(text)
    shown = short.count("error: ")
    assert 3500 < len(short.encode()) <= 4000 and text.startswith(short.rpartition("\n")[0])
    assert short.endswith(f"\nand {50 - shown} more; the log has all")
    assert stage._shortened(text[:500]) == text[:500]
    assert stage._shortened("error: " + "x" * 9000) == "error: " + "x" * 3993
    assert stage._shortened("a bug:\n" + "x" * 9000 + "end") == "x" * 3997 + "end"

"""The script of the loop over stand-in stages that only say that they ran: order, failures, stops, signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = ["00_sft", "01_gen_prompts", "02_gen_responses", "03_gen_scores", "04_gen_preferences", "05_dpo", "06_evaluate"]
STAGE = """
import os, sys, time
name, words = os.path.basename(__file__)[:-3], sys.argv[1:]
flag = {words[i]: words[i + 1] for i in range(0, len(words), 2)}
k, stop_file = flag["--iteration"], flag["--stop_file"]
open(flag["--commit_file"], "w").write(f"{name} after {flag['--revision']}"[:40])
print(f"M{k} {name}", flush=True)
if os.environ.get("SLEEP") == name:
    time.sleep(60)
if os.environ.get("STOP") == f"M{k} {name}":
    open(stop_file, "w").write("enough")
sys.exit(int(os.environ["CODE"]) if os.environ.get("FAIL") == f"M{k} {name}" else 0)
"""


@pytest.fixture
def stages(tmp_path):
    folder = tmp_path / "my stages"
    folder.mkdir()
    (folder / "plan.py").write_text(
        "import sys; print('iterations=2 data_repo=x commit=abc'); print(sys.argv[1:], file=sys.stderr)"
    )
    for name in [*ORDER, "07_export"]:
        (folder / f"{name}.py").write_text(STAGE)
    return folder


def start(stages, *words, **environment):
    return subprocess.Popen(
        [ROOT / "self-reward.sh", stages, "model", "M1", *words],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # who runs the tests in the background may have SIGINT ignored, and a shell cannot trap what it finds ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def run(stages, *words, **environment):
    process = start(stages, *words, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), err


def test_stages_run_in_order_and_plan_gets_all_arguments(stages):
    code, lines, err = run(stages, "--prompt_pattern", "a 'b' \"c\" $d", "--judge_votes=2")
    assert code == 0
    assert lines[:-1] == [f"M{k} {stage}" for k in (1, 2) for stage in ORDER] + ["M2 07_export"]
    given = ["--prompt_pattern", "a 'b' \"c\" $d", "--judge_votes=2", "--base_model", "model", "--start_iteration", "1"]
    assert err.strip() == str(given)


def test_each_stage_reads_the_commit_of_the_one_before_it(stages):
    (stages / "02_gen_responses.py").write_text("import sys; sys.exit(sys.argv[sys.argv.index('--revision') + 1])")
    code, _, err = run(stages)
    assert code == 1 and err.splitlines()[-1] == "01_gen_prompts after 00_sft after abc"


OF_REPOSITORY = """
import os, sys
from self_reward.parameters.stages import GenPreferences
from self_reward.run import stage
from self_reward.store import open_store
repository, name = os.environ["REPOSITORY"], os.path.basename(__file__)[:-3]

def head():
    return open_store(repository, branch="main", lock_timeout=60, store_timeout=60).resolve().commit

def work(p, run):
    run.output("preferences").write_text(run.input("scores").read_text())
    run.counts["pairs"] = 1

if name == "plan":
    print(f"iterations=1 data_repo={repository} commit={head()}")
elif name == "04_gen_preferences":
    sys.argv += ["--data_repo", repository, "--work_dir", repository + "-work"]
    stage.main(name, GenPreferences, work, "A program for tests.")
else:
    flag = {sys.argv[i]: sys.argv[i + 1] for i in range(1, len(sys.argv), 2)}
    open(flag["--commit_file"], "w").write(flag["--revision"])  # what a stage does that has nothing to do
    if name == os.environ.get("COMMITS"):
        open(f"{repository}/M1/more.txt", "a").write(name)
        head()
"""


def test_foreign_commit_between_two_stages_ends_the_run(stages, tmp_path):
    scores = tmp_path / "data/M1/generated/scores.jsonl"
    scores.parent.mkdir(parents=True)
    scores.write_text("{}\n")
    for path in stages.iterdir():
        path.write_text(OF_REPOSITORY)
    repository = str(tmp_path / "data")
    code, lines, err = run(stages, REPOSITORY=repository, COMMITS="03_gen_scores")
    assert (code, lines) == (2, []) and "branch main has moved on: this stage starts from commit" in err, err
    assert "by self-reward at 20" in err
    assert ": 'user data: M1/more.txt'. To continue from the newest commit run again" in err
    code, lines, err = run(stages, REPOSITORY=repository)
    assert code == 0 and lines[0].startswith("M1 04_gen_preferences  ") and lines[-1].startswith("done: "), err
    # what is done stays so, and a commit after the last stage's is nobody's concern
    code, lines, err = run(stages, REPOSITORY=repository, COMMITS="05_dpo")
    assert code == 0 and "M1 04_gen_preferences  skipped" in lines[0], err
    code, lines, err = run(stages, REPOSITORY=repository, COMMITS="00_sft")
    assert code == 0 and "M1 04_gen_preferences  skipped" in lines[0], err


@pytest.mark.parametrize("code", [1, 2, 75])
def test_b21_a_failing_stage_ends_the_run_with_its_code(stages, code):
    found, lines, _ = run(stages, FAIL="M1 02_gen_responses", CODE=str(code))
    assert found == code
    assert lines == ["M1 00_sft", "M1 01_gen_prompts", "M1 02_gen_responses"]


def test_stop_rule_ends_the_run_with_exit_code_0(stages):
    code, lines, _ = run(stages, STOP="M1 03_gen_scores")
    assert code == 0
    assert lines[-1] == "stopped after M1 03_gen_scores: enough" and "M1 04_gen_preferences" not in lines


def test_options_of_the_users_shell_change_nothing(stages):
    code, lines, err = run(stages, SHELLOPTS="noclobber", STOP="M1 00_sft")
    assert (code, lines[-1]) == (0, "stopped after M1 00_sft: enough"), err


def test_unwritable_tmpdir_means_try_again(stages, tmp_path):
    code, lines, err = run(stages, TMPDIR=str(tmp_path / "nowhere"))
    assert (code, lines) == (75, []) and f"no file could be made in {tmp_path}/nowhere" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_ends_the_script_and_its_stage_at_once(stages, number, group):
    process = start(stages, SLEEP="01_gen_prompts")
    assert process.stdout.readline() == "M1 00_sft\n" and process.stdout.readline() == "M1 01_gen_prompts\n"
    time.sleep(0.3)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    begin = time.monotonic()
    if group:
        for pid in children:
            os.kill(int(pid), number)
    process.send_signal(number)
    assert process.wait(timeout=30) == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert time.monotonic() - begin < 30
    assert children and not any(Path(f"/proc/{pid}").exists() for pid in children)
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_plan_does_not_wait_for_it(stages, number):
    (stages / "plan.py").write_text("import sys, time; print('plan', file=sys.stderr, flush=True); time.sleep(60)")
    process = start(stages)
    assert process.stderr.readline() == "plan\n"
    process.send_signal(number)
    assert process.wait(timeout=30) == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    process.communicate()


def test_kill_9_of_a_stage_is_reported_with_what_to_do(stages):
    process = start(stages, SLEEP="01_gen_prompts")
    assert process.stdout.readline() == "M1 00_sft\n" and process.stdout.readline() == "M1 01_gen_prompts\n"
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 137 and out == ""
    assert "M1 01_gen_prompts was killed (exit code 137). Run the same command again to resume from what is on" in err


def test_kill_9_of_everything_leaves_no_temporary_file(stages, tmp_path):
    (tmp_path / "tmp").mkdir()
    process = start(stages, SLEEP="00_sft", TMPDIR=str(tmp_path / "tmp"))
    assert process.stdout.readline() == "M1 00_sft\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [process.pid, *map(int, children)]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert not list((tmp_path / "tmp").iterdir())

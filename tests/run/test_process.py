"""How programs end, on a stage of a few lines: exit codes, the last error, SIGTERM."""

import signal
import time

import pytest

from self_reward.run import process
from tests.support.stage_program import leftovers, log_of, run, start


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
def test_exit_codes_and_the_termination_log(scored_repo, tmp_path, body, code, said):
    last = tmp_path / "termination"
    found, out, err = run(scored_repo, body=body, TERMINATION_LOG=str(last))
    assert (found, out) == (code, ""), err
    for text in said:
        assert text in err and text in last.read_text()
    assert ("Traceback" in err) == (code == 1)
    assert log_of(scored_repo) == ["user data: M0/generated/scores.jsonl"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_output_pipe_is_not_a_bug(scored_repo, unbuffered):
    process = start(scored_repo, PYTHONUNBUFFERED=unbuffered)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 75 and "try again: the reader of this program's output" in err and "Traceback" not in err
    assert "skipped" in run(scored_repo)[1]


@pytest.mark.parametrize("busy", ["time.sleep(60)", "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"])
def test_sigterm_exits_143_and_the_next_run_resumes(scored_repo, tmp_path, busy):
    """The second case is one long call of a C library, in which no Python signal handler runs."""
    body = f"(run.job.folder / 'chunk').write_text('kept'); print('working', flush=True); {busy}"
    process = start(scored_repo, body=body, TERMINATION_LOG=str(tmp_path / "termination"))
    assert process.stdout and process.stdout.readline() == "working\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143 and time.monotonic() - began < 20
    assert "SIGTERM" in (tmp_path / "termination").read_text()
    code, _, err = run(scored_repo, body="assert (run.job.folder / 'chunk').read_text() == 'kept'")
    assert code == 0, err
    assert not leftovers(scored_repo)


def test_termination_log_keeps_first_problems_or_end_of_traceback():
    problems = [f"number {i} {'ü' * 200}" for i in range(50)]
    text = "\n".join(f"error: {problem}" for problem in problems)
    short = process._shortened(text)
    shown = short.count("error: ")
    assert 3500 < len(short.encode()) <= 4000 and text.startswith(short.rpartition("\n")[0])
    assert short.endswith(f"\nand {50 - shown} more; the log has all")
    assert process._shortened(text[:500]) == text[:500]
    assert process._shortened("error: " + "x" * 9000) == "error: " + "x" * 3993
    assert process._shortened("a bug:\n" + "x" * 9000 + "end") == "x" * 3997 + "end"

"""A full disk, in short: a few steps of tests/hard/disk_full.py, and the places that it cannot reach."""

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from self_reward import disk
from self_reward.errors import TryAgain, UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("steps", "disks", "step"),
    [("04_gen_preferences", "all", 40), ("02_gen_responses", "work,inodes", 40)],
)
def test_a_stage_on_a_full_disk_ends_with_75_and_resumes_when_there_is_room(mount_namespace, steps, disks, step):
    command = [sys.executable, "-m", "tests.hard.disk_full", "--only", steps, "--disks", disks, "--step", str(step)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    full = [int(line.split()[3]) for line in ended.stdout.splitlines() if " times full " in line]
    assert len(full) == len(steps.split(",")) * len(disks.split(",")) and min(full) >= 1


def on_full_disk(mount_namespace, folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a shell command beside a file system of 64 KB, mounted at `folder`, that is full."""
    folder.mkdir()
    script = (
        f"mount -t tmpfs -o size=64k tmpfs {folder} && : > {folder}/log && "
        f"(head -c 1M /dev/zero > {folder}/filler 2>/dev/null || true) && {command}"
    )
    return subprocess.run(
        [*mount_namespace, "bash", "-c", script],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


def program(body: str) -> str:
    imports = "import sys\nfrom self_reward import errors\nfrom self_reward.run import process, progress"
    code = f"{imports}\ndef work():\n    {body}\nsys.exit(process.guard(work, 'x'))"
    return f"{sys.executable} -c {shlex.quote(code)}"


def test_a_log_on_a_full_disk_changes_no_exit_code(mount_namespace, tmp_path):
    """Python would end with 120 when it cannot flush standard error or output at its end."""
    full = tmp_path / "full"
    ended = on_full_disk(mount_namespace, full, program("process.log.warning('x' * 9999)") + f" 2> {full}/log")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_result_line_that_could_not_be_written_is_not_a_success(mount_namespace, tmp_path):
    """plan's standard output is what self-reward.sh runs."""
    full = tmp_path / "full"
    ended = on_full_disk(mount_namespace, full, program("print('iterations=1')") + f" > {full}/log")
    assert ended.returncode == 75 and "disk is full" in ended.stderr and "Traceback" not in ended.stderr


def test_a_progress_file_on_a_full_disk_ends_no_stage(mount_namespace, tmp_path):
    full = tmp_path / "full"
    body = "progress.Progress()(1, 2, 'prompts')"
    ended = on_full_disk(mount_namespace, full, program(body), ARGO_PROGRESS_FILE=str(full / "progress"))
    assert ended.returncode == 0 and "1/2" in ended.stderr


def test_a_lost_termination_log_loses_neither_exit_code_nor_words(mount_namespace, tmp_path):
    full = tmp_path / "full"
    body = "raise errors.TryAgain('the hub is away')"
    ended = on_full_disk(mount_namespace, full, program(body), TERMINATION_LOG=str(full / "termination"))
    assert ended.returncode == 75 and ended.stderr.strip() == "try again: the hub is away"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        ValueError("LMDB error: No space left on device (os error 28)"),
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
    ],
)
def test_every_library_says_it_in_its_own_way(tmp_path, error):
    words = rf"disk is full.*{tmp_path}.* MB free of .*about 3.0 MB are needed"
    with pytest.raises(TryAgain, match=words), disk.explained(tmp_path, needed=3_000_000):
        raise error


def test_the_folder_of_the_file_is_named_where_the_error_says_it(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(TryAgain, match="there"), disk.explained(tmp_path / "elsewhere"):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "there/file"))


@pytest.mark.parametrize("error", [UserError("wrong"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_nothing_else_is_taken_for_a_full_disk(tmp_path, error):
    with pytest.raises(type(error)) as found, disk.explained(tmp_path):
        raise error
    assert found.value is error

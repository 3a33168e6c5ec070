"""Folders of uncommitted work: who may use them, and when they are removed."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from self_reward.run import workdir
from tests.support.stage_program import KILLED, ROOT, leftovers, run, start


def test_two_processes_do_not_write_the_same_partial_results(scored_repo):
    process = start(scored_repo, body="print('working', flush=True); time.sleep(60)")
    assert process.stdout and process.stdout.readline() == "working\n"
    code, _, err = run(scored_repo)
    process.kill()
    process.communicate()
    assert code == 75 and str(process.pid) in err
    assert run(scored_repo)[0] == 0


def test_abandoned_work_is_removed_after_two_weeks_unless_in_use(scored_repo):
    for margin in ("1", "2", "3"):
        body = f"(run.job.folder / 'rows').write_text('x'); {KILLED}"
        assert run(scored_repo, "--min_margin", margin, body=body)[0] == -signal.SIGKILL
    (own,) = leftovers(scored_repo)
    old, used, young = sorted((path for path in own.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for path in [path for folder in (old, used) for path in [*folder.rglob("*"), folder, lock_of(folder)]]:
        os.utime(path, (0, time.time() - 15 * 86400))
    orphan = own / "0123.lock"
    orphan.touch()
    os.utime(orphan, (0, 0))
    with open(lock_of(used)) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, err = run(scored_repo)
    assert code == 0, err
    assert sorted(own.iterdir()) == sorted([used, lock_of(used), young, lock_of(young)])
    assert f"removed {old}: uncommitted work that nobody touched for 15 days" in err and err.count("removed ") == 1
    assert (young / "partial" / "rows").exists()


def test_run_that_has_just_begun_is_not_locked_out(tmp_path, monkeypatch):
    """Of sixteen shards that began together one ended with 75: its lock was made, but not yet taken, when another
    looked for abandoned work."""
    (tmp_path / "beginning.lock").touch()
    monkeypatch.setattr(workdir, "only_worker", lambda folder: pytest.fail(f"{folder} was locked"))
    workdir.remove_abandoned(tmp_path / "own")


def test_other_runs_may_remove_files_during_the_cleanup(tmp_path, monkeypatch):
    """A training that removes its older checkpoints ended another stage with a traceback."""
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
    workdir.remove_abandoned(tmp_path / "own")
    assert rows.parent.exists() and not rows.exists()


def test_next_export_removes_what_a_killed_one_left(scored_repo, tmp_path):
    checkpoint = scored_repo / "M0/models/dpo/final_checkpoint"
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
checkpoints.export = lambda *_, **__: {ending}
sys.argv[1:] = ["export", "M0/dpo", "--to", {str(tmp_path / "to")!r}, "--data_repo", {str(scored_repo)!r},
                "--cache_dir", {str(tmp_path)!r}]
sys.exit(cli.main())
"""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
        ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert ended.returncode == code, ended.stderr
        assert not list((tmp_path / "tmp").iterdir())
        assert bool(leftovers(scored_repo)) == (code != 2)


def test_much_uncommitted_work_of_other_runs_is_reported(scored_repo):
    body = f"(run.job.folder / 'rows').write_bytes(bytes(3 << 20)); {KILLED}"
    assert run(scored_repo, "--min_margin", "1", body=body)[0] == -signal.SIGKILL
    code, _, err = run(scored_repo, "--seed", "1", body="pass")
    assert code == 0 and "uncommitted work" not in err
    code, _, err = run(scored_repo, "--seed", "2", rule="setattr(workdir, 'MUCH', 1 << 20)")
    assert code == 0 and "uncommitted work of other runs takes 0.0 GB in " in err


def lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")

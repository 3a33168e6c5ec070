"""04_gen_preferences as a program of a few lines, in place of the real one: what surrounds a stage's work is tested."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from self_reward.store import Snapshot, open_store

ROOT = Path(__file__).parents[2]
PREFERENCES = "M0/generated/preferences.jsonl"
MANIFEST = "M0/04_gen_preferences.manifest.json"
PROGRAM = """
import os, sys, time
from self_reward.errors import TryAgain, UserError
from self_reward.parameters.stages import GenPreferences
from self_reward.run import stage, workdir

def work(p, run):
    assert "torch" not in sys.modules and "vllm" not in sys.modules
    rows = run.input("scores").read_text().splitlines()
    {body}
    run.output("preferences").write_text("".join(f"{{row}} {{p.pair_rules.min_margin}}\\n" for row in rows))
    run.counts["pairs"] = len(rows)

stage.main("04_gen_preferences", GenPreferences, work, "A program for tests.", stop_rule={rule})
"""
KILLED = "os.kill(os.getpid(), 9)"  # a body


def make_repo(folder: Path) -> Path:
    """A data repository with scores, which are all that the program reads."""
    (folder / "M0/generated").mkdir(parents=True)
    (folder / "M0/generated/scores.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    return folder


def start(repo: Path, *flags: str, body: str = "pass", rule: str = "None", **environment: str) -> subprocess.Popen[str]:
    """Start the program on `repo`. `body` are lines of its work, `rule` is its stop rule."""
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


def snapshot_of(repo: Path) -> Snapshot:
    snapshot: Snapshot = open_store(str(repo), branch="main", lock_timeout=10, store_timeout=60).resolve()
    return snapshot


def log_of(repo: Path) -> list[str]:
    """The messages of the commits, newest first."""
    return [commit.message for commit in snapshot_of(repo).log]


def leftovers(repo: Path) -> list[Path]:
    """What is in the program's folder of uncommitted work."""
    work = repo.parent / "work"
    return list(work.iterdir()) if work.exists() else []

"""Kill a small loop at random moments, run it again, and check that nothing was lost, doubled or left lying about.

    python -m tests.hard.kills --rounds 50 --seed 0                    kill -9 of the whole process tree
    python -m tests.hard.kills --rounds 20 --signal TERM               an orderly end: 143 within 10 s, nothing lost
    python -m tests.hard.kills --rounds 20 --signal STAGE              kill -9 of the stage, or of Oxen (OXEN)
    python -m tests.hard.kills --kill "M0 05_dpo push 0.12"            one given kill, as a failure prints it

A loop of two iterations over the demo's world runs undisturbed once: the reference. Then it runs again from the same
data, and each round ends it in another stage, plan and the gaps between stages included. The re-run of one round is
what the next one ends. After every kill, and more thoroughly after every loop that got to its end, the data repository
is looked at twice: by what the product knows of it, and by oxenai alone in a copy. Linux only (/proc).
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from self_reward.store.content import hash_file, walk
from self_reward.store.local import index

ROOT = Path(__file__).resolve().parents[2]
STAGES = [
    *("00_sft", "01_gen_prompts", "02_gen_responses", "03_gen_scores"),
    *("04_gen_preferences", "05_dpo", "06_evaluate", "07_export"),
]
SIZES = {
    **{"INSTRUCTIONS": 900, "JUDGEMENTS": 1300, "NEW_TASKS": 250, "REPETITIONS": 300, "COMPARISONS": 300},
    **{"HELD_OUT": 20, "HELD_OUT_GROUPS": 5},
}
SETTINGS = {
    "sft_max_steps": 40, "num_prompts": 16, "eval_prompts": 20, "eval_judge_groups": 5, "min_margin": 0,
    "judge_votes": 2, "prompt_pattern": "", "prompt_min_words": 3, "prompt_max_requests": 40, "sampler_batch_size": 4,
    "dpo_epochs": 6, "dpo_batch_size": 8, "dpo_micro_batch_size": 8, "dpo_warmup_ratio": 0, "checkpoint_steps": 4,
}  # fmt: skip
MARK = "SELF_REWARD_KILLS"  # in the environment of all that a round starts: finds also what left the process group
VOLATILE = ("seconds", "read_at")  # of a manifest: when and where, not what
CODES = {
    "KILL": -9,
    "TERM": 143,
    "GROUP": 143,
    "INT": 130,
    "STAGE": 137,
    "OXEN": 75,
}  # how to end it: the script's exit code
SIGNALS = {"TERM": signal.SIGTERM, "GROUP": signal.SIGTERM, "INT": signal.SIGINT}
SECONDS_TO_END = 10.0


class Violation(Exception):
    """Something that must hold does not."""


class Kill(NamedTuple):
    """End the loop `delay` seconds after `moment` of the stage `label`.

    `moment`: start (of its program), merge (a model is being made on the cache), work (its first partial result), push
    (its outputs are whole), commit (the store writes), end (of its program).
    """

    label: str
    moment: str
    delay: float
    how: str = "KILL"
    """KILL: -9 to the whole tree; STAGE, OXEN: -9 to that one process; TERM: to the script; GROUP, INT: SIGTERM, SIGINT
    to its process group"""

    def __str__(self) -> str:
        return f"{self.label} {self.moment} {self.delay:.3f}"


@dataclass
class World:
    """Where everything lies: `pristine` is the user's data, never run on."""

    folder: Path
    seed: int = 0
    stages: Path = ROOT / "stages"
    iterations: int = 2
    settings: dict[str, Any] = field(default_factory=lambda: dict(SETTINGS))

    @property
    def pristine(self) -> Path:
        return self.folder / "pristine"

    def make(self) -> None:
        if self.pristine.exists():
            return
        from demo import make_data

        before = {name: getattr(make_data, name) for name in SIZES}
        try:
            for name, value in SIZES.items():
                setattr(make_data, name, value)
            make_data.make(self.pristine, self.seed)
        finally:
            for name, value in before.items():
                setattr(make_data, name, value)


@dataclass
class Loop:
    """One loop's data repository, cache and temporary folder, and its process while it runs."""

    world: World
    name: str
    process: Any = None
    started: int = 0  # how often

    def __post_init__(self) -> None:
        self.folder = self.world.folder / self.name
        self.data, self.cache, self.tmp = (self.folder / name for name in ("data", "cache", "tmp"))

    def prepare(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in (self.cache, self.tmp):
            folder.mkdir(parents=True)
        shutil.copytree(self.world.pristine, self.data)

    @property
    def journal(self) -> Path:
        return index.folder(self.data) / "journal.json"

    @property
    def output(self) -> str:
        """What the last start has printed."""
        return (self.folder / f"run-{self.started}.log").read_text(errors="replace")

    def start(self) -> None:
        self.started += 1
        self.mark = uuid.uuid4().hex
        environment = {**os.environ, MARK: self.mark, "TMPDIR": str(self.tmp), "PYTHON": sys.executable}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with open(self.folder / f"run-{self.started}.log", "wb") as log:
            self.process = subprocess.Popen(
                [ROOT / "self-reward.sh", self.world.stages, "oxen:models/base", "M0",
                 "--iterations", str(self.world.iterations), "--data_repo", self.data, "--cache_dir", self.cache,
                 "--seed", str(self.world.seed), "--parameter_file", ROOT / "presets/demo.yaml",
                 *(word for name, value in self.world.settings.items() for word in (f"--{name}", str(value)))],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                # a shell cannot trap SIGINT where it finds it ignored, as in a job in the background
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip

    def running(self) -> str | None:
        """The program that runs now: plan, M0 00_sft, ... None: none does just now."""
        return next(filter(None, map(self.program, map(command_line, children(self.process.pid)))), None)

    def program(self, words: list[str]) -> str | None:
        """Which of the stages' programs this command line runs, None for any other."""
        script = Path(words[1]) if len(words) > 1 else Path()
        if script.suffix != ".py" or script.parent != self.world.stages:
            return None
        return script.stem if script.stem == "plan" else f"M{words[words.index('--iteration') + 1]} {script.stem}"

    def stage_folder(self) -> Path | None:
        """The folder of uncommitted work; there is one at most, since one stage runs at a time."""
        found = [path for path in self.cache.glob("work/*/*") if path.is_dir()]
        if len(found) > 1:
            raise Violation(f"work_dir holds folders of several stages: {', '.join(map(str, found))}")
        return found[0] if found else None

    def partial(self) -> dict[str, int]:
        """How far the partial results go: whole rows by file, and the newest whole checkpoint's step."""
        folder = self.stage_folder()
        if folder is None:
            return {}
        found = {
            "/".join(path.parts[-2:]): max(path.read_bytes().count(b"\n") - 1, 0)
            for path in (folder / "partial").rglob("*.jsonl")
        }
        steps = [int(path.parent.name.split("-")[1]) for path in folder.glob("partial/checkpoint-*/.complete")]
        return {name: n for name, n in {**found, "checkpoint": max(steps, default=0)}.items() if n}

    def pushing(self) -> bool:
        """Whether the running stage has written all its outputs."""
        folder = self.stage_folder()
        return folder is not None and any(folder.glob("outputs/M*/*.manifest.json"))

    def merging(self) -> bool:
        """Whether adapters are being merged into a model on the cache."""
        return any(self.cache.glob("merged/*.part"))

    def marked(self) -> list[int]:
        """Every living process that this start has led to."""
        wanted, found = f"{MARK}={self.mark}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if wanted in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def kill_all(self) -> None:
        """kill -9 of all at one instant: stopped first, so that none sees another's end."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in self.marked():
                send(pid, number)
        self.process.wait()
        self.check_none_alive()

    def check_none_alive(self) -> None:
        deadline = time.monotonic() + 5
        while left := self.marked():
            if time.monotonic() > deadline:
                commands = "; ".join(" ".join(command_line(pid)) for pid in left)
                for pid in left:
                    send(pid, signal.SIGKILL)
                raise Violation(f"still alive five seconds later: {commands}")
            time.sleep(0.02)


def children(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, file.read_text().split())
        except OSError:
            continue
    return found


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# ---- the reference


@dataclass
class Reference:
    """What an undisturbed run gives, and when each program gets where: {label: {work, push, end: seconds}}."""

    seconds: dict[str, dict[str, float]]
    result: dict[str, Any]


def undisturbed(world: World) -> Reference:
    loop = Loop(world, "reference")
    loop.prepare()
    loop.start()
    seconds: dict[str, dict[str, float]] = {}
    label, begun = None, 0.0
    while loop.process.poll() is None:
        now = loop.running()
        if now != label:
            if label:
                seconds[label]["end"] = time.monotonic() - begun
            label, begun = now, time.monotonic()
            if label:
                seconds[label] = {}
        if label:
            if "work" not in seconds[label] and loop.partial():
                seconds[label]["work"] = time.monotonic() - begun
            if "merge" not in seconds[label] and loop.merging():
                seconds[label]["merge"] = time.monotonic() - begun
            if "push" not in seconds[label] and loop.pushing():
                seconds[label]["push"] = time.monotonic() - begun
        time.sleep(0.01)
    if label:
        seconds[label]["end"] = time.monotonic() - begun
    if loop.process.returncode != 0:
        raise Violation(f"the undisturbed run ended with {loop.process.returncode}:\n{loop.output[-3000:]}")
    return Reference(seconds, check_loop(loop, None))


# ---- rounds


def choose(rng: random.Random, reference: Reference, how: str) -> list[Kill]:
    """The kills of one loop, in the order of its stages: one in each and in plan, some twice, some between two; half of
    them where the result goes to the data repository."""
    kills = []
    for label, seconds in reference.seconds.items():
        if "merge" in seconds:
            kills.append(Kill(label, "merge", rng.uniform(0, 0.2), how))
        push = min(1.5, seconds["end"] - seconds.get("push", 0))
        spans = {"start": seconds["end"], "work": seconds.get("push", 0) - seconds.get("work", 0)}
        spans |= {"push": push, "commit": push / 3}
        moment = rng.choice(["start", "work", "push", "commit"])
        if (moment if moment != "commit" else "push") not in seconds:
            moment = "start"
        for _ in range(2 if rng.random() < 0.2 else 1):
            kills.append(Kill(label, moment, rng.uniform(0, spans[moment]), how))
        if rng.random() < 0.25:
            kills.append(Kill(label, "end", rng.uniform(0, 0.05), how))
    return kills


def wait_for(loop: Loop, kill: Kill) -> bool:
    """Wait until the moment of the kill; False when the loop has ended before."""
    ended = loop.process.poll
    while loop.running() != kill.label:
        if ended() is not None:
            return False
        time.sleep(0.005)
    reached = {
        "start": lambda: True,
        "work": lambda: bool(loop.partial()),
        "push": loop.pushing,
        "merge": loop.merging,
        "commit": lambda: loop.pushing() and loop.journal.exists(),
        "end": lambda: False,
    }
    while loop.running() == kill.label and not reached[kill.moment]():
        time.sleep(0.005)
    deadline = time.monotonic() + kill.delay
    while time.monotonic() < deadline and ended() is None:
        time.sleep(0.001)
    return ended() is None


@dataclass
class Counts:
    """What happened, for the table at the end."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (label, phase)
    resumed: Counter[str] = field(default_factory=Counter)  # by kind of partial result
    loops: int = 0
    slowest: float = 0.0  # seconds from a signal to the script's end


class Killed(NamedTuple):
    """How a kill found the loop."""

    label: str
    phase: str
    partial: dict[str, int]


def end(loop: Loop, how: str, counts: Counts) -> Killed:
    """End the running loop, check what must hold at once, and say what was running."""
    target = _only(loop, how)
    if how == "KILL":
        for pid in loop.marked():
            send(pid, signal.SIGSTOP)
    label, phase, partial = loop.running() or "between stages", _phase(loop), loop.partial()
    if how == "KILL":
        loop.kill_all()
    else:
        seconds = SECONDS_TO_END if how in SIGNALS else 60.0
        begun = time.monotonic()
        send(target, SIGNALS.get(how, signal.SIGKILL))
        try:
            code = loop.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            loop.kill_all()
            raise Violation(f"not ended {seconds:g} s after {how}") from None
        if how in SIGNALS:
            counts.slowest = max(counts.slowest, time.monotonic() - begun)
        # a negative one: the shell had not come to its handlers yet; 0: it had nothing left to do
        if code not in (CODES[how], 0) and not (code == -SIGNALS.get(how, 0) and label == "between stages"):
            raise Violation(f"{how} during {label} gave exit code {code}:\n{loop.output[-2000:]}")
        if code and how in ("STAGE", "OXEN") and "again" not in loop.output.splitlines()[-1]:
            raise Violation(f"{how} during {label}: nothing says what to do:\n{loop.output[-2000:]}")
        loop.check_none_alive()
        partial = loop.partial()  # some of it may have come since
    head = check_after_kill(loop)
    if head.startswith(f"{label}:"):
        phase, partial = "committed", {}
    counts.kills[label, phase] += 1
    return Killed(label, phase, partial)


def _only(loop: Loop, how: str) -> int:
    """What to signal; for STAGE and OXEN the process of that kind that runs or comes next."""
    if how in ("STAGE", "OXEN"):
        while loop.process.poll() is None:
            stages = [pid for pid in children(loop.process.pid) if loop.program(command_line(pid))]
            oxen = [p for pid in stages for p in children(pid) if "self_reward.store.local.child" in command_line(p)]
            if found := stages if how == "STAGE" else oxen:
                return found[0]
            time.sleep(0.002)
    return -loop.process.pid if how in ("INT", "GROUP") else loop.process.pid


def _phase(loop: Loop) -> str:
    label = loop.running()
    if label in (None, "plan"):
        return "-"
    folder = loop.stage_folder()
    if loop.pushing():
        return "committing" if loop.journal.exists() else "pushing"
    if folder is None:
        return "starting"
    return "with partial results" if loop.partial() else "working"


def check_resumed(loop: Loop, before: Killed, counts: Counts) -> None:
    """The stage that was killed must have resumed from all that was on disk. Its own log says from where."""
    if not before.partial or before.label == "between stages":
        return
    name = before.label.split()[-1]
    pieces = re.split(r"^\d\d:\d\d:\d\d (\w+) started at commit .*$", loop.output, flags=re.M)
    if len(pieces) < 3:
        return  # killed again before it came to work
    if pieces[1] != name:
        raise Violation(f"{before.label} was killed, and {pieces[1]} came next")
    resumed = {}
    for file, rows in re.findall(r"resuming (\S+) after (\d+) of \d+ prompts", pieces[2]):
        resumed[file] = int(rows)
    for step in re.findall(r"resuming from checkpoint-(\d+)", pieces[2]):
        resumed["checkpoint"] = int(step)
    finished = re.search(rf"^{before.label}  \d+\.\d s  ", loop.output, re.M)
    for what, n in before.partial.items():
        if (what in resumed and resumed[what] != n) or (finished and what not in resumed):
            raise Violation(f"{before.label} had {before.partial} on disk and resumed from {resumed}")
        if what in resumed:
            counts.resumed[f"{before.label} {'checkpoint' if what == 'checkpoint' else 'samples'}"] += 1


# ---- checks


def check_after_kill(loop: Loop) -> str:
    """What must hold at any moment; returns the first line of the newest commit's message."""
    problems = []
    for path in [*loop.data.glob("M*/*.manifest.json"), *index.folder(loop.data).glob("**/*.json")]:
        problems += _unreadable(path)
    partial = loop.cache.glob("work/*/*/partial/**/*.jsonl")
    for path in partial:
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
            try:
                if line.endswith(b"\n"):
                    json.loads(line)
            except ValueError:
                problems.append(f"{path}: line {number + 1} is whole and no JSON")
    for marker in [*loop.cache.glob("work/*/*/partial/checkpoint-*/.complete"), *loop.cache.glob("merged/*/.complete")]:
        for path in marker.parent.glob("*.safetensors"):
            problems += _cut_short(path)
        for path in marker.parent.glob("*.json"):
            problems += _unreadable(path)
    seen = look(loop, every_commit=False)
    if seen["log"]:
        problems += _head_problems(seen)
    if problems:
        raise Violation("\n".join(problems))
    return seen["log"][0][1].splitlines()[0] if seen["log"] else ""


def _head_problems(seen: dict[str, Any]) -> list[str]:
    """Every manifest in the newest commit must be whole and tell the truth."""
    tree, problems = seen["trees"][seen["log"][0][0]], []
    for path, text in seen["manifests"].items():
        try:
            outputs = json.loads(text)["outputs"]
        except ValueError:
            problems.append(f"{path} of the newest commit is no JSON")
            continue
        problems += [
            f"{name} of the newest commit is not what {path} says"
            for name, output in outputs.items()
            if tree.get(name) != output["sha256"]
        ]
    return problems


def _unreadable(path: Path) -> list[str]:
    try:
        json.loads(path.read_bytes())
    except ValueError as error:
        return [f"{path} is no JSON: {error}"]
    return []


def _cut_short(path: Path) -> list[str]:
    from self_reward.models.base_model import _safetensors_problem

    problem = _safetensors_problem(path)
    return [problem] if problem else []


LOOK = """
import hashlib, json, os, shutil, sys
from pathlib import Path
from oxen import Repo
copy, every = Path(sys.argv[1]), sys.argv[2] == "True"
def files():
    return [path for path in copy.rglob("*") if path.is_file() and ".oxen" not in path.relative_to(copy).parts]
repo = Repo(str(copy))
log, found = [], {"trees": {}, "manifests": {}, "dirty": []}
if (copy / ".oxen" / "refs").exists() and repo.branches():
    log = repo.log()
if log and every:
    status = repo.status()
    found["dirty"] = [*status.added_files(), *status.modified_files(), *status.removed_files(),
                      *status.unstaged_modified_files(), *status.unstaged_removed_files()]
for number, commit in enumerate(log if every else log[:1]):
    for name in os.listdir(copy):
        if name != ".oxen":
            shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    repo.restore(str(copy), source=commit.id)
    tree = {str(path.relative_to(copy)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files()}
    found["trees"][commit.id] = tree
    if number == 0:
        found["manifests"] = {name: (copy / name).read_text() for name in tree if name.endswith(".manifest.json")}
found["log"] = [[commit.id, commit.message] for commit in log]
print(json.dumps(found))
"""


def look(loop: Loop, *, every_commit: bool) -> dict[str, Any]:
    """The log and the files of the newest or of every commit, as oxenai sees them in a copy."""
    copy = loop.folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    if not (loop.data / ".oxen").exists():
        return {"log": [], "trees": {}, "manifests": {}, "dirty": []}
    shutil.copytree(loop.data if every_commit else loop.data / ".oxen", copy if every_commit else copy / ".oxen")
    shutil.rmtree(copy / ".oxen" / "staged", ignore_errors=True)
    ended = subprocess.run(
        [sys.executable, "-c", LOOK, str(copy), str(every_commit)], capture_output=True, text=True, timeout=300
    )
    if ended.returncode:
        raise Violation(f"oxenai cannot read the data repository:\n{ended.stderr[-2000:]}")
    shutil.rmtree(copy)
    return json.loads(ended.stdout.splitlines()[-1])


def check_loop(loop: Loop, reference: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that must hold of a loop that got to its end; returns what a reference keeps."""
    problems = []
    seen = look(loop, every_commit=True)
    log = [[message, commit] for commit, message in reversed(seen["log"])]
    if seen["dirty"]:
        problems.append(f"Oxen calls these changed: {seen['dirty']}")
    labels = [message.split(":")[0] for message, _ in log]
    if doubled := [label for label, n in Counter(labels).items() if n > 1]:
        problems.append(f"committed more than once: {doubled}")
    problems += _missing_content(loop, seen)
    head = seen["trees"][seen["log"][0][0]]
    working = {path: hashlib.sha256((loop.data / path).read_bytes()).hexdigest() for path in walk(loop.data)}
    problems += _differ("the working tree", working, "the newest commit", head)
    manifests = {name: _lasting(json.loads(text)) for name, text in seen["manifests"].items()}
    problems += _head_problems(seen)
    result = {
        "messages": [message for message, _ in log],
        "files": {path: sha for path, sha in head.items() if not path.endswith(".manifest.json")},
        "manifests": manifests,
        "repository": sorted(path.name for path in (loop.data / ".oxen").iterdir()),
        "beside": sorted(path.name for path in index.folder(loop.data).iterdir()),
        "cache": sorted(str(path.relative_to(loop.cache)) for path in loop.cache.rglob("*") if not path.is_dir()),
    }
    problems += _leftovers(loop, head)
    for name, expected in (reference or {}).items():
        if isinstance(expected, dict):
            problems += _differ(f"{name} of this loop", result[name], "the reference", expected)
        elif result[name] != expected:
            more, less = _without(result[name], expected), _without(expected, result[name])
            problems.append(f"{name}: more than the reference: {more}, less: {less}, or in another order")
    if problems:
        raise Violation("\n".join(problems))
    return result


def _without(a: list[str], b: list[str]) -> list[str]:
    return list((Counter(a) - Counter(b)).elements())


def _lasting(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest without what says when it was made."""
    manifest["details"].get("metrics", {}).pop("seconds", None)
    return {name: value for name, value in manifest.items() if name not in VOLATILE}


def _differ(one: str, a: dict[str, Any], other: str, b: dict[str, Any]) -> list[str]:
    return [
        f"{path}: {one} has {str(a.get(path, 'nothing'))[:200]}, {other} {str(b.get(path, 'nothing'))[:200]}"
        for path in sorted({*a, *b})
        if a.get(path) != b.get(path)
    ]


def _missing_content(loop: Loop, seen: dict[str, Any]) -> list[str]:
    """Each file of each commit must be in the version store, with the right hash, and oxenai must restore the same."""
    problems, known = [], {}
    for commit, _ in seen["log"]:
        tree = index.read_tree(loop.data, commit)
        if tree is None:
            problems.append(f"commit {commit}: no list of its files")
            continue
        problems += _differ(
            "our list", {path: entry.sha256 for path, entry in tree.items()}, f"oxen at {commit}", seen["trees"][commit]
        )
        for path, entry in tree.items():
            stored = index.blob_path(loop.data, entry.blob)
            if entry.blob not in known:
                known[entry.blob] = hash_file(stored) if stored.exists() else None
            if known[entry.blob] != entry:
                problems.append(f"{path} of commit {commit}: content {entry.blob} is missing or damaged")
    return problems


def _leftovers(loop: Loop, head: dict[str, str]) -> list[str]:
    found = [path for path in loop.data.rglob(".*") if path != loop.data / ".oxen" and ".oxen/" not in str(path)]
    versions = loop.data / ".oxen" / "versions"
    found += [path for path in versions.rglob("*") if path.is_file() and path.name != "data"]
    found += [path for path in (loop.data / ".oxen" / "staged").rglob("*") if path.is_file()]
    found += _unreferred(loop)
    found += [path for path in (loop.cache / "work").rglob("*") if not path.is_dir()]
    found += [path for path in loop.cache.rglob("*.part")]
    found += [path for path in loop.cache.glob("merged/*") if path.is_dir() and not (path / ".complete").exists()]
    # torch makes one empty folder of this name for each user
    found += [
        path for path in loop.tmp.iterdir() if not (path.name.startswith("torchinductor_") and not any(path.iterdir()))
    ]
    return [f"left over: {path}" for path in found]


def _unreferred(loop: Loop) -> list[Path]:
    """Contents in the version store that no commit refers to."""
    referred = {
        entry.blob
        for path in (index.folder(loop.data) / "trees").glob("*.json")
        for entry in (index.read_tree(loop.data, path.stem) or {}).values()
    }
    stored = (loop.data / ".oxen" / "versions" / "files").glob("*/*/data")
    return [path for path in stored if path.parent.parent.name + path.parent.name not in referred]


# ---- the program


def play(loop: Loop, kills: list[Kill], reference: Reference, counts: Counts, tell: Any = print) -> int:
    """One loop with these kills, to its end, with all checks; returns how many of them came to pass."""
    loop.prepare()
    loop.start()
    done, last = 0, None
    for i, kill in enumerate(kills):
        if not wait_for(loop, kill):
            break
        before, last = last, None
        try:
            last = end(loop, kill.how, counts)
            if before:
                check_resumed(loop, before, counts)
        except Violation as violation:
            loop.kill_all()
            raise Violation(f'kill {i + 1} of {loop.name} (--kill "{kill}"): {violation}') from violation
        done += 1
        tell(f"{loop.name} kill {i + 1}: {kill} s: {last.label}, {last.phase} {last.partial or ''}")
        loop.start()
    code = loop.process.wait()
    words = " ".join(f'--kill "{kill}"' for kill in kills)
    try:
        if code:
            raise Violation(f"the last re-run ended with {code}:\n{loop.output[-3000:]}")
        if last:
            check_resumed(loop, last, counts)
        loop.check_none_alive()
        check_loop(loop, reference.result)
    except Violation as violation:
        raise Violation(f"{loop.name} ({words}): {violation}") from violation
    counts.loops += 1
    tell(f"{loop.name}: whole")
    return done


def table(counts: Counts) -> str:
    by_label: dict[str, Counter[str]] = {}
    for (label, phase), n in counts.kills.items():
        by_label.setdefault(label, Counter())[phase] += n
    lines = [f"{'killed in':24} kills  phases"]
    for label in sorted(by_label, key=lambda label: (not label.startswith("plan"), label.startswith("between"), label)):
        phases = ", ".join(f"{phase} {n}" for phase, n in by_label[label].most_common() if phase != "-")
        lines.append(f"{label:24} {by_label[label].total():5}  {phases}")
    phases_in_all: Counter[str] = Counter()
    for (_, phase), n in counts.kills.items():
        phases_in_all[phase] += n
    lines.append(f"{'in all':24} {counts.kills.total():5}  {dict(phases_in_all.most_common())}")
    lines.append(f"loops brought to their end and compared: {counts.loops}")
    lines.append(f"resumed from partial results: {counts.resumed.total()} times, {dict(counts.resumed)}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="kills (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--signal", choices=[*CODES], default="KILL", help="how to end it (default KILL)")
    parser.add_argument("--kill", action="append", default=[], help='a given kill, "LABEL MOMENT SECONDS"; repeatable')
    parser.add_argument("--folder", type=Path, help="where to work; a reference that lies there is used again")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    world = World(folder.resolve())
    kept = world.folder / "reference.json"
    counts = Counts()
    begin = time.monotonic()
    tell = lambda text: print(f"{time.monotonic() - begin:6.0f} s  {text}", flush=True)  # noqa: E731
    try:
        world.make()
        if kept.exists():
            reference = Reference(**json.loads(kept.read_text()))
        else:
            reference = undisturbed(world)
            kept.write_text(json.dumps(vars(reference)))
            total = sum(seconds["end"] for seconds in reference.seconds.values())
            tell(f"undisturbed: {total:.0f} s, {len(reference.seconds)} programs")
        rng, done = random.Random(arguments.seed), 0
        words = [kill.rsplit(" ", 2) for kill in arguments.kill]
        given = [Kill(label, moment, float(delay), arguments.signal) for label, moment, delay in words]
        while done < (len(given) or arguments.rounds):
            loop = Loop(world, f"{arguments.signal.lower()}-{arguments.seed}-{counts.loops}")
            kills = given or choose(rng, reference, arguments.signal)[: arguments.rounds - done]
            done += play(loop, kills, reference, counts, tell)
            shutil.rmtree(loop.folder)
            if given:
                break
    except Violation as violation:
        print(f"\nFAILED (seed {arguments.seed}, after {counts.kills.total()} kills): {violation}")
        print(f"everything is still in {folder}")
        return 1
    print(f"\n{table(counts)}\nfailures: 0 in {time.monotonic() - begin:.0f} s")
    if arguments.signal in SIGNALS:
        print(f"slowest end after {arguments.signal}: {counts.slowest:.2f} s (allowed {SECONDS_TO_END:g})")
    if not arguments.folder:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

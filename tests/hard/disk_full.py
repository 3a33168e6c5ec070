"""Let the disk become full at every write of every stage, make room, run again, and check that nothing was lost.

    python -m tests.hard.disk_full                          every stage, plan and export; every disk; about half an hour
    python -m tests.hard.disk_full --only 04_gen_preferences --disks all,data --step 8

A file system in memory (tmpfs, in a mount namespace of this program's own) holds the data repository, the cache,
work_dir and the system's temporary folder, or one of them. A filler leaves K bytes, or K inodes, and the stage is run,
for K from 0 up to what it needs. Each time it must end with 75, name the disk, show no traceback and commit nothing;
with the filler gone the same command must succeed, give what an undisturbed run gives, and leave nothing lying about.
The stages are the real programs, run in forks of a process that has imported torch already. Linux only.
"""

import argparse
import contextlib
import gc
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from self_reward.parameters.flat import flat
from self_reward.store import open_store
from self_reward.store.content import hash_file
from self_reward.store.local import index

ROOT = Path(__file__).resolve().parents[2]
STAGES = [
    *("00_sft", "01_gen_prompts", "02_gen_responses", "03_gen_scores"),
    *("04_gen_preferences", "05_dpo", "06_evaluate", "07_export"),
]
STEPS = ["plan", *STAGES, "export"]
FOLDERS = ("data", "cache", "work", "tmp")
DISKS = ("all", *FOLDERS, "inodes")  # which folders lie on the disk that becomes full
SETTINGS = {
    "base_model": "oxen:models/base", "sampler": "transformers", "sampler_batch_size": 4, "lora_rank": 4,
    "sft_max_steps": 8, "sft_batch_size": 4, "sft_micro_batch_size": 4, "sft_max_length": 128, "checkpoint_steps": 3,
    "num_prompts": 8, "prompt_min_words": 1, "min_prompt_yield": 0, "prompt_max_requests": 20, "prompt_max_tokens": 12,
    "prompt_seed_shots": 2, "prompt_generated_shots": 0, "response_max_tokens": 8, "judge_max_tokens": 8,
    "judge_votes": 2, "judge_forced_score": "true", "dpo_epochs": 2, "dpo_batch_size": 2, "dpo_micro_batch_size": 2,
    "dpo_max_length": 128, "eval_prompts": 6, "dpo_finetune": "lora", "sft_finetune": "full", "rubric": "rubric.txt",
    "prompt_template": "template.txt",
}  # fmt: skip
MANY = 32 << 20  # bytes of the file system; the filler takes most of them
PAGE = 4096


def in_own_namespace() -> list[str] | None:
    """What to put before a command so that it may mount file systems, seen by nobody else; None: not allowed here."""
    for words in (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"]):
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(FileNotFoundError):
            if subprocess.run([*words, "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode == 0:
                return words
    return None


# ---- the world


def make_world(data: Path) -> None:
    """A data repository for every stage, with a random model of two layers."""
    from tests.support.tiny import WORDS, make_tiny_model

    (data / "M0/train").mkdir(parents=True)
    (data / "M0/eval").mkdir()
    words = [word for word in WORDS if word.isalpha()]
    rows = [
        {"prompt": f"repeat the list : {a} {b}", "response": f"{a} {b}", "source": "ift"}
        for a in words[:8]
        for b in words[:8]
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (data / "M0/train/ift.jsonl").write_text(text)
    (data / "M0/train/ift+eft.jsonl").write_text(text)
    held_out = [{"prompt": f"reverse the list : {a} {b}"} for a in words[:3] for b in words[3:6]]
    (data / "M0/eval/prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    (data / "rubric.txt").write_text("judge the answer of user {prompt} response {response} points 0 5 Score: ")
    (data / "template.txt").write_text("write a new task {examples} Task {next} :")
    make_tiny_model(data / "models/base")


# ---- one run


def command(step: str, place: Path) -> list[str]:
    words = [f"--{name}={value}" for name, value in SETTINGS.items()]
    words += [f"--data_repo={place / 'data'}", f"--cache_dir={place / 'cache'}", f"--work_dir={place / 'work'}"]
    if step == "export":
        known = [word for word in words if word.split("=")[0][2:] in ("base_model", "data_repo", "cache_dir")]
        return ["export", "M0/dpo", "--to", str(place / "cache/exported"), *known]
    if step == "plan":
        return [*words, "--start_iteration=0"]
    from self_reward.parameters.stages import STAGES as KINDS

    fields = flat(KINDS[step])
    return [*(word for word in words if word.split("=")[0][2:] in fields), "--iteration=0"]


def run(step: str, place: Path, log: Path) -> tuple[int, str]:
    """Run a step's program in a fork; its exit code and what it printed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.environ["TMPDIR"] = str(place / "tmp")
            tempfile.tempdir = None
            os.chdir(ROOT)
            program = ROOT / ("self_reward/cli/__main__.py" if step == "export" else f"stages/{step}.py")
            sys.argv = [str(program), *command(step, place)]
            try:
                runpy.run_path(str(program), run_name="__main__")
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


# ---- what must hold


class Violation(Exception):
    """Something that must hold does not."""


def must(condition: bool, problem: str) -> None:
    if not condition:
        raise Violation(problem)


def contents(place: Path) -> dict[str, str]:
    """SHA-256 of all that a step is to produce; of manifests only what does not depend on when and where."""
    found = {}
    for path in [*(place / "data").glob("M0/**/*"), *(place / "cache/exported").glob("*")]:
        if path.is_file():
            content = path.read_bytes()
            if path.name.endswith(".manifest.json"):
                manifest = json.loads(content)
                content = json.dumps([manifest["key"], manifest["outputs"], manifest["counts"]]).encode()
            found[str(path.relative_to(place))] = hashlib.sha256(content).hexdigest()
    return found


def leftovers(place: Path) -> list[str]:
    patterns = ("data.oxentmp", index.TEMPORARY, ".oxen-new", ".part", "journal.json", "request-")
    found = [str(p) for p in place.rglob("*") if any(pattern in p.name for pattern in patterns)]
    return found + [str(p) for name in ("tmp", "work") for p in (place / name).rglob("*") if p.is_file()]


def check_repository(place: Path, commits: int) -> None:
    """Look at it by what Oxen has, not by what the product remembers: all content there and right."""
    data = place / "data"
    for file in [*(data / ".oxen/self_reward/trees").glob("*"), data / ".oxen/self_reward/stats.json"]:
        file.unlink(missing_ok=True)
    snapshot = open_store(str(data), branch="main", lock_timeout=60, store_timeout=60).resolve()
    found = [commit.message.splitlines()[0] for commit in snapshot.log]
    must(len(found) == commits, f"{len(found)} commits, expected {commits}: {found}")
    for commit in snapshot.log:
        tree = index.read_tree(data, commit.id) or {}
        for path, entry in tree.items():
            must(hash_file(index.blob_path(data, entry.blob)) == entry, f"{path} of commit {commit} is damaged")
    for path, sha256 in snapshot.sha256.items():
        must(hash_file(data / path).sha256 == sha256, f"{path} differs from its commit")


def check_failure(code: int, said: str, place: Path, disk: Path) -> str:
    must(code == 75, f"exit code {code}")
    must("Traceback" not in said, "a traceback")
    last = next((line for line in said.splitlines() if line.startswith("try again: ")), "")
    must("disk is full" in last and " MB free of " in last, f"it does not say that the disk is full: {said[-500:]}")
    must(str(disk) in last, f"it does not name a folder on {disk}: {last}")
    return re.sub(r"[\d.]+ MB|\d+ of \d+|[0-9a-f]{16,}", "#", last.replace(str(place), ""))


# ---- the sweep


def free(disk: Path, what: str) -> int:
    state = os.statvfs(disk)
    return state.f_favail if what == "inodes" else state.f_bavail * state.f_frsize


@contextlib.contextmanager
def only(disk: Path, left: int, what: str) -> Iterator[None]:
    """Fill the disk so that `left` bytes, or inodes, are left."""
    filler = disk / ".filler"  # hidden: no data of the user
    filler.mkdir()
    if what == "inodes":
        for number in range(free(disk, what) - left):
            (filler / str(number)).touch()
    else:
        with open(filler / "bytes", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free(disk, what) - left, 1))
    try:
        yield
    finally:
        shutil.rmtree(filler)


@contextlib.contextmanager
def mounted(place: Path, kind: str, inodes: int) -> Iterator[Path]:
    """`place` with the four folders, of which those that `kind` says lie on a small file system of their own."""
    shutil.rmtree(place, ignore_errors=True)
    disk = place if kind in ("all", "inodes") else place / kind
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MANY},nr_inodes={inodes}", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def fill_place(place: Path, state: Path) -> None:
    for name in FOLDERS:
        if (state / name).is_dir():
            shutil.copytree(state / name, place / name, dirs_exist_ok=True)
        (place / name).mkdir(exist_ok=True)


def sweep(step: str, kind: str, state: Path, after: Path, place: Path, pages: int, log: Path) -> tuple[int, Counter]:
    """Every K for one step and one disk; how many times it ran out, and what was said how often."""
    expected, said = contents(after), Counter[str]()
    commits = len(list((after / "data/.oxen/self_reward/trees").glob("*.json")))
    what = "inodes" if kind == "inodes" else "bytes"
    unit = 1 if what == "inodes" else PAGE
    left, good = 0, False
    while not good:
        # inodes: few enough for a filler of empty files
        with mounted(place, kind, 3000 if what == "inodes" else 20000) as disk:
            fill_place(place, state)
            try:
                with only(disk, left, what):
                    code, text = run(step, place, log)
                    if code != 0:
                        said[check_failure(code, text, place, disk)] += 1
                good = code == 0
                if step != "export" or not good:  # export refuses a folder that it has filled
                    code, text = run(step, place, log)
                must(code == 0, f"with room again: exit code {code}: {text}")
                found = contents(place)
                different = sorted(path for path in {*found, *expected} if found.get(path) != expected.get(path))
                must(not different, f"other content than undisturbed: {different}")
                must(not leftovers(place), f"left lying about: {leftovers(place)}")
                if good or left // (pages * unit) % 4 == 0:
                    check_repository(place, commits)
            except Violation as violation:
                raise Violation(f"{step}, disk {kind}, {left} {what} left: {violation}\n{text[-1500:]}") from None
        left += pages * unit
    return sum(said.values()), said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(STEPS), help="steps, by comma")
    parser.add_argument("--disks", default=",".join(DISKS), help="which folders lie on the full disk, by comma")
    parser.add_argument("--step", type=int, default=2, help="pages of 4096 bytes, or inodes, from one K to the next")
    parser.add_argument("--keep_going", action="store_true", help="report what is wrong and go on")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    p = parser.parse_args()
    if not p.inside:
        namespace = in_own_namespace()
        if namespace is None:
            print("no file system can be mounted here: neither as root nor in a user namespace", file=sys.stderr)
            return 77
        return subprocess.run(
            [*namespace, sys.executable, "-m", "tests.hard.disk_full", "--inside", *sys.argv[1:]]
        ).returncode
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    steps = [step for step in STEPS if step in p.only.split(",")]
    wrong = points = 0
    with tempfile.TemporaryDirectory(prefix="disk-full-") as temporary:
        folder = Path(temporary)
        place, log = folder / "place", folder / "log"
        make_world(folder / "states/0/data")
        import transformers.models.llama.modeling_llama  # noqa: F401

        from self_reward.models import checkpoints, training  # noqa: F401
        from self_reward.models.engines import transformers as engine  # noqa: F401

        gc.freeze()
        for number, step in enumerate(STEPS[: STEPS.index(steps[-1]) + 1]):
            state, after = folder / "states" / str(number), folder / "states" / str(number + 1)
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            fill_place(place, state)
            code, text = run(step, place, log)
            must(code == 0, f"{step}, undisturbed: exit code {code}: {text}")
            fill_place(after, place)
            for kind in p.disks.split(",") if step in steps else []:
                begun = time.monotonic()
                try:
                    count, said = sweep(step, kind, state, after, place, p.step, log)
                except Violation as violation:
                    print(f"WRONG {violation}", flush=True)
                    wrong += 1
                    if not p.keep_going:
                        return 1
                    continue
                points += count
                print(f"{step:20} disk {kind:7} {count:4} times full  {time.monotonic() - begun:6.1f} s", flush=True)
                for line, times in said.most_common():
                    print(f"      {times:4}  {line}", flush=True)
    print(f"the disk was full {points} times; {wrong} sweeps with something wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

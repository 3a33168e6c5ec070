"""04_gen_preferences on a million prompts of four responses: time and memory of the real stage program.

Input: M0/generated/scores.jsonl as 03 writes it, with responses of 400 characters and three judgements each, committed
before. What is measured is the whole program: the file is pulled and checked, pairs are made, the result is committed.
Run: make bench-data
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from tqdm import tqdm

from bench import prompts, table
from self_reward.method.prompts import prompt_id
from self_reward.repository import jsonl
from self_reward.rows import Score
from self_reward.store import open_store

ROOT = Path(__file__).parent.parent
RESPONSES = 4
CHARACTERS = 400
VOTES = 3
SCORES = "M0/generated/scores.jsonl"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where to work; default: the system's temporary folder")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        data = Path(folder) / "data"
        made = tqdm(rows(options.prompts, options.seed), "write", options.prompts * RESPONSES, mininterval=5)
        jsonl.write(data / SCORES, made)
        open_store(str(data), branch="main", lock_timeout=60, store_timeout=3600).resolve()
        size = (data / SCORES).stat().st_size
        seconds, cpu, peak, shown = measure(
            [sys.executable, "stages/04_gen_preferences.py", "--data_repo", str(data), "--cache_dir", f"{folder}/cache"]
        )
        pairs = (data / "M0/generated/preferences.jsonl").stat().st_size
    table.show(
        f"04_gen_preferences on {options.prompts:,} prompts with {RESPONSES} responses",
        {
            "seconds": f"{seconds:.1f}",
            "CPU seconds": f"{cpu:.1f}",
            "peak memory": f"{peak / 1e9:.2f} GB",
            "scores.jsonl": f"{size / 1e9:.2f} GB",
            "preferences.jsonl": f"{pairs / 1e9:.2f} GB",
            "the stage said": shown.strip(),
        },
    )
    return 0


def rows(count: int, seed: int) -> Iterator[Score]:
    """What 03 writes, with texts cut out of one long text of the benchmark's words."""
    rng = random.Random(seed)
    text = " ".join(prompts.make(20_000, seed))
    for number, prompt in enumerate(prompts.make(count, seed)):
        prompt = f"{prompt} {number}"  # all differ
        identity = prompt_id(prompt)
        for i in range(RESPONSES):
            at = rng.randrange(len(text) - CHARACTERS)
            votes = [float(rng.randint(0, 5)) for _ in range(VOTES)]
            yield Score(
                prompt_id=identity,
                response_id=f"{identity}-{i}",
                prompt=prompt,
                completion=text[at : at + CHARACTERS],
                finish_reason="stop",
                tokens=100,
                score=sum(votes) / VOTES,
                votes=list(votes),
                reasoning=[f"{text[at + vote : at + vote + 80]}\nScore: {vote:g}" for vote in map(int, votes)],
            )


def measure(command: list[str]) -> tuple[float, float, int, str]:
    """Seconds, CPU seconds, peak resident memory of all its processes in bytes, and standard output of `command`."""
    begun = time.perf_counter()
    before = psutil.Process().cpu_times()
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    peak = 0
    while running.poll() is None:
        try:
            own = psutil.Process(running.pid)
            peak = max(peak, sum(process.memory_info().rss for process in [own, *own.children(recursive=True)]))
        except psutil.NoSuchProcess:
            pass  # a process has ended meanwhile
        time.sleep(0.05)
    shown = running.communicate()[0]
    if running.returncode:
        raise SystemExit(f"{command} ended with {running.returncode}")
    after = psutil.Process().cpu_times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - begun, cpu, peak, shown


if __name__ == "__main__":
    sys.exit(main())

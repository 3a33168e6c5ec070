"""A gigabyte into a local data repository and out of it again: our store beside bare oxenai.

    python -m bench.store --folder DIR --size_gb 1

Compared is what a user's own script would do with the same files on the same disk:
- push: bare is `repo.add(path); repo.commit(text)` of files that lie in the working tree already; ours is
  `store.push` of files that lie beside the repository, as a stage's outputs do. Ours also hashes what it commits
  (SHA-256 and XXH3), reads back what Oxen stored, and can be killed at any time.
- pull: bare is `repo.restore(path, source=commit)` of files that are missing from the working tree; ours is
  `store.pull` of the same files to a folder beside the repository, with the XXH3 of every file checked.
Each is one process; the clock starts after its imports. Rounds are interleaved, since the machine may have other work;
CPU is user and system time of the process and its children, RSS the largest of them. The contents differ each round.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {"1 file": 1, "64 files": 64}
MB = 1 << 20


def write_files(folder: Path, count: int, size: int) -> None:
    """`count` files of random bytes, `size` bytes in all."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(count):
        with open(folder / f"{number}.bin", "wb") as file:
            for _ in range(size // count // MB):
                file.write(os.urandom(MB))
            file.flush()
            os.fsync(file.fileno())


def bare(repo: Path, operation: str, source: Path) -> tuple[float, float]:
    import oxen

    (repo / "M0").mkdir(parents=True, exist_ok=True)
    data = oxen.Repo(str(repo))
    if not (repo / ".oxen").exists():
        data.init()
    if operation == "push":
        os.rename(source, repo / "M0/big")
        return timed(lambda: (data.add(str(repo / "M0/big")), data.commit("big")))
    head = data.log()[0].id
    shutil.rmtree(repo / "M0/big")
    return timed(lambda: data.restore(str(repo / "M0/big"), source=head))


def ours(repo: Path, operation: str, source: Path) -> tuple[float, float]:
    from self_reward.store import open_store

    if not (repo / "M0").exists():
        (repo / "M0").mkdir(parents=True)
        (repo / "M0/first.txt").write_text("first")
    store = open_store(str(repo), branch="main", lock_timeout=60, store_timeout=3600)
    head = store.resolve()
    if operation == "push":
        return timed(
            lambda: store.push({"M0/big": source}, key=os.urandom(8).hex(), message="big", expected_head=head.head)
        )
    to = repo.parent / "pulled"
    shutil.rmtree(to, ignore_errors=True)
    return timed(lambda: store.pull(head, ["M0/big"], to))


def timed(function) -> tuple[float, float]:
    """Seconds on the clock and of CPU."""
    begun, cpu = time.perf_counter(), _cpu()
    function()
    return time.perf_counter() - begun, _cpu() - cpu


def _cpu() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def one(who: str, operation: str, folder: Path) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", who, operation, "--folder", str(folder)]
    environment = {**os.environ, "OXEN_CONFIG_DIR": str(folder / "config"), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    parser.add_argument("--size_gb", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    p = parser.parse_args()
    if p.one:
        who, operation = p.one
        seconds, cpu = (bare if who == "bare" else ours)(p.folder / who / "data", operation, p.folder / "source")
        peak = max(resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        print("\n" + json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak / 1024}))
        return
    with tempfile.TemporaryDirectory(dir=p.folder) as folder:
        compare(Path(folder).resolve(), p.size_gb, p.rounds)


def compare(folder: Path, size_gb: float, rounds: int) -> None:
    """Measure both and print the table; needs 5 times the size in `folder`."""
    import oxen

    oxen.user.config_user("bench", "bench@localhost", str(folder / "config/user_config.toml"))
    print(f"{size_gb:g} GB, {rounds} rounds, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; medians")
    heads = ("", "", "bare s", "ours s", "ratio", "bare CPU s", "ours CPU s", "ratio", "bare MB", "ours MB")
    print("{:9} {:5} {:>8} {:>8} {:>6} {:>11} {:>11} {:>6} {:>8} {:>8}".format(*heads))
    for shape, count in SHAPES.items():
        found: dict[tuple[str, str], list[dict[str, float]]] = {}
        for number in range(rounds):
            for who in (("bare", "ours"), ("ours", "bare"))[number % 2]:
                shutil.rmtree(folder / who, ignore_errors=True)
                write_files(folder / "source", count, round(size_gb * 1000) * 1000 * 1000)
                for operation in ("push", "pull"):
                    found.setdefault((who, operation), []).append(one(who, operation, folder))
                shutil.rmtree(folder / who, ignore_errors=True)
        for operation in ("push", "pull"):
            (bs, bc, bp), (os_, oc, op) = (
                [statistics.median(run[name] for run in found[who, operation]) for name in ("seconds", "cpu", "peak")]
                for who in ("bare", "ours")
            )
            row = (shape, operation, bs, os_, os_ / bs, bc, oc, oc / bc, bp, op)
            print(
                "{:9} {:5} {:8.2f} {:8.2f} {:6.2f} {:11.2f} {:11.2f} {:6.2f} {:8.0f} {:8.0f}".format(*row), flush=True
            )


if __name__ == "__main__":
    main()

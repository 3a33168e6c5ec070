"""A gigabyte into a data repository and out of it again: our store beside bare oxenai.

    python -m bench.store --folder DIR --size_gb 1
    OXEN_SERVER=/path/to/oxen-server python -m bench.store --server --size_gb 5 --shape 1

Compared, for a local repository, is what a user's own script would do with the same files on the same disk:
- push: bare is `repo.add(path); repo.commit(text)` of files that lie in the working tree already; ours is
  `store.push` of files that lie beside the repository, as a stage's outputs do. Ours also hashes what it commits
  (SHA-256 and XXH3), reads back what Oxen stored, and can be killed at any time.
- pull: bare is `repo.restore(path, source=commit)` of files that are missing from the working tree; ours is
  `store.pull` of the same files to a folder beside the repository, with the XXH3 of every file checked.
With --server it is a real oxen-server on loopback, started for this:
- push: bare is `workspace.add_files(folder, files); workspace.commit(text)`; ours is `store.push` of the files and of a
  manifest that has their hashes, as a stage makes it.
- again: the same contents under another path, so that nothing needs to be sent.
- pull: bare is `repo.download(folder, to, commit)`; ours is `store.pull`.
Each is one process; the clock starts after its imports. Rounds are interleaved, since the machine may have other work;
CPU is user and system time of the process and its children, RSS the largest of them. The contents differ each round.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support import servers

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {"1": "1 file", "64": "64 files"}
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


def bare_remote(url: str, operation: str, source: Path) -> tuple[float, float]:
    import oxen

    host, _, name = url.partition("://")[2].partition("/")
    if operation == "pull":
        to = source.parent / "pulled"
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir()
        data = oxen.RemoteRepo(name, host, scheme="http")
        return timed(lambda: data.download("M0/big", str(to)))
    if operation == "push":
        data = oxen.RemoteRepo(name, host, scheme="http")
        data.create(empty=True, is_public=False)
    data = oxen.RemoteRepo(name, host, scheme="http")
    where = source.parent / "tree" / ("M0" if operation == "push" else "M1") / "big"
    shutil.rmtree(source.parent / "tree", ignore_errors=True)
    where.parent.mkdir(parents=True)
    os.rename(source, where)
    try:
        workspace = oxen.Workspace(data, "main")
        files = sorted(where.iterdir())
        return timed(lambda: (workspace.add_files(source.parent / "tree", files), workspace.commit("big")))
    finally:
        os.rename(where, source)


def ours_remote(url: str, operation: str, source: Path) -> tuple[float, float]:
    from self_reward.store import open_store
    from self_reward.store.content import hash_file

    store = open_store(url, branch="main", lock_timeout=60, store_timeout=3600, cache_dir=source.parent / "cache")
    if operation == "push":
        store.create()
        (source.parent / "first.txt").write_text("first")
        store.put({"M0/train/first.txt": source.parent / "first.txt"}, message="first")
    head = store.resolve()
    if operation != "pull":
        model, key = ("M0" if operation == "push" else "M1"), os.urandom(8).hex()
        entries = {f"{model}/big/{path.name}": hash_file(path) for path in source.iterdir()}
        outputs = {path: {"sha256": e.sha256, "xxh3": e.blob, "size": e.size} for path, e in entries.items()}
        manifest = source.parent / "manifest.json"
        manifest.write_text(json.dumps({"key": key, "outputs": outputs}))
        files = {f"{model}/big": source, f"{model}/bench.manifest.json": manifest}
        return timed(lambda: store.push(files, key=key, message="big", expected_head=head.head))
    to = source.parent / "pulled"
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


def one(who: str, operation: str, folder: Path, where: str) -> dict[str, float]:
    """Run one measurement in a separate process. `where`: the data repository."""
    command = [sys.executable, "-m", "bench.store", "--one", who, operation, where, "--folder", str(folder)]
    environment = {**os.environ, "OXEN_CONFIG_DIR": str(folder / "config"), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    parser.add_argument("--size_gb", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", choices=SHAPES, help="only this many files")
    parser.add_argument("--server", action="store_true", help="over HTTP, with the server that OXEN_SERVER names")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    p = parser.parse_args()
    if p.one:
        who, operation, where = p.one
        measured: dict[tuple[str, bool], Any] = {
            ("bare", False): bare, ("ours", False): ours, ("bare", True): bare_remote, ("ours", True): ours_remote
        }  # fmt: skip
        is_remote = "://" in where
        seconds, cpu = measured[who, is_remote](where if is_remote else Path(where), operation, p.folder / "source")
        peak = max(resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        print("\n" + json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak / 1024}))
        return 0
    if p.server and (problem := servers.missing("real")):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(dir=p.folder) as folder:
        compare(Path(folder).resolve(), p.size_gb, p.rounds, [p.shape] if p.shape else [*SHAPES], p.server)
    return 0


def compare(folder: Path, size_gb: float, rounds: int, shapes: list[str], server: bool) -> None:
    """Measure both and print the table; needs 5 times the size in `folder`."""
    import oxen

    oxen.user.config_user("bench", "bench@localhost", str(folder / "config/user_config.toml"))
    operations = ("push", "again", "pull") if server else ("push", "pull")
    print(f"{size_gb:g} GB, {rounds} rounds, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; medians")
    heads = ("", "", "bare s", "ours s", "ratio", "bare CPU s", "ours CPU s", "ratio", "bare MB", "ours MB")
    print("{:9} {:5} {:>8} {:>8} {:>6} {:>11} {:>11} {:>6} {:>8} {:>8}".format(*heads))
    peaks: dict[str, float] = {}
    for shape in shapes:
        found: dict[tuple[str, str], list[dict[str, float]]] = {}
        for number in range(rounds):
            for who in (("bare", "ours"), ("ours", "bare"))[number % 2]:
                shutil.rmtree(folder / who, ignore_errors=True)
                write_files(folder / "source", int(shape), round(size_gb * 1000) * 1000 * 1000)
                with repository(folder / who, server, peaks, who) as where:
                    for operation in operations:
                        os.sync()  # so that no run pays for another's writes
                        found.setdefault((who, operation), []).append(one(who, operation, folder, where))
                shutil.rmtree(folder / who, ignore_errors=True)
        for operation in operations:
            (bs, bc, bp), (os_, oc, op) = (
                [statistics.median(run[name] for run in found[who, operation]) for name in ("seconds", "cpu", "peak")]
                for who in ("bare", "ours")
            )
            row = (SHAPES[shape], operation, bs, os_, os_ / bs, bc, oc, oc / bc, bp, op)
            print(
                "{:9} {:5} {:8.2f} {:8.2f} {:6.2f} {:11.2f} {:11.2f} {:6.2f} {:8.0f} {:8.0f}".format(*row), flush=True
            )
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    if peaks:
        print("the server's largest memory: " + ", ".join(f"{who} {peak:.0f} MB" for who, peak in peaks.items()))


@contextlib.contextmanager
def repository(folder: Path, server: bool, peaks: dict[str, float], who: str) -> Iterator[str]:
    """A new data repository; a server's peak memory is noted in `peaks`."""
    if not server:
        yield str(folder / "data")
        return
    with servers.real_server(folder) as program:
        yield f"oxen+http://127.0.0.1:{program.port}/bench/big"
        status = Path(f"/proc/{program.pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
        peaks[who] = max(peaks.get(who, 0), peak)


if __name__ == "__main__":
    sys.exit(main())

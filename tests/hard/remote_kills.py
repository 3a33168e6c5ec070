"""Disturb stages that talk to a real oxen-server, run them again, and check that nothing was lost, doubled or left.

    OXEN_SERVER=/path/to/oxen-server python -m tests.hard.remote_kills --rounds 200 --seed 0

Each round runs one stage of a loop over one growing repository: either the real 04_gen_preferences, or one that stands
for training: it pulls the last checkpoint (30 MB) and pushes a new one, of several files. A relay between the stage and
the server knows what goes by, and at a moment drawn at random one of these happens:
    kill     SIGKILL of the stage
    cut      all connections are reset, and none is taken for up to two seconds
    stall    nothing passes for some seconds, though connections stay open
    crash    SIGKILL of the server, which comes back on the same data within three seconds
    hang     SIGSTOP of the server for some seconds
Then the stage is run again until it is done. What must hold then is read from the server over plain HTTP, with no code
of the store's: every commit once and in order, every file as one try has made it, no workspace, no other branch.
Linux only.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import urllib3

from tests.support import servers

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("kill", "cut", "stall", "crash", "hang")
MB = 1_000_000
FILES = {
    "model.safetensors": 20 * MB,
    "optimizer [1]*.bin": 7 * MB,
    "deep er/é.bin": 3 * MB,
    "one": 1,
    "empty": 0,
}
CHECKPOINT = "M{}/models/dpo/final_checkpoint"
TEMPORARY = ".self_reward-tmp-"  # files of which only a part was pulled
MADE = "REMOTE_KILLS_MADE"  # the file to which a try of the training writes what it has made
TRIES = 3  # undisturbed ones after which a stage must be done
ROUNDS = 20  # in one repository; the server's time to list one grows with its files


class Violation(Exception):
    """Something that must hold does not."""


# ---- the stage that stands for training


def train() -> None:
    """05_dpo without a model: pulls the policy's checkpoint and writes one. In every second iteration each try writes
    other bytes, as no two runs on a GPU write the same; else the same, which the server may have a part of."""
    from self_reward.parameters.stages import Dpo
    from self_reward.run import stage

    stage.main("05_dpo", Dpo, _work, train.__doc__)


def _work(p: Any, run: Any) -> None:
    run.input(f"checkpoint:M{p.iteration - 1}/dpo")
    folder = run.output("dpo")
    hashes = write_checkpoint(folder, p.iteration)
    with open(os.environ[MADE], "a", encoding="utf-8") as file:
        file.write(json.dumps({f"{CHECKPOINT.format(p.iteration)}/{name}": sha for name, sha in hashes.items()}) + "\n")
    run.counts["steps"] = 1


def write_checkpoint(folder: Path, iteration: int) -> dict[str, str]:
    """Write random files and what makes them a checkpoint; their SHA-256 by name."""
    hashes = {}
    about = {"finetune": "full", "base_model": "path:none", "iteration": iteration}
    for name, size in {"self_reward.json": 0, **FILES}.items():
        content = random.Random(f"{iteration} {name}").randbytes(size) if iteration % 2 else os.urandom(size)
        content = content if name != "self_reward.json" else json.dumps(about).encode()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        hashes[name] = hashlib.sha256(content).hexdigest()
    return hashes


# ---- the relay


class Moment(NamedTuple):
    """When something happens to a run.

    `what`: time (`value` seconds after its start), up, down (when `value` bytes have gone to the server, have come from
    it), before (the commit request has arrived at the relay), sent (`value` seconds after it went on to the server),
    answered (the answer has arrived at the relay).
    """

    what: str
    value: float = 0.0

    def __str__(self) -> str:
        return f"{self.what} {self.value:.4g}"


class Relay:
    """Passes bytes between clients and 127.0.0.1:`upstream`, counts them, and at `moment` calls `action`, once, before
    it passes anything more."""

    def __init__(self, upstream: int):
        self.upstream = upstream
        self.lock = threading.Lock()
        self.passing = threading.Event()
        self.passing.set()
        self.sockets: set[socket.socket] = set()
        self.refused_until = 0.0
        self.expect(None, None)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def expect(self, moment: Moment | None, action: Callable[[], None] | None) -> None:
        """Begin to count anew, and to wait for the moment."""
        with self.lock:
            self.moment, self.action = moment, action
            self.up = self.down = 0
            self.commit_seconds = 0.0

    def calm(self) -> None:
        """Let everything pass again."""
        self.expect(None, None)
        self.refused_until = 0.0
        self.passing.set()

    def cut(self, seconds: float) -> None:
        """Reset all connections, and refuse new ones for a while."""
        self.refused_until = time.monotonic() + seconds
        with self.lock:
            sockets = list(self.sockets)
        for one in sockets:
            _reset(one)

    def stall(self, seconds: float) -> None:
        self.passing.clear()
        timer = threading.Timer(seconds, self.passing.set)
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        self.listener.close()
        self.cut(1e9)

    def happen(self) -> None:
        """What is expected, now, unless it was already."""
        with self.lock:
            action, self.action = self.action, None
        if action:
            action()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        if time.monotonic() < self.refused_until:
            return _reset(client)
        try:
            server = socket.create_connection(("127.0.0.1", self.upstream), timeout=5)
            server.settimeout(None)
        except OSError:
            return _reset(client)
        with self.lock:
            self.sockets |= {client, server}
        connection = _Connection()
        back = threading.Thread(target=self._pump, args=(server, client, connection, False), daemon=True)
        back.start()
        self._pump(client, server, connection, True)
        back.join()
        with self.lock:
            self.sockets -= {client, server}
        client.close()
        server.close()

    def _pump(self, source: socket.socket, target: socket.socket, connection: "_Connection", up: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                self._look(data, connection, up)
                self.passing.wait()
                target.sendall(data)
                if up and connection.sent(data):
                    self._sent(connection)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            _reset(source)
            _reset(target)

    def _look(self, data: bytes, connection: "_Connection", up: bool) -> None:
        """See what is about to pass."""
        with self.lock:
            if up:
                self.up += len(data)
            else:
                self.down += len(data)
            what, value = self.moment or Moment("")
            is_due = (what == "up" and self.up >= value) or (what == "down" and self.down >= value)
        if up and data.startswith(b"POST ") and b"/merge/" in data.split(b"\r\n", 1)[0]:
            connection.commit(data)
            is_due |= what == "before"
        if not up and connection.committed:
            self.commit_seconds = time.monotonic() - connection.committed
            connection.committed = 0.0
            is_due |= what in ("answered", "sent")
        if is_due:
            self.happen()

    def _sent(self, connection: "_Connection") -> None:
        """The commit request is with the server."""
        if self.moment and self.moment.what == "sent":
            threading.Timer(self.moment.value, self.happen).start()


class _Connection:
    """How far a commit request on one connection is: `left` bytes are still to be sent, or it was `committed` then."""

    def __init__(self) -> None:
        self.left, self.committed = 0, 0.0

    def commit(self, data: bytes) -> None:
        head, _, _ = data.partition(b"\r\n\r\n")
        length = next(int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length:"))
        self.left = len(head) + 4 + length

    def sent(self, data: bytes) -> bool:
        """Whether this was the last of a commit request."""
        if not self.left:
            return False
        self.left = max(self.left - len(data), 0)
        if not self.left:
            self.committed = time.monotonic()
        return not self.left


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        one.close()


# ---- what the server has, over plain HTTP


class Reader:
    """The repository as it is on the server."""

    def __init__(self, url: str):
        self.url, self.pool = url, urllib3.PoolManager(retries=False, timeout=60)

    def bytes(self, path: str) -> bytes:
        answer = self.pool.request("GET", self.url + path)
        if answer.status != 200:
            raise Violation(f"GET {path}: HTTP {answer.status}: {answer.data[:300]!r}")
        return answer.data

    def ask(self, path: str) -> Any:
        return json.loads(self.bytes(path))

    def branches(self) -> dict[str, str]:
        return {branch["name"]: branch["commit_id"] for branch in self.ask("/branches")["branches"]}

    def workspaces(self) -> list[str]:
        return [workspace["id"] for workspace in self.ask("/workspaces")["workspaces"]]

    def log(self, branch: str = "main") -> list[str]:
        """The messages of the commits, oldest first."""
        found: list[str] = []
        page, pages = 1, 1
        while page <= pages:
            answer = self.ask(f"/commits/history/{quote(branch, safe='')}?page={page}&page_size=100")
            found += [commit["message"] for commit in answer["commits"]]
            page, pages = page + 1, answer["total_pages"]
        return found[::-1]

    def files(self, commit: str) -> dict[str, int]:
        """Size by path."""
        found: dict[str, int] = {}

        def collect(entries: list[dict[str, Any]], folder: str) -> None:
            for entry in entries:
                if entry["is_dir"]:
                    collect(entry.get("children") or [], f"{folder}{entry['filename']}/")
                else:
                    found[folder + entry["filename"]] = entry["size"]

        page, pages = 1, 1
        while page <= pages:
            answer = self.ask(f"/dir/{commit}/?depth=-1&page={page}&page_size=1000")
            collect(answer["entries"], "")
            page, pages = page + 1, answer["total_pages"]
        return found

    def sha256(self, commit: str, path: str) -> str:
        return hashlib.sha256(self.bytes(f"/file/{commit}/{quote(path)}")).hexdigest()


# ---- rounds


class Result(NamedTuple):
    """A finished round: its commit's message, and the SHA-256 of its files by path."""

    message: str
    files: dict[str, str]


@dataclass
class Counts:
    kinds: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    landed: Counter[bool] = field(default_factory=Counter)
    """whether the commit was there when the disturbed run had ended"""
    codes: Counter[int] = field(default_factory=Counter)
    tries: int = 0
    kept: int = 0
    """workspaces that a killed server kept until the next push"""
    missed: int = 0
    """disturbances whose moment never came"""


class Undisturbed(NamedTuple):
    """How long a stage takes when nothing happens: seconds, bytes to and from the server, seconds of its commit."""

    seconds: float
    up: int
    down: int
    commit: float


class World:
    """A server, a relay in front of it, and a repository with the user's data of ROUNDS iterations."""

    def __init__(self, folder: Path, server: servers.Program):
        self.folder, self.server, self.relay = folder, server, Relay(server.port)
        self.cache, self.made = folder / "cache", folder / "made.jsonl"
        name = f"kills-{uuid.uuid4().hex[:8]}"
        self.repository = f"oxen+http://127.0.0.1:{self.relay.port}/test/{name}"
        self.reader = Reader(f"{server.url}/api/repos/test/{name}")
        self.results: list[Result] = []
        self.kept: set[str] = set()
        self.ever_kept = 0
        self.undisturbed: dict[str, Undisturbed] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self._put_user_data()

    def _put_user_data(self) -> None:
        """Scores for the iterations of 04_gen_preferences, preferences and a first checkpoint for those of training."""
        from self_reward.store import open_store

        data = self.folder / "user"
        write_checkpoint(data / CHECKPOINT.format(0), 0)
        for k in range(ROUNDS + 5):
            scores = [
                {"prompt_id": f"p{i}", "response_id": f"p{i}-{j}", "prompt": f"say {i} {k}", "completion": f"{i} " * j,
                 "score": j, "votes": [j], "finish_reason": "stop", "tokens": j, "reasoning": []}
                for i in range(100) for j in (1, 4)
            ]  # fmt: skip
            _write(data / f"M{1000 + k}/generated/scores.jsonl", scores)
            _write(data / f"M{k}/generated/preferences.jsonl", [{"prompt_id": str(k)}])
        store = open_store(self.repository, branch="main", lock_timeout=5, store_timeout=120, cache_dir=self.cache)
        store.create()
        files = {str(path.relative_to(data)): path for path in data.rglob("*") if path.is_file()}
        store.put(files, message="user data")
        head = self.reader.branches()["main"]
        self.users = {path: hashlib.sha256(local.read_bytes()).hexdigest() for path, local in files.items()}
        if {*self.reader.files(head)} - {".self_reward/commit.json"} != {*self.users}:
            raise Violation("the user's data is not on the server as it was put there")
        self.first = self.reader.log()

    def start(self, stage: str, iteration: int, store_timeout: float) -> subprocess.Popen[bytes]:
        program = ["stages/04_gen_preferences.py"]
        if stage == "05_dpo":
            program = ["-c", "from tests.hard import remote_kills; remote_kills.train()"]
        command = [
            sys.executable, *program, "--data_repo", self.repository, "--iteration", str(iteration),
            "--cache_dir", str(self.cache), "--store_timeout", f"{store_timeout:g}",
        ]  # fmt: skip
        command += ["--eft_replay", "0"] if stage == "05_dpo" else ["--min_margin", "0", "--min_pairs", "1"]
        environment = {**os.environ, MADE: str(self.made), "PYTHONPATH": str(ROOT)}
        with open(self.folder / "output.log", "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self.process

    def wait(self, seconds: float) -> int:
        """The exit code of what was started."""
        assert self.process
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Violation(f"the stage had not ended after {seconds:.0f} s:\n{self.output}") from None

    @property
    def output(self) -> str:
        return (self.folder / "output.log").read_text(errors="replace")[-3000:]

    def measure(self, stage: str, iteration: int) -> None:
        """Run a stage in peace and remember how long it takes."""
        self.relay.expect(Moment("never"), None)
        begun = time.monotonic()
        self.start(stage, iteration, 60)
        if code := self.wait(200):
            raise Violation(f"undisturbed {stage} ended with {code}:\n{self.output}")
        relay, seconds = self.relay, time.monotonic() - begun
        self.undisturbed[stage] = Undisturbed(seconds, relay.up, relay.down, relay.commit_seconds)
        self.check(stage, iteration)

    # ---- what happens

    def action(self, kind: str, rng: random.Random) -> tuple[Callable[[], None], Callable[[], None]]:
        """What happens, and what brings things back in order, without waiting for its own end."""
        seconds, process = rng.uniform(0, 3), self.process
        assert process
        restarted = threading.Event()

        def crash() -> None:
            self.server.process.kill()
            self.server.process.wait()
            threading.Thread(target=come_back, daemon=True).start()

        def come_back() -> None:
            time.sleep(seconds)
            self.server.start()
            restarted.set()

        def hang() -> None:
            os.kill(self.server.pid, signal.SIGSTOP)
            threading.Timer(2 * seconds, wake).start()

        def wake() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.server.pid, signal.SIGCONT)

        return {
            "kill": (process.kill, lambda: None),
            "cut": (lambda: self.relay.cut(seconds * 2 / 3), lambda: None),
            "stall": (lambda: self.relay.stall(2 * seconds), lambda: None),
            "crash": (crash, lambda: None if restarted.wait(servers.SECONDS_TO_START) else sys.exit("no server")),
            "hang": (hang, wake),
        }[kind]

    def disturbed(self, stage: str, iteration: int, kind: str, moment: Moment, rng: random.Random) -> tuple[bool, int]:
        """Run a stage, let it happen; returns whether it did, and the exit code."""
        store_timeout = rng.choice([2.0, 4.0, 20.0])
        happened = threading.Event()
        self.start(stage, iteration, store_timeout)
        act, mend = self.action(kind, rng)
        self.relay.expect(moment, lambda: (happened.set(), act())[1])
        if moment.what == "time":
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(moment.value)
            if self.process.returncode is None:
                self.relay.happen()
        code = self.wait(4 * store_timeout + 30)
        self.relay.expect(None, None)
        if happened.is_set():
            mend()
        self.relay.calm()
        allowed = {0, 75, -signal.SIGKILL} if kind == "kill" else {0, 75}
        if code not in allowed:
            raise Violation(f"the disturbed stage ended with {code}:\n{self.output}")
        if code == 75 and "try again:" not in self.output:
            raise Violation(f"75 without a word:\n{self.output}")
        return happened.is_set(), code

    def landed(self) -> bool:
        """Whether a commit is there that no finished round has made."""
        return len(self.reader.log()) > len(self.first) + len(self.results)

    def check_pulled(self) -> None:
        """A file that is only partly there must not have its final name."""
        known = self.users | {path: sha for result in self.results for path, sha in result.files.items()}
        for folder in (self.cache / "work").glob("*/*/inputs"):
            for path in folder.rglob("*"):
                if path.is_file() and not path.name.startswith(TEMPORARY):
                    name = str(path.relative_to(folder))
                    if hashlib.sha256(path.read_bytes()).hexdigest() != known[name]:
                        raise Violation(f"{path} has not the content of {name}")

    def partly_pulled(self) -> int:
        """Bytes of files that were begun."""
        return sum(path.stat().st_size for path in (self.cache / "work").rglob(f"{TEMPORARY}*"))

    # ---- what must hold when a stage is done

    def check(self, stage: str, iteration: int) -> None:
        """Everything of this round; remembers its result."""
        reader = self.reader
        head = reader.branches()["main"]
        tree = reader.files(head)
        name = f"M{iteration}/{stage}.manifest.json"
        if name not in tree:
            raise Violation(f"{name} is not in the newest commit {head}")
        manifest = json.loads(reader.bytes(f"/file/{head}/{name}"))
        made = [json.loads(line) for line in self.made.read_text().splitlines()] if self.made.exists() else []
        outputs = {path: output["sha256"] for path, output in manifest["outputs"].items()}
        if stage == "05_dpo" and outputs not in made:
            raise Violation(f"{name}: {outputs} is what no try has made: {made}")
        messages = reader.log()
        new = messages[len(self.first) + len(self.results) :]
        expected = f"M{iteration} {stage}: "
        if len(new) != 1 or not new[0].startswith(expected) or not new[0].endswith(f"\n\nkey: {manifest['key']}"):
            raise Violation(f"expected one commit {expected!r} with key {manifest['key']}, found {new}")
        self.made.unlink(missing_ok=True)
        sha = reader.sha256(head, name)
        self.results.append(Result(new[0], {**outputs, name: sha}))
        self.check_all(tree, head)
        self.check_files(head, self.results[-1].files)
        if left := [path for path in (self.cache / "work").rglob("*") if path.is_file()]:
            raise Violation(f"left of uncommitted work: {left}")

    def check_all(self, tree: dict[str, int], head: str) -> None:
        reader = self.reader
        if (messages := reader.log()) != (expected := self.first + [result.message for result in self.results]):
            raise Violation(f"the log is {messages}, expected {expected}")
        if keys := [
            key for key, n in Counter(m.rsplit("key: ", 1)[-1] for m in messages if "key:" in m).items() if n > 1
        ]:
            raise Violation(f"committed more than once: {keys}")
        if others := [branch for branch in reader.branches() if branch != "main"]:
            raise Violation(f"branches besides main: {others}")
        workspaces = {*reader.workspaces()}
        # A server that is killed between making a commit and removing its workspace keeps that; where the stage was
        # not there to see it, the next push removes it.
        if workspaces & self.kept or (workspaces and "skipped" not in self.output):
            raise Violation(f"workspaces left on the server: {workspaces}, of which {self.kept} known before")
        self.ever_kept += len(workspaces)
        self.kept = workspaces
        wanted = {path for result in self.results for path in result.files} | {*self.users, ".self_reward/commit.json"}
        if wanted != {*tree}:
            raise Violation(f"files missing from {head}: {wanted - {*tree}}, not expected: {tree.keys() - wanted}")

    def check_files(self, head: str, files: dict[str, str]) -> None:
        for path, sha in files.items():
            if (found := self.reader.sha256(head, path)) != sha:
                raise Violation(f"{path} of {head}: SHA-256 {found}, expected {sha}")

    def check_every_file(self) -> None:
        """The user's files and those of all rounds; after one more push no workspace may be left."""
        self.measure("05_dpo", 1 + sum(" 05_dpo: " in result.message for result in self.results))
        head = self.reader.branches()["main"]
        for files in [self.users, *(result.files for result in self.results)]:
            self.check_files(head, files)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def choose(rng: random.Random, undisturbed: Undisturbed) -> Moment:
    """Half of the moments lie around the commit, which takes milliseconds of seconds."""
    what = rng.choices(
        ["time", "up", "down", "before", "sent", "answered"],
        [1.5, 2, 1.5 if undisturbed.down > MB else 0.5, 0.7, 3, 0.8],
    )[0]
    most = {"time": undisturbed.seconds, "up": undisturbed.up, "down": undisturbed.down, "sent": undisturbed.commit}
    return Moment(what, rng.uniform(0, most.get(what, 0)))


def play(world: World, rng: random.Random, counts: Counts, kind: str | None = None, stage: str | None = None) -> str:
    """One round, of the given kind and stage or any; returns what happened."""
    stage = stage or ("04_gen_preferences" if rng.random() < 0.2 else "05_dpo")
    earlier = sum(f" {stage}: " in result.message for result in world.results)
    iteration = 1000 + earlier if stage == "04_gen_preferences" else 1 + earlier
    told = []
    for _ in range(2 if rng.random() < 0.2 else 1):
        chosen = kind or rng.choice(KINDS)
        moment = choose(rng, world.undisturbed[stage])
        happened, code = world.disturbed(stage, iteration, chosen, moment, rng)
        world.check_pulled()
        landed = world.landed()
        counts.tries += 1
        counts.codes[code] += 1
        if happened:
            counts.kinds[chosen] += 1
            counts.moments[moment.what] += 1
            counts.landed[landed] += 1
        else:
            counts.missed += 1
        begun = f", {world.partly_pulled() / MB:.1f} MB begun" if world.partly_pulled() else ""
        told.append(f"{chosen if happened else 'nothing'} at {moment}: {code}{', landed' if landed else ''}{begun}")
        if code == 0:
            break
    for _ in range(TRIES):
        world.start(stage, iteration, 20)
        code = world.wait(120)
        counts.tries += 1
        counts.codes[code] += 1
        if code not in (0, 75):
            raise Violation(f"{'; '.join(told)}; the re-run ended with {code}:\n{world.output}")
        if code == 0:
            break
        told.append(f"75 in peace: {world.output[-300:]}")
    try:
        if code:
            raise Violation(f"not done after {TRIES} undisturbed tries:\n{world.output}")
        world.check(stage, iteration)
        world.check_files(world.reader.branches()["main"], rng.choice(world.results).files)
    except Violation as violation:
        raise Violation(
            f"{stage} of iteration {iteration}; {'; '.join(told)}: {violation}\n{world.output}"
        ) from violation
    return f"{stage} {iteration}: {'; '.join(told)}"


@contextlib.contextmanager
def world_of(folder: Path, server: servers.Program) -> Iterator[World]:
    """A new repository, with both stages measured."""
    folder.mkdir()
    world = World(folder, server)
    try:
        world.measure("05_dpo", 1)  # reads a user's checkpoint, which it must hash first
        world.measure("05_dpo", 2)
        world.measure("04_gen_preferences", 1000)
        yield world
    finally:
        if world.process:
            world.process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGCONT)
        world.relay.close()


def summary(counts: Counts, rounds: int, seconds: float) -> str:
    kinds = ", ".join(f"{kind} {counts.kinds[kind]}" for kind in KINDS)
    moments = ", ".join(f"{what} {n}" for what, n in counts.moments.most_common())
    codes = ", ".join(f"{code}: {n}" for code, n in sorted(counts.codes.items()))
    return (
        f"{rounds} rounds in {seconds:.0f} s; disturbed {counts.kinds.total()} times ({kinds}; {counts.missed} missed "
        f"their moment); at {moments}; commit there already: {counts.landed[True]}, not yet: {counts.landed[False]}; "
        f"{counts.tries} tries (exit codes {codes}); lost 0, doubled 0, left over 0 "
        f"({counts.kept} workspaces of a killed server until the next push)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="default 200")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when (default 0)")
    parser.add_argument("--kind", choices=KINDS, help="only this")
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    arguments = parser.parse_args()
    if problem := servers.missing("real"):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="remote-kills-", dir=arguments.folder))
    rng, counts, begun, number = random.Random(arguments.seed), Counts(), time.monotonic(), 0
    tell = lambda text: print(f"{time.monotonic() - begun:6.0f} s  {text}", flush=True)  # noqa: E731
    try:
        with servers.real_server(folder / "server") as server:
            while number < arguments.rounds:
                with world_of(folder / f"from-{number + 1}", server) as world:
                    for stage, found in world.undisturbed.items():
                        tell(f"undisturbed {stage}: {found}")
                    for number in range(number + 1, min(number + ROUNDS, arguments.rounds) + 1):  # noqa: B020
                        tell(f"{number:3}  {play(world, rng, counts, arguments.kind)}")
                    world.check_every_file()
                    counts.kept += world.ever_kept
    except Violation as violation:
        print(f"\nFAILED in round {number} of seed {arguments.seed}: {violation}\neverything is still in {folder}")
        return 1
    print(f"\n{summary(counts, arguments.rounds, time.monotonic() - begun)}")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The short form of `make test-remote-kills`, what an interrupted transfer sends again, a server that is stopped."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from self_reward.errors import TryAgain
from self_reward.store import open_store
from tests.hard import remote_kills
from tests.hard.remote_kills import KINDS, MB, Counts, Moment, Reader, Relay, Violation
from tests.support import servers

pytestmark = pytest.mark.skipif("real" not in servers.here(), reason="OXEN_SERVER names no oxen-server 0.65.1")

PULL = "store.pull(store.resolve(), ['M0/models'], Path(sys.argv[2]))"
PUSH = "store.push({'M0/models': Path(sys.argv[2])}, key='ab12', message='x', expected_head=store.resolve().head)"
PROGRAM = """
import sys
from pathlib import Path
from self_reward.store import open_store
store = open_store(sys.argv[1], branch="main", lock_timeout=5, store_timeout=30, cache_dir=sys.argv[3])
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with servers.real_server(tmp_path_factory.mktemp("server")) as server:
        yield server


def test_a_stage_that_is_disturbed_in_each_way_loses_doubles_and_leaves_nothing(server, tmp_path):
    rng, counts = random.Random(0), Counts()
    with remote_kills.world_of(tmp_path / "world", server) as world:
        for kind in KINDS:
            print(remote_kills.play(world, rng, counts, kind, stage="05_dpo"))
        print(remote_kills.play(world, rng, counts, "kill", stage="04_gen_preferences"))
        assert counts.kinds.total() >= 3, "hardly anything happened"
        world.check_every_file()
        see_what_is_planted(world)


def see_what_is_planted(world):
    """The checks find what they are there for."""
    head = world.reader.branches()["main"]
    planted = [
        ("PUT", "/workspaces", {"workspace_id": "w", "branch_name": "main"}, "/workspaces/w", "workspaces left"),
        ("POST", "/branches", {"new_name": "b", "commit_id": head}, "/branches/b", "branches besides main: .'b'"),
    ]
    for method, path, body, made, words in planted:
        ask(world, method, path, body)
        with pytest.raises(Violation, match=words):
            world.check_all(world.reader.files(head), head)
        ask(world, "DELETE", made)
    world.check_all(world.reader.files(head), head)
    result = world.results[-1]
    path = next(iter(result.files))
    with pytest.raises(Violation, match="SHA-256"):
        world.check_files(head, {path: "0"})
    for results, words in ((world.results[:-1], "the log is"), ([*world.results, result], "the log is")):
        world.results = results
        with pytest.raises(Violation, match=words):
            world.check_all(world.reader.files(head), head)
    part = world.cache / "work/1/2/inputs" / path
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    with pytest.raises(Violation, match="has not the content"):
        world.check_pulled()


def ask(world, method, path, body=None):
    answer = world.reader.pool.request(method, world.reader.url + path, json=body)
    assert answer.status < 300, answer.data


class Interrupted:
    """A repository behind a relay, and a program that is killed when so many bytes have gone by."""

    def __init__(self, server, folder, name):
        self.relay, self.folder, self.name = Relay(server.port), folder, name
        self.address = f"oxen+http://127.0.0.1:{self.relay.port}/test/{name}"
        self.reader = Reader(f"{server.url}/api/repos/test/{name}")
        self.store = self.store_of()
        self.store.create()
        (folder / "user.txt").write_text("user")
        self.store.put({"M0/train/ift.jsonl": folder / "user.txt"}, message="user data")

    def store_of(self, timeout=30.0):
        return open_store(
            self.address, branch="main", lock_timeout=5, store_timeout=timeout, cache_dir=self.folder / "cache"
        )

    def run(self, program, where, moment=None):
        """The program's exit code; the relay has counted its bytes."""
        command = [sys.executable, "-c", PROGRAM + program, self.address, str(where), str(self.folder / "cache")]
        environment = {**os.environ, "PYTHONPATH": str(remote_kills.ROOT)}
        self.relay.expect(moment, None)
        process = subprocess.Popen(command, env=environment)
        self.relay.expect(moment, process.kill)
        return process.wait(60)


@pytest.fixture
def interrupted(server, tmp_path, request):
    made = Interrupted(server, tmp_path, f"r{abs(hash(request.node.name))}")
    yield made
    made.relay.close()


def write(folder, sizes):
    folder.mkdir()
    for number, size in enumerate(sizes):
        (folder / f"{number}.bin").write_bytes(os.urandom(size))
    return folder


def test_killed_push_resumes_at_the_first_file_that_the_server_lacks(interrupted, tmp_path):
    source = write(tmp_path / "source", [6 * MB] * 5)
    assert interrupted.run(PUSH, source, Moment("up", 20 * MB)) == -signal.SIGKILL
    assert len(interrupted.reader.log()) == 2 and interrupted.relay.up >= 20 * MB
    assert interrupted.run(PUSH, source) == 0
    assert interrupted.relay.up < 13 * MB  # two of the five files
    assert interrupted.run(PULL, tmp_path / "to") == 0
    for path in source.iterdir():
        assert (tmp_path / "to/M0/models" / path.name).read_bytes() == path.read_bytes()
    assert len(interrupted.reader.log()) == 3 and interrupted.reader.workspaces() == []


def test_killed_pull_resumes_from_the_bytes_it_has(interrupted, tmp_path):
    source = write(tmp_path / "source", [90 * MB])
    assert interrupted.run(PUSH, source) == 0
    assert interrupted.run(PULL, tmp_path / "to", Moment("down", 65 * MB)) == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "to/M0/models").glob("*.bin")] == []
    (part,) = (tmp_path / "to/M0/models").iterdir()
    begun = part.stat().st_size
    assert begun > 10 * MB  # at most five pieces of 8 MB were in memory
    assert interrupted.run(PULL, tmp_path / "to") == 0
    assert interrupted.relay.down < 90 * MB - begun + MB
    assert (tmp_path / "to/M0/models/0.bin").read_bytes() == (source / "0.bin").read_bytes()
    assert not part.exists()


def test_server_stopped_in_the_middle_of_an_upload_is_reported_after_store_timeout(interrupted, server, tmp_path):
    source = write(tmp_path / "source", [30 * MB])
    store, head = interrupted.store_of(5), interrupted.store.resolve().head
    interrupted.relay.expect(Moment("up", 12 * MB), lambda: os.kill(server.pid, signal.SIGSTOP))
    begun = time.monotonic()
    try:
        with pytest.raises(TryAgain, match="store_timeout = 5 s"):
            store.push({"M0/models": source}, key="ab12", message="x", expected_head=head)
        assert interrupted.relay.up >= 12 * MB
        assert 4 < time.monotonic() - begun < 40
    finally:
        os.kill(server.pid, signal.SIGCONT)
    interrupted.relay.calm()
    interrupted.store.push({"M0/models": source}, key="ab12", message="x", expected_head=head)
    assert len(interrupted.reader.log()) == 3 and interrupted.reader.workspaces() == []

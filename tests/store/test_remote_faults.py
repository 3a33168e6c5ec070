"""What goes wrong with a server: the right error, in time, exactly one commit, nothing left lying about.

The server is the double that fails on command (fake_oxen.py); where a real one is needed it says so.
"""

import contextlib
import ipaddress
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from self_reward.disk import is_full
from self_reward.errors import TryAgain, UserError
from self_reward.store.content import blob_of, hash_file
from self_reward.store.errors import Auth, Conflict, Corrupt, Network, NotFound, ServerError
from self_reward.store.remote import pushing, workspaces
from self_reward.store.remote.server import Server
from tests.support import fake_oxen, servers
from tests.support.fake_oxen import FakeOxen
from tests.support.place import MANIFEST, PROMPTS, SEEDS, Place
from tests.support.running import Running, running

ROOT = Path(__file__).parents[2]
SHORT = 1.5  # seconds of store_timeout
LATE = 20.0  # that an error may come after it, on a busy machine; what it guards against is far later or never ends
LONG = 100.0  # of which trying again takes 70 at least: no pause is above 30


needs_real = pytest.mark.skipif("real" not in servers.here(), reason="no real server is here")


@pytest.fixture
def repo(tmp_path, no_token):
    """A repository with seeds and pushed prompts on a separate double."""
    with running("fake", tmp_path) as server:
        place = Place(server, "faults", tmp_path)
        place.talk.create()
        place.put()
        place.push({PROMPTS: b"prompt\n" * 1000}, key="01")
        place.fake.requests.clear()
        yield place


def resolve(repo, **changed):
    return repo.store(cache="cold", **changed).resolve()


def pull(repo, **changed):
    snapshot = repo.store().resolve()
    repo.fake.requests.clear()
    store = repo.store(**changed)
    return store.pull(snapshot, ["M0"], repo.folder / "in")


def push(repo, **changed):
    return repo.push({PROMPTS: b"new prompt\n" * 1000}, key="02", expected=head(repo), store=repo.store(**changed))


def head(repo):
    return repo.fake.repositories["ns/faults"].branches["main"]


def ours(repo, key="02"):
    """How many commits have this key."""
    return sum(f"key: {key}" in one["message"] for one in repo.log())


@contextlib.contextmanager
def in_time(seconds=SHORT + LATE):
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def wait_until(done, seconds=30.0):
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.01)


REQUESTS = {
    resolve: [("GET", "/branches/main$"), ("GET", "/history/"), ("GET", "/dir/"), ("GET", "/file/.*manifest.json")],
    pull: [("GET", f"/file/.*{PROMPTS}"), ("GET", f"/file/.*{SEEDS}")],
    push: [
        ("GET", "/branches/main$"),
        ("GET", "/dir/"),
        ("GET", "/workspaces$"),
        ("PUT", "/workspaces$"),
        ("POST", "/uploads$"),
        ("PUT", "/parts/1$"),
        ("POST", "/merge/main$"),
    ],
}


@pytest.mark.parametrize("how", ["429", "500", "502", "503", "cut"])
@pytest.mark.parametrize("operation", REQUESTS, ids=lambda one: one.__name__)
def test_what_passes_is_tried_again(repo, operation, how, caplog):
    """oxenai sends a GET a second time and a PUT never. Here every request fails once, and one of them twice."""
    caplog.set_level(logging.INFO)
    if how == "429" and operation is push:  # each waits for the second that the server asks for
        faults = [repo.fake.fail("PUT", "/parts/1$", how), repo.fake.fail("POST", "/merge/main$", how, times=2)]
    else:
        faults = [repo.fake.fail(*request, how, times=1 + (request[1] == "/dir/")) for request in REQUESTS[operation]]
    operation(repo)
    assert [fault.hits for fault in faults] == [fault.times for fault in faults]
    assert caplog.text.count("trying again in") >= len(faults)
    assert ours(repo) == (operation is push) and repo.workspaces() == []


@pytest.mark.parametrize(
    ("operation", "request_", "how", "kind", "said"),
    [
        (resolve, ("GET", "/branches/main$"), "hang", Network, "store_timeout"),
        (resolve, ("GET", "/dir/"), "slow", Network, "store_timeout"),
        (resolve, ("GET", "/dir/"), "500", ServerError, "told to answer 500"),
        (resolve, ("GET", "/branches/main$"), "502", ServerError, "502"),
        (resolve, ("GET", "/history/"), "garbage", ServerError, "Is this the address of an Oxen server"),
        (pull, ("GET", f"/(file|chunk)/.*{PROMPTS}"), "hang", Network, "store_timeout"),
        (pull, ("GET", f"/(file|chunk)/.*{PROMPTS}"), "slow", Network, "store_timeout"),
        (pull, ("GET", f"/(file|chunk)/.*{SEEDS}"), "429", ServerError, "told to answer 429"),
        (push, ("PUT", "/parts/1$"), "hang_midway", Network, "store_timeout"),
        (push, ("PUT", "/parts/1$"), "cut", Network, "broke"),
        (push, ("POST", "/uploads$"), "429", ServerError, "told to answer 429"),
        (push, ("POST", "/merge/main$"), "hang", Network, "store_timeout"),
        (push, ("POST", "/merge/main$"), "502", ServerError, "502"),
    ],
)
def test_what_does_not_pass_is_an_error_within_store_timeout(repo, operation, request_, how, kind, said):
    """oxenai has no time limit at all: a hung server blocks it for ever."""
    before = head(repo)
    repo.fake.fail(*request_, how, times=None)
    with in_time(), pytest.raises(TryAgain, match=said) as raised:
        operation(repo, timeout=SHORT)
    assert type(raised.value) is kind and repo.server.url.removeprefix("http://") in str(raised.value)
    assert head(repo) == before
    assert not (repo.folder / "in" / PROMPTS).exists() or PROMPTS not in request_[1]
    repo.fake.release()
    if operation is push:
        commit = push(repo)
        assert (head(repo), ours(repo), repo.workspaces()) == (commit, 1, [])
    if operation is pull:
        pull(repo)
        assert (repo.folder / "in" / PROMPTS).read_bytes() == b"prompt\n" * 1000


@pytest.mark.parametrize("status", ["401", "403"])
@pytest.mark.parametrize("operation", REQUESTS, ids=lambda one: one.__name__)
def test_a_refusal_is_told_at_once_and_not_tried_again(repo, operation, status):
    before = head(repo)
    fault = repo.fake.fail(*REQUESTS[operation][-1], status, times=None)
    with in_time(20), pytest.raises(Auth, match="OXEN_TOKEN"):
        operation(repo, timeout=LONG)
    assert fault.hits == 1 and head(repo) == before
    repo.fake.release()
    operation(repo)
    assert repo.workspaces() == []


def test_a_redirect_is_told_and_not_followed(repo):
    """The token would go to another host."""
    fault = repo.fake.fail("GET", "", "301", times=None)
    with in_time(20), pytest.raises(UserError, match="https://elsewhere.invalid/"):
        repo.store(timeout=LONG).resolve()
    assert fault.hits == 1


def test_a_server_that_is_down(repo):
    repo.fake.kill()
    with in_time(), pytest.raises(Network, match=r"(refused.*|did not answer within )store_timeout"):
        repo.store(timeout=SHORT).resolve()
    threading.Timer(1, repo.fake.start).start()
    assert repo.store().resolve().head == head(repo)  # came back in time


def test_a_host_that_does_not_exist(repo):
    repo.address = "oxen://no-such-host.invalid/ns/name"
    with in_time(), pytest.raises(Network, match="no-such-host.invalid"):
        repo.store(timeout=SHORT).resolve()


def test_a_host_that_takes_no_connection(repo):
    """As behind a firewall that drops what comes: the queue of this socket is full."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        repo.address = f"oxen+http://127.0.0.1:{full.getsockname()[1]}/ns/name"
        with in_time(), pytest.raises(Network, match="store_timeout"):
            repo.store(timeout=SHORT).resolve()


def test_the_pause_that_a_busy_server_asks_for_is_kept(repo):
    repo.fake.fail("GET", "/branches/main$", "429")
    started = time.monotonic()
    repo.store().resolve()
    assert time.monotonic() - started > 0.99


def certificate(folder: Path) -> Path:
    """A file with a new certificate for 127.0.0.1, signed by itself, and its key."""
    now, key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "both.pem").write_bytes(made.public_bytes(pem[0]) + key.private_bytes(*pem))
    return folder / "both.pem"


def test_https_with_a_certificate_that_is_trusted_and_with_one_that_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("OXEN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("OXEN_TOKEN", "secret")
    own = certificate(tmp_path)
    with FakeOxen(token="secret", certificate=own) as fake:
        place = Place(Running(fake.url, fake, "secret"), "tls", tmp_path)
        assert place.address.startswith("oxen://127.0.0.1:")
        with in_time(20), pytest.raises(UserError, match="certificate"):
            place.store(timeout=LONG).create()
        assert fake.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(own))
        place.store().create()
        place.put()
        place.push({PROMPTS: b"p\n"})
        assert (place.pull([PROMPTS]) / PROMPTS).read_bytes() == b"p\n"
    place.address = place.address.replace("oxen:", "oxen+http:")
    with FakeOxen(token="secret", certificate=own, port=fake.port), in_time(), pytest.raises((UserError, Network)):
        place.store(timeout=SHORT).resolve()


def test_a_branch_is_not_taken_for_missing_when_the_server_fails(repo):
    """oxenai's get_branch says the same for "not found" and for "network down"."""
    repo.fake.fail("GET", "/branches/other$", "500", times=None)
    with pytest.raises(ServerError):
        repo.store("other", timeout=SHORT).resolve()
    assert repo.fake.seen("POST", "") == []
    repo.fake.release()
    repo.fake.fail("GET", "/api/repos/ns/faults$", "502", times=None)
    repo.name = "faults"
    repo.fake.fail("GET", "/branches/other$", "404")
    with pytest.raises(ServerError):  # and not "the repository does not exist"
        repo.store("other", timeout=SHORT).resolve()


@pytest.mark.parametrize("how", ["lost", "done 500", "done 502", "garbage"])
def test_a_commit_that_landed_though_its_answer_did_not_say_so_is_made_once(repo, how):
    """oxenai sends the commit again after a 502, and a failing hook of the server raises though the commit landed."""
    fault = repo.fake.fail("POST", "/merge/", how, times=None)
    commit = push(repo)
    assert fault.hits == 1 and head(repo) == commit and ours(repo) == 1 and repo.workspaces() == []


def test_a_commit_that_landed_while_the_server_went_away_is_found_by_the_next_push(repo):
    before = head(repo)
    repo.fake.fail("POST", "/merge/", "lost")
    repo.fake.fail("GET", "/branches/main$", "503", after=1, times=None)  # the look at the head fails, too
    with in_time(25), pytest.raises(TryAgain):
        push(repo, timeout=5)
    repo.fake.release()
    repo.fake.requests.clear()
    landed = head(repo)
    assert landed != before and ours(repo) == 1
    files = {PROMPTS: b"new prompt\n" * 1000}
    assert repo.push(files, key="02", expected=before) == landed
    assert repo.fake.seen("POST|PUT", "") == [] and ours(repo) == 1 and repo.workspaces() == []


def test_a_conflict_that_nobody_caused_is_told(repo):
    repo.fake.fail("POST", "/merge/", "409", times=None)
    before = head(repo)
    with in_time(20), pytest.raises(Conflict):
        push(repo, timeout=LONG)
    assert head(repo) == before and repo.workspaces() == []


def test_another_writer_between_the_last_look_and_the_commit_does_not_mix(repo):
    """The window that a look at the head cannot close; the server compares the fence."""
    other = Place(repo.server, "faults", repo.folder / "other")
    done = []
    repo.fake.fail("POST", "/merge/", lambda: done or done.append(other.push({PROMPTS: b"theirs\n"}, key="03")))
    with pytest.raises(Conflict, match="M0 test"):
        push(repo)
    assert head(repo) == done[0] and ours(repo) == 0 and ours(repo, "03") == 1 and repo.workspaces() == []


def test_writers_do_not_mix_on_a_server_that_leaves_out_files_of_the_old_size(repo):
    """Seen with oxen-server 0.65.1: when its first writers come at once, its look at how exact the times of its disk
    are may fail, and from then on it takes new content of the old size for the old content, within two seconds."""
    repo.fake.repositories["ns/faults"].is_coarse = True
    other = Place(repo.server, "faults", repo.folder / "other")
    done = []
    repo.fake.fail("POST", "/merge/", lambda: done or done.append(other.push({PROMPTS: b"theirs\n"}, key="03")))
    with pytest.raises(Conflict, match="M0 test"):
        repo.push({"M0/generated/others.jsonl": b"ours\n"}, key="0002", expected=head(repo))
    assert head(repo) == done[0] and ours(repo, "0002") == 0
    before = head(repo)
    with pytest.raises(ServerError, match=f"{PROMPTS}.*Nothing was committed. Restart the server"):
        repo.push({PROMPTS: b"other!\n"}, key="04")
    assert head(repo) == before and repo.workspaces() == []


def test_of_two_processes_with_the_very_same_stage_one_commits_and_both_know_it(repo):
    """A pod that was taken for dead, say. Its manifest has other times in it, so its files differ."""
    other, before = Place(repo.server, "faults", repo.folder / "other"), head(repo)
    done = []
    theirs = {PROMPTS: b"the same stage, sampled elsewhere\n"}
    repo.fake.fail(
        "POST", "/merge/", lambda: done or done.append(other.push(theirs, key="02", expected=before, message="M0 test"))
    )
    assert push(repo) == done[0] == head(repo)
    assert ours(repo) == 1 and repo.workspaces() == []


def test_a_server_that_has_lost_what_was_staged_because_the_branch_moved(repo):
    """The writer that was faster removes workspaces that come late; who commits one then gets 422 NoChanges, say."""
    other, workspaces = (
        Place(repo.server, "faults", repo.folder / "other"),
        repo.fake.repositories["ns/faults"].workspaces,
    )
    done = []

    def move_and_lose():
        if not done:
            done.append(other.push({PROMPTS: b"theirs\n"}, key="03"))
            for workspace in workspaces.values():
                workspace.staged.clear()

    repo.fake.fail("POST", "/merge/", move_and_lose)
    with pytest.raises(Conflict, match="moved"):
        push(repo)
    assert head(repo) == done[0] and ours(repo) == 0


def test_another_program_between_the_last_look_and_the_commit_is_named(repo):
    """One that knows nothing of the fence, and touches other files: nothing of either is lost, and it is said."""
    done = []
    repo.fake.fail("POST", "/merge/", lambda: done.append(repo.talk.push({"notes.txt": b"x"}, message="by hand")))
    with pytest.raises(Conflict, match=r"by hand.*whole") as raised:
        push(repo)
    assert done[0] in str(raised.value) and head(repo) in str(raised.value)
    assert ours(repo) == 1 and {"notes.txt", PROMPTS} <= set(repo.store().resolve().files)


def test_a_push_that_fails_midway_commits_nothing_and_the_next_removes_what_it_left(repo):
    """OxenFS commits half-written files when its block raises."""
    before = head(repo)
    repo.fake.fail("PUT", "/parts/1$", "500", after=1, times=None)
    repo.fake.fail("DELETE", "/workspaces/", "500", times=None)
    with pytest.raises(ServerError):
        push(repo, timeout=SHORT)
    repo.fake.release()
    repo.talk.workspace("somebodys")
    assert head(repo) == before and len(repo.workspaces()) == 2
    push(repo)
    assert [one["id"] for one in repo.workspaces()] == ["somebodys"] and ours(repo) == 1


@pytest.mark.parametrize("how", ["half", "lost", "hang"])
def test_a_workspace_that_a_killed_server_had_begun_is_not_asked_for_again(repo, how):
    """oxen-server 0.65.1 says of one that is half made that it exists, and neither gives nor removes it."""
    repo.fake.fail("PUT", "/workspaces$", how)
    threading.Timer(1, repo.fake.release).start()
    push(repo, timeout=10)
    assert ours(repo) == 1 and repo.workspaces() == []


def test_a_workspace_that_another_process_still_fills_is_not_removed(repo):
    """oxen-server 0.65.1 can lose staged files, and still commit the others, where its workspace is removed meanwhile.
    Here the other one, of the same stage, begins and commits while this one uploads."""
    other, before, there = Place(repo.server, "faults", repo.folder / "other"), head(repo), []
    theirs = {PROMPTS: b"the same stage, sampled elsewhere\n"}
    repo.fake.fail("POST", "/merge/", lambda: there.append(len(repo.workspaces())))
    done = []
    repo.fake.fail(
        "PUT", "/parts/1$", lambda: done or done.append(1) or done.append(other.push(theirs, key="02", expected=before))
    )
    assert push(repo) == done[1] == head(repo)
    assert there == [2] and ours(repo) == 1 and repo.workspaces() == []


def test_a_workspace_that_another_process_began_from_our_commit_is_not_removed(repo):
    """Its push is the next stage's, say, while this one still tidies up."""
    name = f"{workspaces.prefix('main')}03-0"
    repo.fake.fail("GET", "/workspaces$", lambda: repo.talk.workspace(name))
    push(repo)
    assert [one["id"] for one in repo.workspaces()] == [name]
    repo.push({PROMPTS: b"third"}, key="04")
    assert repo.workspaces() == []


def test_a_half_made_commit_of_another_process_just_before_ours_is_not_taken(repo):
    before, half = head(repo), []
    listed = {"M0/generated/lost.jsonl": {"sha256": "0" * 64, "size": 5, "xxh3": "ab"}}
    files = {MANIFEST: json.dumps({"key": "02", "outputs": listed}).encode()}
    repo.fake.fail("POST", "/merge/", lambda: half or half.append(1) or half.append(commit_half()))

    def commit_half():
        return repo.talk.push(files, message="M0 test\n\nkey: 02")

    commit = push(repo)
    assert [one["id"] for one in repo.log()][:3] == [commit, half[1], before] and repo.workspaces() == []
    assert (pull(repo) and (repo.folder / "in" / PROMPTS).read_bytes()) == b"new prompt\n" * 1000


def test_a_branch_that_is_removed_just_before_the_commit_is_not_made_again(repo):
    store, branches = repo.store("shards/02/0-of-2", timeout=LONG), repo.fake.repositories["ns/faults"].branches
    before = store.resolve().commit
    repo.fake.fail("POST", "/merge/", lambda: branches.pop(store.branch, None), times=None)
    with in_time(20), pytest.raises(NotFound, match="shards/02/0-of-2 .*was removed meanwhile; it is not made again"):
        repo.push({PROMPTS: b"shard\n"}, key="02", store=store, expected=before)
    assert list(branches) == ["main"] and repo.workspaces() == []


def test_a_last_try_that_comes_too_late_does_not_hide_what_the_server_said(repo, monkeypatch):
    """A pause may end after the operation's time."""
    monkeypatch.setattr(Server, "_pause", lambda self, _: time.sleep(max(0, self.deadline - time.monotonic())))
    repo.fake.fail("GET", "/dir/", "500", times=None)
    with pytest.raises(ServerError, match="told to answer 500.*store_timeout"):
        resolve(repo, timeout=SHORT)


def test_a_connection_that_is_made_when_the_operation_is_over_is_not_used(repo, monkeypatch):
    """A handshake may take long; then nobody would end the wait for an answer."""
    connect = urllib3.connection.HTTPConnection.connect
    slow = threading.Event()

    def late(self):
        connect(self)
        if not slow.is_set():
            slow.set()
            time.sleep(1)

    monkeypatch.setattr(urllib3.connection.HTTPConnection, "connect", late)
    repo.fake.fail("GET", "/branches/main$", "hang", times=None)
    with contextlib.closing(Server(repo.store().address, None, seconds=60)) as server:
        threading.Timer(0.5, server.stop).start()
        with in_time(20), pytest.raises(Network):
            server.ask("GET", "/branches/main")


@pytest.mark.parametrize("how", ["503", "hang"])
@pytest.mark.parametrize("operation", [push, pull], ids=lambda one: one.__name__)
def test_a_refusal_of_one_request_ends_the_ones_beside_it(repo, monkeypatch, operation, how):
    """Else the others, in threads of their own, are tried until store_timeout is over."""
    monkeypatch.setattr(fake_oxen, "PART_SIZE", 1000)
    repo.put(**{f"M0/eval/{i}": str(i) for i in range(6)})
    method, where = ("PUT", "/parts/{}$") if operation is push else ("GET", "/file/.*/M0/eval/{}$")
    beside = repo.fake.fail(method, where.format(2), how, times=None)
    repo.fake.fail(method, where.format(4), "403", times=None)
    plain = repo.fake.fault

    def after_the_one_beside(method, path):
        how = plain(method, path)
        if how == "403":  # the one beside it was begun earlier, but its thread may have to wait for a core
            wait_until(lambda: beside.hits)
        return how

    monkeypatch.setattr(repo.fake, "fault", after_the_one_beside)
    with in_time(50), pytest.raises(Auth, match="OXEN_TOKEN"):  # tried to its end it takes 70 s: no pause is above 30
        operation(repo, timeout=100)
    assert beside.hits


PULL = """
import sys
from pathlib import Path
from self_reward.store import open_store
address, folder = sys.argv[1:]
store = open_store(address, branch="main", lock_timeout=1, store_timeout=60, cache_dir=Path(folder, "cache"))
store.pull(store.resolve(), ["M0"], Path(folder, "in"))
"""


@pytest.mark.parametrize("how", ["hang", "503", "slow"])
def test_ctrl_c_ends_a_pull_at_once(repo, how):
    """The threads that wait for the server end too, and leave nothing under the files' names."""
    fault = repo.fake.fail("GET", f"/(file|chunk)/.*{PROMPTS}", how, times=None)
    process = subprocess.Popen(
        [sys.executable, "-c", PULL, repo.address, str(repo.folder)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it is ignored by what a shell began with &
    )
    while not fault.hits and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.1)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert time.monotonic() - started < 20 and process.returncode == -signal.SIGINT and "KeyboardInterrupt" in told
    assert not (repo.folder / "in" / PROMPTS).exists()


def test_an_upload_that_the_server_has_forgotten_is_begun_again(repo):
    """A server that was restarted, or that dropped an idle upload, answers 404 to its parts."""
    repo.fake.fail("PUT", "/parts/1$", "404")
    push(repo)
    assert ours(repo) == 1
    repo.pull([PROMPTS])


def test_a_workspace_that_a_killed_server_has_committed_and_kept_is_removed(repo):
    store, kept = repo.fake.repositories["ns/faults"], {}
    repo.fake.fail("POST", "/versions/uploads$", lambda: kept.update(store.workspaces), times=None)
    repo.fake.fail("POST", "/merge/", "lost")
    repo.fake.fail("GET", "/branches/main$", lambda: store.workspaces.update(kept), times=None)
    push(repo)
    assert len(kept) == 1 and ours(repo) == 1 and repo.workspaces() == []
    store.workspaces.update(kept)  # nobody was there to remove it
    repo.fake.release()
    repo.push({PROMPTS: b"third"}, key="03")
    assert repo.workspaces() == []


def test_a_workspace_for_another_branch_is_left_alone(repo):
    repo.talk.workspace("self-reward-00000000-02-1")
    push(repo)
    repo.push({PROMPTS: b"third"}, key="03")
    assert [one["id"] for one in repo.workspaces()] == ["self-reward-00000000-02-1"]


def test_a_workspace_that_is_gone_is_told(repo):
    store = repo.fake.repositories["ns/faults"]
    repo.fake.fail("POST", "/merge/", store.workspaces.clear)
    with pytest.raises(TryAgain, match="gone"):
        push(repo)
    assert ours(repo) == 0
    push(repo)
    assert ours(repo) == 1


def test_a_download_that_breaks_goes_on_where_it_broke(repo):
    content = os.urandom(3_000_000)
    repo.push({"M0/generated/big.bin": content}, key="02")
    repo.fake.fail("GET", "/file/.*big.bin", "cut")
    repo.fake.fail("GET", "/chunk/.*big.bin", "cut", times=2)
    repo.fake.requests.clear()
    assert (repo.pull(["M0/generated/big.bin"]) / "M0/generated/big.bin").read_bytes() == content
    assert len(repo.fake.seen("GET", "/file/.*big.bin")) == 1 and len(repo.fake.seen("GET", "/chunk/")) == 3


def test_a_wrong_byte_is_told_with_both_hashes_and_nothing_is_put_in_place(repo):
    repo.fake.fail("GET", f"/(file|chunk)/.*{PROMPTS}", "garbage", times=None)
    with pytest.raises(Corrupt, match=PROMPTS) as raised:
        pull(repo)
    wrong = repo.folder / "wrong"
    wrong.write_bytes(b"qrompt\n" + b"prompt\n" * 999)
    assert blob_of(wrong) in str(raised.value)
    assert repo.store().resolve().blobs[PROMPTS] in str(raised.value)
    assert not (repo.folder / "in" / PROMPTS).exists()
    repo.fake.release()
    pull(repo)
    assert (repo.folder / "in" / PROMPTS).read_bytes() == b"prompt\n" * 1000


def test_a_wrong_byte_on_the_way_here_is_asked_for_once_more(repo):
    fault = repo.fake.fail("GET", f"/file/.*{PROMPTS}", "garbage")
    pull(repo)
    assert fault.hits == 1 and len(repo.fake.seen("GET", f"/file/.*{PROMPTS}")) == 2
    assert [path.name for path in (repo.folder / "in" / PROMPTS).parent.iterdir()] == ["prompts.jsonl"]
    assert (repo.folder / "in" / PROMPTS).read_bytes() == b"prompt\n" * 1000


@pytest.mark.parametrize("wrong", [b"qrompt\n" + b"prompt\n" * 999, b"short", b""])
def test_content_that_is_damaged_on_the_server_is_not_put_in_place(repo, wrong):
    stored = repo.fake.repositories["ns/faults"].contents
    blob = repo.store().resolve().blobs[PROMPTS]
    whole, stored[blob] = stored[blob], wrong
    kind = Corrupt if len(wrong) == len(whole) else TryAgain
    snapshot = repo.store().resolve()
    if kind is TryAgain:  # the server's listing would have the damaged one's size
        snapshot.files[PROMPTS] = len(whole)
    with in_time(), pytest.raises(kind, match="prompts.jsonl|broke|end of file"):
        repo.store(timeout=SHORT).pull(snapshot, [PROMPTS], repo.folder / "in")
    assert not (repo.folder / "in" / PROMPTS).exists()
    if kind is Corrupt:
        assert list((repo.folder / "in" / PROMPTS).parent.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda kept: kept[: len(kept) // 2], lambda kept: b"\xff" * 64, lambda kept: b""])
def test_an_entry_of_the_cache_that_is_damaged_is_left_out(repo, damage):
    """A machine that lost its power has written half of it."""
    first = repo.store().resolve()
    right = first.sha256[SEEDS]
    entries = [path for path in (repo.folder / "cache/oxen").rglob("*") if path.is_file()]
    assert f"sha256-{first.blobs[SEEDS]}" in {entry.name for entry in entries} and len(entries) >= 2
    for entry in entries:
        entry.write_bytes(damage(entry.read_bytes()))
    again = repo.store().resolve()
    assert (
        again.contents == first.contents
        and again.sha256[SEEDS] == right == hash_file(repo.folder / "user" / SEEDS).sha256
    )
    repo.fake.requests.clear()
    assert repo.store().resolve().sha256[SEEDS] == right and repo.fake.seen("GET", "/file/") == []  # written anew


def test_data_put_into_an_empty_repository_in_the_moment_when_another_person_does(repo):
    other = Place(repo.server, "empty", repo.folder / "other")
    other.talk.create()
    repo.name, repo.address = other.name, other.address
    done = []
    repo.fake.fail(  # between our two looks at it
        "GET", "/ns/empty/branches$", lambda: done or done.append(1) or other.put(**{"M0/eval/a": "a"}), after=1
    )
    repo.put(**{"M0/eval/b": "b"})
    assert done and {"M0/eval/a", "M0/eval/b"} <= set(repo.store().resolve().files)


def test_of_two_people_who_put_with_the_same_message_the_slower_one_is_told(repo):
    other, done = Place(repo.server, "faults", repo.folder / "other"), []
    repo.fake.fail("POST", "/merge/", lambda: done or done.append(1) or done.append(other.put(**{"M0/eval/a": "a"})))
    with pytest.raises(Conflict, match="user data"):
        repo.put(**{"M0/eval/b": "b"})
    assert head(repo) == done[1] and "M0/eval/b" not in repo.store().resolve().files
    repo.put(**{"M0/eval/b": "b"})
    assert {"M0/eval/a", "M0/eval/b"} <= set(repo.store().resolve().files)


def test_a_wrong_byte_in_a_manifest_is_told(repo):
    repo.fake.fail("GET", f"/file/.*{MANIFEST}", "garbage", times=None)
    with pytest.raises(Corrupt, match=MANIFEST):
        resolve(repo)


def test_a_wrong_byte_on_the_way_there_is_refused_by_the_server(repo, monkeypatch):
    """The server compares what it gets with the hash that was announced."""
    before = head(repo)
    monkeypatch.setattr(
        pushing, "blob_of", lambda path: blob_of(path)[:-1] + "0" if path.name == "prompts.jsonl" else blob_of(path)
    )
    with pytest.raises(Exception, match="hash to"):
        push(repo, timeout=SHORT)
    assert head(repo) == before and repo.workspaces() == []


def test_a_full_disk_of_the_server_is_told_at_once(repo):
    before = head(repo)
    for request in (("PUT", "/workspaces$"), ("PUT", "/parts/1$"), ("POST", "/merge/main$")):
        fault = repo.fake.fail(*request, "disk_full", times=None)
        with in_time(20), pytest.raises(ServerError, match="disk of the server is full.*No space left"):
            push(repo, timeout=LONG)
        assert fault.hits == 1 and head(repo) == before
        repo.fake.release()
    push(repo)
    assert ours(repo) == 1 and repo.workspaces() == []


@needs_real
def test_a_full_disk_of_a_real_server(mount_namespace, tmp_path):
    """20 MB of disk, 25 MB to push: said, nothing half-committed, and the server goes on."""
    script = f"""
import os
from pathlib import Path
from tests.support import servers
from tests.support.place import PROMPTS, Place
from tests.support.running import Running
from self_reward.store.errors import ServerError
with servers.real_server(Path("{tmp_path}/disk")) as real:
    repo = Place(Running(real.url), "full", Path("{tmp_path}"))
    repo.store().create()
    repo.put()
    before = repo.store().resolve()
    try:
        repo.push({{PROMPTS: os.urandom(25_000_000)}}, key="02")
    except ServerError as error:
        print("told:", error)
    after = repo.store().resolve()
    assert (before.commit, before.files) == (after.commit, after.files)
    print("left:", [one["id"] for one in repo.workspaces() if one["id"].startswith("self-reward")])
"""
    command = f'mkdir "{tmp_path}/disk" && mount -t tmpfs -o size=20m tmpfs "{tmp_path}/disk" && exec "$0" -c "$1"'
    ended = subprocess.run(
        [*mount_namespace, "bash", "-c", command, sys.executable, script], capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    assert "told: " in ended.stdout and "disk of the server is full" in ended.stdout


def test_a_full_disk_of_this_machine_is_told_and_the_pull_goes_on_when_there_is_room(mount_namespace, repo):
    big = repo.push({"M0/generated/big.bin": os.urandom(3_000_000)}, key="02")
    script = f"""
import shutil, sys
from pathlib import Path
from self_reward.errors import TryAgain, UserError
from self_reward.store import open_store
store = open_store("{repo.address}", branch="main", lock_timeout=1, store_timeout=20, cache_dir="{repo.folder}/cache")
snapshot, to = store.resolve("{big}"), Path("{repo.folder}/disk")
try:
    store.pull(snapshot, ["M0"], to)
except TryAgain as error:
    print("told:", error)
print("whole:", (to / "M0/generated/big.bin").exists())
"""
    command = f'mkdir "{repo.folder}/disk" && mount -t tmpfs -o size=1m tmpfs "{repo.folder}/disk" && exec "$0" -c "$1"'
    ended = subprocess.run(
        [*mount_namespace, "bash", "-c", command, sys.executable, script], capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    assert "told: the disk is full" in ended.stdout and "3.0 MB are needed" in ended.stdout, ended.stdout
    assert "whole: False" in ended.stdout and is_full(TryAgain("No space left on device"))


@needs_real
def test_a_real_server_that_is_killed_and_restarted_in_the_middle_of_pushes(tmp_path):
    """Its parts of uploads are gone, its commits are not."""
    with servers.real_server(tmp_path / "real") as real:
        repo = Place(Running(real.url), "killed", tmp_path)
        repo.store().create()
        repo.put()
        for i, wait in enumerate((0.05, 0.15, 0.3)):
            content = os.urandom(40_000_000)
            killer = threading.Timer(wait, real.restart)
            killer.start()
            try:
                commit = repo.push({PROMPTS: content}, key=f"0{i}")
            finally:
                killer.join()
            assert repo.store().resolve().head == commit and ours(repo, f"0{i}") == 1 and repo.workspaces() == []
            assert (repo.pull([PROMPTS]) / PROMPTS).read_bytes() == content

"""The double of an Oxen server answers as the real one does, and fails as it is told."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import urllib3
import xxhash

from tests.support import servers
from tests.support.fake_oxen import FakeOxen
from tests.support.talk import Talk


def missing_repository(t):
    for path in ("", "/branches", "/branches/main", "/commits/history/main", "/workspaces", "/file/main/a"):
        t.ask("GET", path)
    t.ask("GET", "/dir/main/", depth=-1)
    t.workspace("w")
    t.create()
    t.create()
    t.ask("GET", "")
    t.ask("POST", "/repos", {"namespace": "n/s", "name": "ab"}, repository=False)


def empty_repository(t):
    t.create()
    for path in ("", "/branches", "/branches/main", "/commits/history/main", "/workspaces", "/file/main/a"):
        t.ask("GET", path)
    t.ask("GET", "/dir/main/", depth=-1)
    t.ask("POST", "/branches", {"new_name": "x", "commit_id": "0" * 32})
    t.workspace("w", "trunk")
    t.workspace("w", "trunk")
    t.workspace("v", "main")
    t.commit("w", branch="trunk")
    t.ask("GET", "/commits/history/trunk")
    t.ask("GET", "/dir/trunk/", depth=-1)
    t.ask("GET", "")


def uploads(t):
    t.create()
    t.workspace("w")
    t.stage("w", "M0/a.txt", b"hello")
    t.stage("w", "M0/same.txt", b"hello")
    wrong = t.stage("w", "M0/b.txt", b"hello2", hash="12" * 16)
    t.part(wrong, 1, b"hello2")
    short = t.stage("w", "M0/c.txt", b"hello3", size=7)
    t.part(short, 2, b"x")
    t.part(short, 1, b"too long for it")
    t.part({"upload_id": "nope"}, 1, b"x")
    t.stage("w", "M0/z", b"")
    t.stage("w", "../z", b"q")
    t.stage("w", "M0/z", b"q", hash="zz")
    t.stage("nope", "M0/z", b"q")
    t.stage("w", "M0/later", b"later")
    t.stage_empty("w", "M0/e", "empty.txt")
    t.stage_empty("w", "", "top.txt")
    t.stage_empty("nope", "M0/e", "empty.txt")
    t.commit("w", "ünïcode 🐂\n\nkey: ab12")
    t.commit("w")
    t.ask("GET", "/dir/main/", depth=-1)
    t.ask("GET", "/workspaces")


def hash_with_leading_zeros(t):
    content = next(text for i in range(10**6) if xxhash.xxh3_128(text := str(i).encode()).hexdigest()[:2] == "00")
    t.create()
    t.push({"padded": content})
    t.workspace("w")
    t.stage("w", "short", content, hash=xxhash.xxh3_128(content).hexdigest().lstrip("0"))
    t.commit("w")
    t.ask("GET", "/dir/main/", depth=-1)
    t.query(xxhash.xxh3_128(content).hexdigest().lstrip("0"))


def parts(t):
    content = random.Random(1).randbytes(25_000_000)
    t.create()
    t.workspace("w")
    wanted = {"hash": xxhash.xxh3_128(content).hexdigest(), "size": len(content)}
    wanted["destination"] = {"workspace_id": "w", "path": "M0/big.bin"}
    upload = t.ask("POST", "/versions/uploads", wanted)
    size = upload["part_size"]
    t.part(upload, 3, content[2 * size :])
    t.part(upload, 3, b"again, ignored")
    t.part(upload, 1, content[: size - 1])
    t.part(upload, 1, content[:size])
    t.part(upload, 4, b"x")
    t.part(upload, 2, content[size : 2 * size])
    t.part(upload, 2, content[size : 2 * size])
    t.ask("POST", "/versions/uploads", wanted)
    commit = t.commit("w")["commit"]["id"]
    for start, length in ((24_999_990, 10), (24_999_990, 11), (25_000_000, 1), (size - 1, 2)):
        t.ask("GET", f"/chunk/{commit}/M0/big.bin", chunk_start=start, chunk_size=length)
    t.ask("GET", "/chunk/main/M0/nope", chunk_start=0, chunk_size=1)


def conflicts(t):
    t.create()
    t.push({"M0/a": b"1", "M0/b": b"1", "M0/c": b"1"})
    for name in "stvwxyz":
        t.workspace(name)
    t.stage("s", "M0/a", b"2")
    t.remove("s", "M0/b")
    t.stage("t", "M0/a", b"3")  # changed there, other content here
    t.stage("v", "M0/a", b"2")  # the same change: no conflict
    t.stage("v", "M0/v", b"v")
    t.stage("w", "M0/b", b"4")  # removed there
    t.remove("x", "M0/a")  # changed there, removed here
    t.stage("y", "M0/c", b"5")  # untouched there
    t.stage("z", "M0/new", b"6")
    for name in "stvwxyz":
        t.commit(name, f"by {name}")
    t.workspace("z2")
    t.stage("z2", "M0/new", b"6")  # what is there already
    t.commit("z2")
    t.ask("GET", "/dir/main/", depth=-1)
    t.ask("GET", "/commits/history/main")
    for name in ("t", "t"):
        t.ask("DELETE", f"/workspaces/{name}")
    t.commit("y", branch="nope")
    t.commit("nope")


def removal(t):
    t.create()
    t.push({"a.txt": b"1", "M0/x/1": b"1", "M0/x/2": b"2", "M0/[a]*.txt": b"3", "M0/keep": b"4"})
    t.workspace("w")
    t.remove("w", "M0/nope")
    t.remove("w", "M0/[a]*.txt", "M0/nope")
    t.remove("w", "M0/x")
    t.remove("w", "a.txt")
    t.remove("nope", "a.txt")
    t.commit("w")
    t.ask("GET", "/dir/main/", depth=-1)
    t.ask("GET", "/file/main/a.txt")


def pages(t):
    t.create()
    for i in range(3):
        commit = t.push({f"d{i}/{j}": f"{i} {j}".encode() for j in range(2)} | {f"top{i}": b"%d" % i}, message=f"{i}")
    for page in (1, 2, 3, 9):
        t.ask("GET", "/dir/main/", depth=-1, page=page, page_size=3)
        t.ask("GET", "/commits/history/main", page=page, page_size=2)
    t.ask("GET", "/dir/main/d1", depth=-1)
    t.ask("GET", "/dir/main/nope", depth=-1)
    t.ask("GET", "/dir/nope/", depth=-1)
    t.ask("GET", "/commits/history/nope")
    t.ask("GET", f"/commits/history/{'0' * 32}")
    for id in (commit, commit[:10], "0" * 32):
        t.ask("GET", f"/commits/{id}")
    t.ask("GET", "/nonsense")


def branches(t):
    t.create()
    head = t.push({"a": b"1"})
    for name in ("s/1/0-of-2", "s/1/0-of-2", "with space"):
        t.ask("POST", "/branches", {"new_name": name, "commit_id": head})
    t.ask("POST", "/branches", {"new_name": "other", "commit_id": "0" * 32})
    t.ask("GET", "/branches/s/1/0-of-2")
    t.ask("GET", "/branches/s/1")
    t.ask("GET", "/branches")
    t.push({"b": b"2"}, branch="s/1/0-of-2")
    t.ask("GET", "/dir/s/1/0-of-2/", depth=-1)
    t.ask("GET", "/file/s/1/0-of-2/b")
    t.ask("GET", "/file/main/b")
    t.ask("GET", "/commits/history/s/1/0-of-2")
    for name in ("s/1/0-of-2", "s/1/0-of-2", "main"):
        t.ask("DELETE", f"/branches/{name}")
    t.ask("GET", "/branches")


def contents(t):
    t.create()
    files = {"M0/x y/[a]*?.txt": b"odd", "M0/ünï/日本.jsonl": b'{"a": 1}\n', "M0/100%25 #&=.txt": b"%", "c++": b"+"}
    commit = t.push(files)
    t.ask("GET", "/dir/main/", depth=-1)
    for path in files:
        t.ask("GET", f"/file/main/{path}")
    t.ask("GET", "/file/main/M0")
    t.ask("GET", "/file/main/M0/nope")
    t.heard.append(t.pool.request("GET", f"{t.url}/api/repos/ns/{t.name}/file/{commit}/c++").data)
    hashes = [xxhash.xxh3_128(content).hexdigest() for content in files.values()]
    t.query(*hashes)
    t.query(*hashes, "0" * 31 + "1")
    t.query()


def changes(t):
    """Their order is not the same each time, and not by name."""

    def look(workspace, **page):
        staged = t.ask("GET", f"/workspaces/{workspace}/changes", **page).get("staged", {})
        lists = [staged.get(kind, {"entries": []}) for kind in ("added_files", "modified_files")]
        names = [sorted(entry["filename"] for entry in one["entries"]) for one in lists]
        numbers = [{name: number for name, number in one.items() if isinstance(number, int)} for one in lists]
        t.heard.append(("changes", [len(one) for one in names] if page else names, numbers))

    t.create()
    t.push({"a": b"1", "M0/b": b"2", "c": b"33"})
    t.workspace("w")
    look("w")
    t.stage("w", "a", b"22")
    t.stage("w", "M0/new/x", b"3")
    t.stage("w", "M0/b", b"2")  # what is there already
    t.remove("w", "c")
    t.stage_empty("w", "e", "empty")
    look("w")
    for number in (1, 2, 3):
        look("w", page=number, page_size=1)
    look("nope")
    t.workspace("v")
    t.remove("v", "M0")
    look("v")


@pytest.mark.parametrize("kind", ["real", "nginx"])
def test_a_server_of_this_kind_is_here(kind):
    """Where it is not, all tests that run on every kind of server leave it out; this is the one that says so."""
    if reason := servers.missing(kind):
        pytest.skip(f"the store is not tested with it: {reason}")


CONVERSATIONS = [
    *(missing_repository, empty_repository, uploads, hash_with_leading_zeros, parts, conflicts, removal, pages),
    *(branches, contents, changes),
]


needs_real = pytest.mark.skipif("real" not in servers.here(), reason="no real server is here")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    with servers.real_server(tmp_path_factory.mktemp("real")) as server:
        yield server


@needs_real
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda one: one.__name__)
def test_the_double_answers_as_the_real_server_does(real, conversation):
    heard = []
    with FakeOxen() as fake:
        for server in (fake, real):
            talk = Talk(server.url, f"a-{conversation.__name__}")
            conversation(talk)
            heard.append(talk.transcript())
    assert len(heard[0]) == len(heard[1]) > 4
    different = [pair for pair in zip(*heard, strict=True) if pair[0] != pair[1]]
    assert not different


@pytest.mark.skipif("nginx" not in servers.here(), reason="the proxy that checks tokens is not here")
def test_a_proxy_in_front_and_the_double_refuse_a_wrong_token_alike(real, tmp_path):
    pool = urllib3.PoolManager(retries=False, timeout=20)
    with servers.nginx_proxy(real.url, "right-Token_1", tmp_path) as proxy, FakeOxen(token="right-Token_1") as fake:
        for server in (proxy, fake):
            for token, status in (("right-Token_1", 404), ("right-token_1", 401), ("", 401), (None, 401)):
                headers = {} if token is None else {"Authorization": f"Bearer {token}"}
                answer = pool.request("GET", f"{server.url}/api/repos/ns/nope", headers=headers)
                assert (answer.status, b"<html>" in answer.data) == (status, status == 401)


@needs_real
def test_a_server_that_was_killed_has_what_it_had_answered(tmp_path):
    with servers.real_server(tmp_path) as server:
        talk = Talk(server.url, "killed")
        talk.create()
        commit = talk.push({"a": b"1"})
        server.kill()
        assert not servers.answers(server.url)
        server.restart()
        assert Talk(server.url, "killed").ask("GET", "/branches/main")["branch"]["commit_id"] == commit


@pytest.fixture
def fake():
    with FakeOxen() as server:
        Talk(server.url, "rr").create()
        yield server


@pytest.mark.parametrize("status", [403, 404, 409, 429, 500, 502, 503, 507])
def test_a_status_on_command_and_nothing_is_done(fake, status):
    fake.fail("POST", "/branches$", str(status), after=1, times=2)
    talk = Talk(fake.url, "rr")
    commit = talk.push({"a": b"1"})
    for name in "abcd":
        talk.ask("POST", "/branches", {"new_name": name, "commit_id": commit})
    assert [one[2] for one in talk.heard[-4:]] == [200, status, status, 200]
    assert talk.heard[-2][3] == ("1" if status == 429 else None)
    assert [one["name"] for one in talk.ask("GET", "/branches")["branches"]] == ["a", "d", "main"]


@pytest.mark.parametrize(("how", "sent"), [("hang", 1000), ("hang_midway", 500), ("cut", 500), ("lost", 1000)])
def test_silence_and_broken_connections(fake, how, sent):
    talk = Talk(fake.url, "rr")
    talk.workspace("w")
    fake.fail("PUT", "/parts/1$", how)
    talk.pool = urllib3.PoolManager(
        retries=False, timeout=urllib3.Timeout(connect=20, read=2 if how.startswith("hang") else 20)
    )
    error = urllib3.exceptions.ReadTimeoutError if how.startswith("hang") else urllib3.exceptions.ProtocolError
    with pytest.raises(error):
        talk.stage("w", "a", b"x" * 1000)
    assert [one.size for one in fake.seen("PUT", "/parts/")] == ([] if how == "never" else [sent])
    again = talk.stage("w", "a", b"x" * 1000)
    assert again["file"] == ("already_stored" if how == "lost" else "awaiting_parts")
    fake.release()


def test_an_answer_that_is_cut_slow_or_garbage(fake):
    talk = Talk(fake.url, "rr")
    talk.push({"a": b"x" * 1000, "b": b"text"})
    fake.fail("GET", "/file/main/a", "cut")
    with pytest.raises(urllib3.exceptions.ProtocolError, match="500 bytes read, 500 more expected"):
        talk.ask("GET", "/file/main/a")
    fake.fail("GET", "/file/main/b", "garbage")
    assert talk.ask("GET", "/file/main/b") == b"uext"
    fake.fail("GET", "/branches$", "garbage")
    assert b"<html>" in talk.ask("GET", "/branches")
    fake.fail("GET", "/file/main/b", "slow")
    started = time.monotonic()
    assert talk.ask("GET", "/file/main/b") == b"text" and time.monotonic() - started > 0.14


def test_requests_are_recorded_without_the_token():
    with FakeOxen(token="secret") as fake, ThreadPoolExecutor(8) as threads:
        pool = urllib3.PoolManager(retries=False, timeout=20, maxsize=8)
        headers = {"Authorization": "Bearer secret"}
        ask = partial(pool.request, "GET", f"{fake.url}/api/version", headers=headers)
        assert {answer.status for answer in threads.map(lambda _: ask(), range(50))} == {200}
        assert len(fake.seen("GET", "/api/version")) == 50
        assert "secret" not in repr(fake.requests) and fake.requests[0].headers["Authorization"] == ""


def test_a_killed_double_does_not_answer_and_keeps_its_data(fake):
    talk = Talk(fake.url, "rr")
    commit = talk.push({"a": b"1"})
    fake.kill()
    with pytest.raises(urllib3.exceptions.HTTPError):
        talk.ask("GET", "/branches")
    fake.start()
    assert talk.ask("GET", "/branches/main")["branch"]["commit_id"] == commit


def test_a_missing_server_is_told_with_how_to_get_it(monkeypatch):
    monkeypatch.delenv("OXEN_SERVER", raising=False)
    assert "OXEN_SERVER" in servers.missing("real") and "docs/server.md" in servers.missing("real")
    monkeypatch.setenv("OXEN_SERVER", "/nonexistent/oxen-server")
    assert "/nonexistent/oxen-server" in servers.missing("nginx")
    monkeypatch.setenv("OXEN_SERVER", "/bin/true")
    assert servers.missing("real") is None
    monkeypatch.setenv("NGINX", "/nonexistent/nginx")
    assert "apt-get install" in servers.missing("nginx")
    assert servers.missing("fake") is None


def test_work_that_is_done_though_the_answer_says_otherwise(fake):
    talk = Talk(fake.url, "rr")
    commit = talk.push({"a": b"1"})
    fake.fail("POST", "/branches$", "done 502")
    assert b"<html>" in talk.ask("POST", "/branches", {"new_name": "x", "commit_id": commit})
    assert talk.ask("GET", "/branches/x")["branch"]["commit_id"] == commit


def test_something_that_happens_just_before_a_request(fake):
    talk = Talk(fake.url, "rr")
    commit = talk.push({"a": b"1"})
    fake.fail("GET", "/branches/x", lambda: talk.ask("POST", "/branches", {"new_name": "x", "commit_id": commit}))
    assert Talk(fake.url, "rr").ask("GET", "/branches/x")["branch"]["commit_id"] == commit

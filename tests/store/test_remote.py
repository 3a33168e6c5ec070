"""The store on a server: the double always, a real oxen-server and nginx with a token in front where they are there.

What goes wrong with a server is in test_remote_faults.py, whole programs in test_remote_programs.py.
"""

import functools
import json
import logging
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from self_reward.errors import UserError
from self_reward.store.content import blob_of, hash_file
from self_reward.store.errors import Auth, Conflict, Corrupt, NotFound
from self_reward.store.remote import workspaces
from tests.support import servers
from tests.support.fake_oxen import PART_SIZE
from tests.support.place import MANIFEST, PROMPTS, SEEDS, Place
from tests.support.running import TOKEN, address, running

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=servers.here())
def server(request, tmp_path_factory):
    """A server of each kind that is here."""
    with running(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def place(server, request, tmp_path, monkeypatch, no_token):
    """A repository that is not there yet."""
    if server.token:
        monkeypatch.setenv("OXEN_TOKEN", server.token)
    return Place(server, f"r{abs(hash(request.node.nodeid))}", tmp_path)


@pytest.fixture
def repo(place):
    """A repository with a file of the user's."""
    place.store().create()
    place.put()
    return place


def test_what_is_pushed_can_be_resolved_and_pulled(repo):
    first = repo.store().resolve()
    assert first.files == {SEEDS: 33} and first.log[0].key is None and first.log[0].message == "user data"
    commit = repo.push({PROMPTS: b"p\n" * 1000})
    store = repo.store()
    snapshot = store.resolve()
    assert snapshot.commit == snapshot.head == commit == snapshot.log[0].id
    assert (snapshot.log[0].key, snapshot.log[0].message) == ("ab12", "M0 test")
    assert "self-reward" in snapshot.log[0].author and snapshot.log[0].time.startswith("20")
    assert snapshot.files[PROMPTS] == 2000 and json.loads(snapshot.contents[MANIFEST])["key"] == "ab12"
    pulled = store.pull(snapshot, ["M0/generated", SEEDS], repo.folder / "in")
    assert sorted(pulled) == [PROMPTS, SEEDS]
    assert (repo.folder / "in" / PROMPTS).read_bytes() == b"p\n" * 1000
    assert (repo.folder / "in" / PROMPTS).stat().st_mode & 0o777 == 0o644
    for path in (PROMPTS, SEEDS):
        assert pulled[path] == snapshot.sha256[path] == hash_file(repo.folder / "in" / path).sha256
        assert snapshot.blobs[path] == blob_of(repo.folder / "in" / path)
    assert repo.workspaces() == []


def test_the_key_is_the_last_line_of_the_commit_message(repo):
    repo.push({PROMPTS: b"p\n"}, key="0123abcd")
    assert repo.log()[0]["message"].splitlines()[-1] == "key: 0123abcd"


def test_a_branch_that_is_missing_is_made_from_main(repo):
    store = repo.store("run-2")
    snapshot = store.resolve()
    assert snapshot.files == {SEEDS: 33} and any("run-2" in note for note in snapshot.notes)
    commit = repo.push({PROMPTS: b"2\n"}, store=store)
    assert store.branches() == {"main": snapshot.commit, "run-2": commit}
    assert PROMPTS not in repo.store().resolve().files


def test_branches_are_made_listed_and_removed(repo):
    store, head = repo.store(), repo.store().resolve().commit
    store.make_branch("shards/ab12/0-of-2", head)
    store.make_branch("shards/ab12/0-of-2", head)
    commit = repo.push({PROMPTS: b"s\n"}, store=store.on("shards/ab12/0-of-2"))
    assert store.branches("shards/ab12/") == {"shards/ab12/0-of-2": commit}
    assert store.on("shards/ab12/0-of-2").resolve().head == commit
    store.remove_branch("shards/ab12/0-of-2")
    store.remove_branch("shards/ab12/0-of-2")
    assert list(store.branches()) == ["main"]


def test_an_older_revision_by_its_id_or_the_first_digits_of_it(repo):
    first = repo.push({PROMPTS: b"1\n"}, key="01")
    second = repo.push({PROMPTS: b"2\n"}, key="02")
    for revision in (first, first[:10]):
        old = repo.store().resolve(revision)
        assert (old.commit, old.head) == (first, second)
        assert (repo.pull([PROMPTS], f"in-{revision}", snapshot=old) / PROMPTS).read_bytes() == b"1\n"
    with pytest.raises(NotFound, match="nosuch.*its newest are .*M0 test"):
        repo.store().resolve("nosuch")
    repo.store("other").resolve()
    third = repo.push({PROMPTS: b"3\n"}, key="03", store=repo.store("other"))
    with pytest.raises(NotFound, match=third):
        repo.store().resolve(third)  # of another branch


def test_the_constructor_asks_nothing_and_a_missing_repository_is_told_with_create_repo(place):
    """oxenai's RemoteRepo succeeds for a repository that does not exist, and its errors differ only in their text."""
    store = place.store()
    with pytest.raises(NotFound, match=rf"{place.name}.*create_repo"):
        store.resolve()
    assert not store.exists()  # made only when asked


def test_a_repository_is_made_private(place):
    """oxenai makes it public where nobody says is_public=False."""
    place.store().create()
    place.store().create()
    assert place.store().exists()
    if place.fake:
        assert place.fake.repositories[f"ns/{place.name}"].is_public is False


def test_an_empty_repository_is_told_and_takes_the_first_data(place):
    place.store().create()
    with pytest.raises(NotFound, match="empty.*data put"):
        place.store().resolve()
    commit = place.put()
    assert place.store().resolve().commit == commit and place.workspaces() == []
    assert place.put() is None  # nothing to change
    assert place.store().resolve().commit == commit


def test_no_branch_and_no_main_to_make_it_from(place):
    place.store().create()
    place.talk.push({"a": b"1"}, branch="trunk")
    with pytest.raises(NotFound, match=r"no branch run-1.*trunk"):
        place.store("run-1").resolve()


NAMES = {
    "M0/generated/with space.jsonl": b"1",
    "M0/generated/[odd]*name?.txt": b"22",
    "M0/generated/ünï/日本語.jsonl": b"333",
    "M0/generated/100% #&=+%25.txt": b"4444",
    "M0/generated/.hidden": b"55555",
    "M0/generated/empty": b"",
    "M0/generated/deep/er/a.txt": b"one",
    "M0/generated/deep/b/a.txt": b"other",
}


def test_names_with_spaces_brackets_and_unicode_empty_files_and_two_files_of_one_name(repo):
    """Workspace.add(folder) of oxenai flattens names; a local restore takes [ ] and * for a pattern."""
    repo.push(NAMES)
    snapshot = repo.store().resolve()
    assert {path: size for path, size in snapshot.files.items() if path in NAMES} == {
        path: len(content) for path, content in NAMES.items()
    }
    pulled = repo.pull(["M0/generated"])
    assert {path: (pulled / path).read_bytes() for path in NAMES} == NAMES


def test_a_pushed_folder_replaces_the_old_one(repo):
    out, path = repo.folder / "final_checkpoint", "M0/models/sft/final_checkpoint"
    (out / "deep").mkdir(parents=True)
    (out / "adapter_model.safetensors").write_bytes(os.urandom(1000))
    (out / "deep/old.json").write_text("{}")
    store = repo.store()
    first = store.push({path: out}, key="01", message="one", expected_head=store.resolve().commit)
    (out / "deep/old.json").unlink()
    (out / "deep").rmdir()
    (out / "self_reward.json").write_text('{"finetune": "lora"}')
    second = store.push({path: out}, key="02", message="two", expected_head=first)
    now = store.resolve()
    assert now.commit == second
    assert {f for f in now.files if f.startswith(path)} == {
        f"{path}/adapter_model.safetensors",
        f"{path}/self_reward.json",
    }
    assert now.contents[f"{path}/self_reward.json"] == b'{"finetune": "lora"}'
    assert f"{path}/deep/old.json" in store.resolve(first).files


def test_a_large_file_goes_in_parts_and_is_not_sent_again(repo):
    content = os.urandom(2 * PART_SIZE + 12345)
    shown = []
    first = repo.push({"M0/generated/big.bin": content}, key="01")
    if repo.fake:
        parts = repo.fake.seen("PUT", "/parts/")
        assert sorted(one.size for one in parts)[-3:] == [12345, PART_SIZE, PART_SIZE]
        repo.fake.requests.clear()
    (repo.folder / "again").mkdir()
    (repo.folder / "again/big.bin").write_bytes(content)
    store = repo.store()
    files = {"M1/generated/copy.bin": repo.folder / "again/big.bin"}
    store.push(files, key="02", message="the same content", expected_head=first, progress=lambda *a: shown.append(a))
    if repo.fake:
        sent = sum(one.size for one in repo.fake.seen("PUT", "/parts/"))
        assert sent < 5000
    to = repo.pull(["M0/generated/big.bin", "M1/generated/copy.bin"])
    assert (to / "M0/generated/big.bin").read_bytes() == (to / "M1/generated/copy.bin").read_bytes() == content


def test_progress_is_told_in_both_directions(repo):
    """Only what takes a while is worth a bar."""
    big = repo.folder / "big"
    with big.open("wb") as file:
        file.write(os.urandom(1000))
        file.truncate(110 << 20)
    store, pushed, pulled = repo.store(), [], []
    head = store.resolve().commit
    store.push({"M0/b": big}, key="01", message="b", expected_head=head, progress=lambda *a: pushed.append(a))
    store.pull(store.resolve(), ["M0/b"], repo.folder / "in", progress=lambda *a: pulled.append(a))
    for told in (pushed, pulled):
        assert told[-1][0] == told[-1][1] == (110 << 20) // 1_000_000
        assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert blob_of(repo.folder / "in/M0/b") == blob_of(big)


def test_pushing_again_is_the_same_commit_and_sends_nothing(repo):
    before = repo.store().resolve().commit
    first = repo.push({PROMPTS: b"p\n"}, expected=before)
    if repo.fake:
        repo.fake.requests.clear()
    assert repo.push({PROMPTS: b"p\n"}, expected=before) == first  # the first answer was lost, say
    assert repo.push({PROMPTS: b"p\n"}, expected=first) == first
    assert len(repo.log()) == 3
    if repo.fake:
        assert repo.fake.seen("PUT|POST|DELETE", "") == []


def test_a_pull_goes_on_with_what_an_interrupted_one_left(repo):
    content = os.urandom(3_000_000)
    repo.push({"M0/generated/big.bin": content})
    for change in (lambda begun: begun, lambda begun: b"x" + begun[1:], lambda begun: content + b"too long"):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                repo.pull(["M0/generated"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        folder = repo.folder / "in/M0/generated"
        (begun,) = folder.iterdir()
        assert begun.name != "big.bin" and begun.read_bytes() == content[:1_000_000]
        begun.write_bytes(change(content[:1_000_000]))
        if repo.fake:
            repo.fake.requests.clear()
        repo.pull(["M0/generated"])
        assert (folder / "big.bin").read_bytes() == content
        assert [path.name for path in folder.iterdir()] == ["big.bin"]
        if repo.fake:  # the beginning is asked for again only where it was wrong
            assert bool(repo.fake.seen("GET", "/file/.*big.bin")) == (change(b"ab") != b"ab")
        (folder / "big.bin").unlink()


def test_a_pull_keeps_what_is_there_and_right(repo):
    repo.push({PROMPTS: b"p\n"})
    target = repo.pull([PROMPTS]) / PROMPTS
    kept = target.stat().st_mtime_ns
    repo.pull([PROMPTS])
    assert target.stat().st_mtime_ns == kept
    target.write_bytes(b"q\n")  # the same size, other content
    repo.pull([PROMPTS])
    assert target.read_bytes() == b"p\n"


def test_a_path_that_is_not_in_the_commit(repo):
    with pytest.raises(NotFound, match="M9/none"):
        repo.pull([SEEDS, "M9/none"])


def test_a_foreign_commit_between_resolve_and_push_is_named(repo):
    head = repo.store().resolve().commit
    foreign = repo.talk.push({"notes.txt": b"hello"}, message="somebody else's work")
    with pytest.raises(Conflict, match=rf"{foreign}.*somebody else's work") as raised:
        repo.push({PROMPTS: b"p\n"}, expected=head)
    assert head in str(raised.value)
    assert repo.log()[0]["id"] == foreign and repo.workspaces() == []
    repo.push({PROMPTS: b"p\n"})  # from the new head
    assert {"notes.txt", PROMPTS} <= set(repo.store().resolve().files)


WRITER = """
import sys
from pathlib import Path
from self_reward.errors import UserError
from self_reward.store import open_store
address, branch, head, key, folder, name = sys.argv[1:]
store = open_store(address, branch=branch, lock_timeout=1, store_timeout=60, cache_dir=Path(folder, "cache"))
Path(folder, name).write_text(name * 1000)
print("ready", flush=True)
sys.stdin.readline()
try:
    store.make_branch(branch, head)
    print(store.push({f"M0/by-{key}": Path(folder, name)}, key=key, message=f"by {key}", expected_head=head))
except UserError as error:
    print(type(error).__name__, error)
"""


class Writers:
    """Processes that all push at the same moment: one for each name and the branch given with it. The name is its key,
    and its content, where no `key` is given for all."""

    def __init__(self, repo, head: str, branches: dict[str, str], key: str | None = None):
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, repo.address, branch, head, key or name, str(repo.folder), name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            )
            for name, branch in branches.items()
        ]  # fmt: skip
        assert {process.stdout.readline() for process in self.processes} == {"ready\n"}

    def go(self) -> None:
        for process in self.processes:
            process.stdin.write("go\n")
            process.stdin.flush()

    def told(self) -> list[str]:
        return [process.communicate()[0].strip() for process in self.processes]


def test_of_writers_that_started_from_one_commit_exactly_one_lands(repo):
    """Two workspaces on one branch can lose an update with oxenai: there is no compare-and-swap."""
    for round in range(3):
        head = repo.store().resolve().commit
        writers = Writers(repo, head, {f"{round}{i}": "main" for i in range(3)})
        writers.go()
        told = writers.told()
        snapshot = repo.store().resolve()
        assert sum(text == snapshot.head for text in told) == 1, told
        assert sum(text.startswith("Conflict") and snapshot.head in text for text in told) == 2, told
        assert repo.log()[1]["id"] == head and repo.workspaces() == []
        assert len([path for path in snapshot.files if path.startswith(f"M0/by-{round}")]) == 1


def test_of_processes_with_the_very_same_stage_one_commits_and_all_know_its_commit(repo):
    """Pods that were taken for dead, say. Their files differ, since a manifest has times in it."""
    head = repo.store().resolve().commit
    for round in range(2):
        writers = Writers(repo, head, {f"{round}{i}": "main" for i in range(4)}, key=f"ab{round}")
        writers.go()
        told = writers.told()
        assert len({*told}) == 1 and [one["id"] for one in repo.log()][:2] == [told[0], head], told
        written = (repo.pull([f"M0/by-ab{round}"]) / f"M0/by-ab{round}").read_text()
        assert written in [f"{round}{i}" * 1000 for i in range(4)] and repo.workspaces() == []
        head = told[0]


def test_sixteen_shards_pushed_at_the_same_time_while_another_run_commits(repo):
    head = repo.store().resolve().commit
    shards = {f"{i:02x}": f"shards/ab12/{i}-of-16" for i in range(16)}
    writers, other = Writers(repo, head, shards), repo.store("other-run")
    others = [other.resolve().commit]
    writers.go()
    for i in range(10):
        others.append(repo.push({f"M{i}/own": b"own"}, key=f"ee{i}", expected=others[-1], store=other))
    told = writers.told()
    branches = repo.store().branches()
    assert branches == {"main": head, "other-run": others[-1], **dict(zip(shards.values(), told, strict=True))}
    for key, branch in shards.items():
        assert [commit["id"] for commit in repo.log(branch)[1:]] == [commit["id"] for commit in repo.log()]
        pulled = repo.pull([f"M0/by-{key}"], f"in-{key}", store=repo.store(branch))
        assert (pulled / f"M0/by-{key}").read_text() == key * 1000
    assert [commit["id"] for commit in repo.log("other-run")][:11] == others[::-1]
    assert {f"M{i}/own" for i in range(10)} <= set(other.resolve().files)
    assert repo.workspaces() == []


def test_a_changed_generated_file_is_found_at_the_next_resolve_with_both_hashes(repo):
    repo.push({PROMPTS: b"right\n"})
    recorded = repo.store().resolve().blobs[PROMPTS]
    repo.talk.push({PROMPTS: b"wrong\n"}, message="behind its back")
    with pytest.raises(Corrupt, match=PROMPTS) as raised:
        repo.store().resolve()
    assert recorded in str(raised.value)
    changed = repo.folder / "changed"
    changed.write_bytes(b"wrong\n")
    assert blob_of(changed) in str(raised.value) and "accept" in str(raised.value)
    commit, _ = repo.store().accept([PROMPTS])
    snapshot = repo.store().resolve()
    assert snapshot.commit == commit and snapshot.sha256[PROMPTS] == hash_file(changed).sha256
    assert (repo.pull([PROMPTS]) / PROMPTS).read_bytes() == b"wrong\n"


def test_a_changed_file_of_a_manifest_without_oxens_hash_is_found_at_the_pull(repo):
    """Manifests of older versions record SHA-256 alone."""
    repo.push({PROMPTS: b"right\n"}, xxh3=False)
    recorded = hash_file(repo.folder / "out-ab12" / PROMPTS).sha256
    repo.talk.push({PROMPTS: b"wrong\n"}, message="behind its back")
    with pytest.raises(Corrupt, match=PROMPTS) as raised:
        repo.pull([PROMPTS])
    changed = repo.folder / "changed"
    changed.write_bytes(b"wrong\n")
    assert recorded in str(raised.value) and hash_file(changed).sha256 in str(raised.value)
    assert not (repo.folder / "in" / PROMPTS).exists()


def test_accept_wants_a_path_that_a_stage_wrote(repo):
    commit = repo.push({PROMPTS: b"right\n"})
    with pytest.raises(UserError, match=rf"{SEEDS}.*{PROMPTS}"):
        repo.store().accept([SEEDS])
    assert repo.store().accept([PROMPTS])[0] == commit  # nothing was changed


def test_user_data_does_not_replace_what_a_stage_wrote(repo):
    repo.push({PROMPTS: b"right\n"})
    commit = repo.put(**{"M0/eval/prompts.jsonl": '{"prompt": "x"}\n'})
    assert repo.store().resolve().commit == commit
    with pytest.raises(UserError, match=PROMPTS):
        repo.put(**{PROMPTS: "mine\n"})
    assert repo.store().resolve().commit == commit


def half_made(repo, outputs, there, key="ab12"):
    """Commit as another program could, with a stage's key and a manifest of `outputs`, but only the files `there`."""
    listed = {}
    for path, content in outputs.items():
        (repo.folder / "whole").write_bytes(content)
        entry = hash_file(repo.folder / "whole")
        listed[path] = {"sha256": entry.sha256, "size": entry.size, "xxh3": entry.blob}
    manifest = json.dumps({"key": key, "outputs": listed, "by": "another process"}).encode()
    return repo.talk.push({MANIFEST: manifest, **there}, message=f"M0 test\n\nkey: {key}")


OUTPUTS = {PROMPTS: b"p\n" * 9, "M0/generated/more.jsonl": b"m\n"}


@pytest.mark.parametrize("there", [{}, {"M0/generated/more.jsonl": b"other"}], ids=["missing", "other content"])
def test_a_commit_with_our_key_that_does_not_hold_all_outputs_is_not_taken_for_done(repo, there):
    """What a server leaves that lost its power, or that lost files of a workspace removed while it was filled."""
    before = repo.store().resolve().commit
    half = half_made(repo, OUTPUTS, {PROMPTS: OUTPUTS[PROMPTS], **there})
    commit = repo.push(OUTPUTS, expected=before)
    assert [one["id"] for one in repo.log()][:3] == [commit, half, before] and repo.workspaces() == []
    pulled = repo.pull(["M0/generated"])
    assert {path: (pulled / path).read_bytes() for path in OUTPUTS} == OUTPUTS


def test_a_whole_commit_of_another_process_with_our_key_is_taken(repo):
    before = repo.store().resolve().commit
    whole = half_made(repo, OUTPUTS, OUTPUTS)
    assert repo.push(OUTPUTS, expected=before) == whole == repo.store().resolve().head
    assert json.loads(repo.store().resolve().contents[MANIFEST])["by"] == "another process"
    assert repo.workspaces() == []


def test_data_put_on_a_branch_that_does_not_exist_makes_it_from_main(repo):
    main = repo.store().resolve()
    (repo.folder / "note").write_text("x")
    commit = repo.store("notes").put({"M0/eval/note": repo.folder / "note"}, message="note")
    assert repo.store().branches() == {"main": main.head, "notes": commit}
    assert {*repo.store("notes").resolve().files} == {*main.files, "M0/eval/note"}


def test_workspaces_that_a_push_has_overtaken_are_removed_and_others_are_not(repo):
    """Of killed pushes of ours; its own begin with the branch's hash."""
    ours = workspaces.prefix("main")
    for name in (f"{ours}ab12-0", f"{ours}user-0", "somebodys", f"{workspaces.prefix('other')}ab12-0"):
        repo.talk.workspace(name)
    repo.push({PROMPTS: b"p\n"})
    repo.talk.workspace(f"{ours}cd34-0")  # begun from the new head
    head = repo.store().resolve().head
    assert repo.push({PROMPTS: b"p\n"}) == head
    left = sorted(one["id"] for one in repo.workspaces())
    assert left == sorted(["somebodys", f"{workspaces.prefix('other')}ab12-0", f"{ours}cd34-0"])


@pytest.mark.parametrize(
    "path",
    [
        *("a\\b.jsonl", 'quo"te.jsonl', "a//b.jsonl", "./c.jsonl", "a/./c.jsonl", ".hidden", "M0/.hidden/a", "/abs"),
        *("../up", "M0/train/..", "M0/train/", "", "new\nline", "tab\tx", "\x01", "\x7f", "M0/train", SEEDS + "/below"),
        *("M0", "M0/01_gen_prompts.manifest.json"),
    ],
)
def test_a_path_under_which_no_user_data_can_be(repo, path):
    """A server takes some of these and keeps them under another name, or drops the folder that was there."""
    head = repo.store().resolve().head
    (repo.folder / "mine").write_text("mine\n")
    if repo.fake:
        repo.fake.requests.clear()
    with pytest.raises(UserError) as raised:
        repo.store().put({path: repo.folder / "mine", "M0/eval/good.jsonl": repo.folder / "mine"}, message="mine")
    assert (path or "''") in str(raised.value) or repr(path) in str(raised.value)
    assert repo.store().resolve().head == head and repo.workspaces() == []
    if repo.fake:
        assert repo.fake.seen("PUT|POST|DELETE", "") == []


def test_a_file_and_another_one_below_it_cannot_be_put_at_once(repo):
    (repo.folder / "mine").write_text("mine\n")
    with pytest.raises(UserError, match="M0/a is a folder"):
        repo.store().put({"M0/a": repo.folder / "mine", "M0/a/b": repo.folder / "mine"}, message="mine")
    assert set(repo.store().resolve().files) == {SEEDS}


@pytest.mark.parametrize("is_new", [True, False])
def test_of_people_who_put_data_at_the_same_moment_nobodys_is_lost_without_a_word(place, is_new):
    """With the same message; the first ones into an empty repository, too."""
    place.store().create()
    if not is_new:
        place.put()

    def one(number: int) -> str | None:
        try:
            return place.store().put({f"M0/train/{number}.jsonl": place.folder / str(number)}, message="mine")
        except Conflict:
            return None

    for number in range(4):
        (place.folder / str(number)).write_text(str(number))
    with ThreadPoolExecutor(4) as threads:
        commits = list(threads.map(one, range(4)))
    snapshot = place.store().resolve()
    landed = [commit for commit in commits if commit]
    assert landed and sorted(landed) == sorted(one.id for one in snapshot.log if one.message == "mine")
    for number, commit in enumerate(commits):
        assert (f"M0/train/{number}.jsonl" in snapshot.files) == (commit is not None)
    assert place.workspaces() == []


@pytest.mark.parametrize(
    "content",
    [
        *(b"not json", b"\xff\xfe", b"[]", b"null", b"{}", b'{"key": "ab", "outputs": []}', b"[" * 100_000),
        *(b'{"outputs": {"M0/train/ift.jsonl": {"size": 33}}}', b'{"outputs": {"M0/train/ift.jsonl": 5}}'),
        *(b'{"outputs": {}, "inputs": []}', b'{"outputs": {}, "inputs": {"seeds": 5}}'),
    ],
    ids=lambda content: content[:40].decode(errors="replace"),
)
def test_a_manifest_that_is_none_is_told(repo, content):
    before = repo.store().resolve().commit
    repo.talk.push({MANIFEST: content}, message="by hand\n\nkey: ab12")
    push = functools.partial(repo.push, OUTPUTS, expected=before)
    for operation in (repo.store().resolve, repo.put, lambda: repo.store().accept([SEEDS]), push):
        with pytest.raises(Corrupt, match=f"{MANIFEST} is not a manifest"):
            operation()


def test_a_branch_that_was_removed_meanwhile_is_not_made_again(repo):
    """A shard's branch goes when the shards are merged."""
    store = repo.store("shards/ab12/0-of-2")
    before = store.resolve().commit
    store.remove_branch(store.branch)
    with pytest.raises(NotFound, match=r"shards/ab12/0-of-2 .*was removed meanwhile; it is not made again"):
        repo.push({PROMPTS: b"p\n"}, store=store, expected=before)
    assert list(repo.store().branches()) == ["main"] and repo.workspaces() == []


def test_what_stands_where_a_file_is_to_be_pulled_is_told(repo):
    for number, wrong in enumerate((SEEDS, "M0/train")):
        target = repo.folder / str(number) / wrong
        if wrong == SEEDS:
            (target / "inside").mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True)
            target.write_text("a file\n")
        said = "is a folder" if wrong == SEEDS else "cannot be made, a file is in the way"
        with pytest.raises(UserError, match=f"{target} {said}"):
            repo.pull([SEEDS], str(number))
        assert (target / "inside").is_dir() if wrong == SEEDS else target.read_text() == "a file\n"


def leaks(folder: Path) -> list[str]:
    return [str(file) for file in folder.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]


@pytest.fixture
def guarded(tmp_path, no_token):
    """A double that wants TOKEN, with a repository on it."""
    with running("guarded", tmp_path) as server:
        place = Place(server, "guarded", tmp_path)
        place.talk.create()
        place.talk.push({SEEDS: b"{}\n"})
        place.fake.requests.clear()
        yield place


def test_a_wrong_token_is_refused_with_one_request(guarded, monkeypatch):
    monkeypatch.setenv("OXEN_TOKEN", TOKEN.lower())
    with pytest.raises(Auth, match="OXEN_TOKEN") as raised:
        guarded.store().resolve()
    assert TOKEN.lower() not in str(raised.value) and len(guarded.fake.requests) == 1


def test_no_token_is_told_with_where_to_put_it(guarded):
    with pytest.raises(Auth, match="OXEN_TOKEN or OXEN_TOKEN_FILE"):
        guarded.store().resolve()
    assert len(guarded.fake.requests) == 1


@pytest.mark.skipif("nginx" not in servers.here(), reason="the proxy that checks tokens is not here")
def test_a_wrong_token_behind_nginx(guarded, tmp_path, monkeypatch):
    monkeypatch.setenv("OXEN_TOKEN", "wrong")
    with running("nginx", tmp_path) as proxy:
        guarded.address = address(proxy.url, "name")
        started = time.monotonic()
        with pytest.raises(Auth, match="401"):
            guarded.store(timeout=60).resolve()
        with pytest.raises(Auth, match="401"):
            guarded.store(timeout=60).create()
        assert time.monotonic() - started < 20


def test_a_token_from_a_file_and_the_one_that_the_oxen_command_saved(guarded, monkeypatch):
    """The key of a saved token is the host with its port."""
    file = guarded.folder / "token"
    file.write_text(TOKEN + "\n")
    monkeypatch.setenv("OXEN_TOKEN_FILE", str(file))
    assert guarded.store().resolve().files == {SEEDS: 3}
    monkeypatch.delenv("OXEN_TOKEN_FILE")
    config = guarded.folder / "config/auth_config.toml"
    config.parent.mkdir()
    host = guarded.server.url.removeprefix("http://")
    config.write_text(f'[[host_configs]]\nhost = "{host}"\nauth_token = "{TOKEN}"\n')
    assert guarded.store().resolve().files == {SEEDS: 3}
    config.write_text(f'[[host_configs]]\nhost = "{host.partition(":")[0]}"\nauth_token = "{TOKEN}"\n')
    with pytest.raises(Auth):
        guarded.store().resolve()


def test_the_token_is_in_no_error_log_file_or_commit(guarded, monkeypatch, caplog):
    monkeypatch.setenv("OXEN_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    commit = guarded.push({PROMPTS: b"p\n"})
    guarded.pull(["M0"])
    for how in ("403", "500", "502", "cut", "garbage"):
        guarded.fake.fail("GET", "", how, times=None)
        with pytest.raises(Exception) as raised:
            guarded.store(timeout=0.5).resolve()
        guarded.fake.release()
        chain, error = "", raised.value
        while error:
            chain, error = chain + repr(error) + str(error), error.__cause__ or error.__context__
        assert TOKEN not in chain and guarded.server.url.removeprefix("http://") in chain
    assert TOKEN not in caplog.text and "trying again" in caplog.text
    assert leaks(guarded.folder) == []
    stored = guarded.fake.repositories["ns/guarded"]
    assert TOKEN.encode() not in b"".join(stored.contents.values()) and TOKEN not in str(stored.commits)
    assert guarded.store().resolve().commit == commit

"""The local store on real Oxen repositories."""

import dataclasses
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from self_reward import files
from self_reward.disk import is_full
from self_reward.errors import TryAgain, UserError
from self_reward.store import Snapshot, open_store
from self_reward.store.content import hash_file
from self_reward.store.errors import Conflict, Corrupt, NotFound, from_oxen
from self_reward.store.local import index

PROMPTS = "M0/generated/prompts.jsonl"
MANIFEST = "M0/01_gen_prompts.manifest.json"


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "data"
    (folder / "M0/train").mkdir(parents=True)
    (folder / "M0/train/ift.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    return folder


def store_of(repo, branch="main", lock_timeout=20.0, store_timeout=60.0):
    return open_store(str(repo), branch=branch, lock_timeout=lock_timeout, store_timeout=store_timeout)


def push(store, folder: Path, files: dict[str, str], key="ab12", expected_head=None, manifest=None) -> str:
    """Write `files` below `folder` and push them, each as one file, with a manifest that lists them."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).unlink(missing_ok=True)
        (folder / path).write_text(content)
    outputs = {path: {"sha256": hash_file(folder / path).sha256, "size": len(files[path])} for path in files}
    manifest = manifest or MANIFEST
    (folder / manifest).parent.mkdir(parents=True, exist_ok=True)
    (folder / manifest).unlink(missing_ok=True)
    (folder / manifest).write_text(json.dumps({"key": key, "outputs": outputs}))
    return store.push(
        {path: folder / path for path in [*files, manifest]},
        key=key,
        message=f"M0 test: {len(files)} files",
        expected_head=expected_head or store.resolve().commit,
    )


def test_plain_folder_becomes_a_repository_and_user_data_is_committed_once(repo):
    (repo / "rubrics").mkdir()
    (repo / "rubrics/[odd]*name?.txt").write_text("{prompt} {response}")
    (repo / ".hidden").write_text("nobody's data")
    first = store_of(repo).resolve()
    assert first.files == {"M0/train/ift.jsonl": 33, "rubrics/[odd]*name?.txt": 19}
    assert [commit.message.split(":")[0] for commit in first.log] == ["user data"]
    assert first.log[0].key is None
    again = store_of(repo).resolve()
    assert (again.commit, again.notes) == (first.commit, [])


def test_push_shows_in_the_working_tree_and_pull_gives_the_bytes_back(repo, tmp_path):
    store = store_of(repo)
    commit = push(store, tmp_path / "out", {PROMPTS: "p\n" * 1000})
    snapshot = store.resolve()
    assert snapshot.commit == snapshot.head == commit
    assert (snapshot.log[0].key, snapshot.log[0].message) == ("ab12", "M0 test: 1 files")
    assert (repo / PROMPTS).read_text() == "p\n" * 1000
    assert (repo / PROMPTS).stat().st_mode & 0o777 == 0o644
    assert json.loads(snapshot.contents[MANIFEST])["key"] == "ab12"
    pulled = store.pull(snapshot, ["M0/generated", "M0/train/ift.jsonl"], tmp_path / "in")
    assert sorted(pulled) == [PROMPTS, "M0/train/ift.jsonl"]
    assert (tmp_path / "in" / PROMPTS).read_text() == "p\n" * 1000
    assert pulled[PROMPTS] == snapshot.sha256[PROMPTS] == hash_file(repo / PROMPTS).sha256


def test_a_pushed_folder_replaces_the_old_one_and_the_old_commit_stays_readable(repo, tmp_path):
    store, out = store_of(repo), tmp_path / "out/final_checkpoint"
    (out / "deep").mkdir(parents=True)
    (out / "adapter_model.safetensors").write_bytes(os.urandom(1000))
    (out / "deep/old.json").write_text("{}")
    path = "M0/models/sft/final_checkpoint"
    first = store.push({path: out}, key="01", message="one", expected_head=store.resolve().commit)
    (out / "deep/old.json").unlink()
    (out / "deep").rmdir()
    (out / "self_reward.json").write_text('{"finetune": "lora"}')
    second = store.push({path: out}, key="02", message="two", expected_head=first)

    now = store.resolve()
    assert {f for f in now.files if f.startswith(path)} == {
        f"{path}/adapter_model.safetensors",
        f"{path}/self_reward.json",
    }
    assert now.commit == second and not (repo / path / "deep").exists()
    assert now.contents[f"{path}/self_reward.json"] == b'{"finetune": "lora"}'
    old = store.resolve(first[:10])
    assert (old.commit, old.head) == (first, second)
    assert f"{path}/deep/old.json" in old.files
    store.pull(old, [path], tmp_path / "in")
    assert (tmp_path / "in" / path / "deep/old.json").read_text() == "{}"


def test_a_commit_that_another_program_made_can_be_listed_and_read(repo, tmp_path):
    store = store_of(repo)
    first = store.resolve().commit
    script = (
        f"import oxen; r = oxen.Repo({str(repo)!r}); open({str(repo / 'M0/train/more.jsonl')!r}, 'w').write('x');"
        f"r.add({str(repo / 'M0')!r}); r.commit('by hand')"
    )
    environment = {**os.environ, "OXEN_CONFIG_DIR": str(repo / ".oxen/self_reward/config")}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, stdout=subprocess.DEVNULL)
    for tree in (repo / ".oxen/self_reward/trees").iterdir():
        tree.unlink()
    (repo / ".oxen/self_reward/stats.json").unlink()
    snapshot = store.resolve()
    assert sorted(snapshot.files) == ["M0/train/ift.jsonl", "M0/train/more.jsonl"]
    assert [commit.message.split(":")[0] for commit in snapshot.log] == ["by hand", "user data"]
    old = store.resolve(first)
    assert sorted(old.files) == ["M0/train/ift.jsonl"]
    assert list(store.pull(old, ["M0"], tmp_path / "in")) == ["M0/train/ift.jsonl"]
    assert not (repo / ".oxen/self_reward/scratch").exists()


def test_changed_removed_and_new_user_files_are_committed_first(repo):
    store = store_of(repo)
    first = store.resolve()
    (repo / "M0/train/ift.jsonl").write_text('{"prompt": "c", "response": "d"}\n')  # the same size
    (repo / "M0/eval").mkdir()
    (repo / "M0/eval/prompts.jsonl").write_text("{}\n")
    second = store.resolve()
    assert second.commit != first.commit
    assert second.sha256["M0/train/ift.jsonl"] != first.sha256["M0/train/ift.jsonl"]
    assert "M0/eval/prompts.jsonl" in second.log[0].message
    (repo / "M0/eval/prompts.jsonl").unlink()
    third = store.resolve()
    assert list(third.files) == ["M0/train/ift.jsonl"] and "(removed)" in third.log[0].message


def test_a_file_rewritten_at_once_with_the_same_size_is_noticed(repo):
    store = store_of(repo)
    for content in ("1111", "2222", "3333"):
        (repo / "M0/train/ift.jsonl").write_text(content)
        snapshot = store.resolve()
        assert snapshot.sha256["M0/train/ift.jsonl"] == hash_file(repo / "M0/train/ift.jsonl").sha256


def test_a_file_whose_time_does_not_tell_its_changes_is_hashed_each_time(repo):
    """As with git's racy entries: a time that is not in the past says nothing about a later write."""
    store, later = store_of(repo), time.time() + 3600
    hashes = set()
    for content in ("1111", "2222"):
        (repo / "M0/train/ift.jsonl").write_text(content)
        os.utime(repo / "M0/train/ift.jsonl", (later, later))
        hashes.add(store.resolve().sha256["M0/train/ift.jsonl"])
    assert len(hashes) == 2


def test_a_changed_generated_file_is_named_with_both_hashes_and_comes_back_when_moved_away(repo, tmp_path):
    store = store_of(repo)
    push(store, tmp_path / "out", {PROMPTS: "good\n"})
    good, head = hash_file(repo / PROMPTS).sha256, store.resolve().commit
    (repo / PROMPTS).write_text("evil\n")
    evil = hash_file(repo / PROMPTS).sha256
    with pytest.raises(UserError) as error:
        store.resolve()
    assert PROMPTS in str(error.value) and good in str(error.value) and evil in str(error.value)
    (repo / PROMPTS).unlink()
    snapshot = store.resolve()
    assert (repo / PROMPTS).read_text() == "good\n"
    assert snapshot.commit == head and PROMPTS in " ".join(snapshot.notes)


def test_damage_in_the_version_store_is_found_at_the_pull(repo, tmp_path):
    store = store_of(repo)
    push(store, tmp_path / "out", {PROMPTS: "good\n"})
    snapshot = store.resolve()
    blob = index.blob_path(repo, hash_file(repo / PROMPTS).blob)
    blob.chmod(0o644)
    blob.write_text("evil\n")
    with pytest.raises(Corrupt) as error:
        store.pull(snapshot, [PROMPTS], tmp_path / "in")
    assert PROMPTS in str(error.value) and len(re.findall(r"\b[0-9a-f]{64}\b", str(error.value))) == 2
    assert not (tmp_path / "in" / PROMPTS).exists()
    blob.unlink()
    with pytest.raises(Corrupt, match="found nothing"):
        store.pull(snapshot, [PROMPTS], tmp_path / "in")


@pytest.mark.parametrize("path", [PROMPTS, "M0/generated"])
def test_a_pull_checks_what_is_there_already_and_what_the_manifest_says(repo, tmp_path, path):
    store = store_of(repo)
    push(store, tmp_path / "out", {PROMPTS: "good\n"})
    snapshot = store.resolve()
    (tmp_path / "in/M0/generated").mkdir(parents=True)
    (tmp_path / "in" / PROMPTS).write_text("evil\n")
    store.pull(snapshot, [path], tmp_path / "in")
    assert (tmp_path / "in" / PROMPTS).read_text() == "good\n"
    manifest = json.loads(snapshot.contents[MANIFEST])
    manifest["outputs"][PROMPTS]["sha256"] = "0" * 64
    other = dataclasses.replace(snapshot, contents={MANIFEST: json.dumps(manifest).encode()})
    for folder in ("in", "another"):
        with pytest.raises(Corrupt, match=f"{PROMPTS} .* is damaged: SHA-256 recorded {'0' * 64}"):
            store.pull(other, [path], tmp_path / folder)


def test_the_same_key_makes_one_commit_and_a_foreign_commit_is_a_conflict(repo, tmp_path):
    store = store_of(repo)
    start = store.resolve().commit
    first = push(store, tmp_path / "out", {PROMPTS: "a\n"}, key="aa", expected_head=start)
    assert push(store, tmp_path / "out", {PROMPTS: "a\n"}, key="aa", expected_head=start) == first
    assert push(store, tmp_path / "out", {PROMPTS: "a\n"}, key="aa", expected_head=first) == first
    with pytest.raises(Conflict) as error:
        push(store, tmp_path / "out", {PROMPTS: "b\n"}, key="bb", expected_head=start)
    assert first in str(error.value) and start in str(error.value)
    assert len(store.resolve().log) == 2 and (repo / PROMPTS).read_text() == "a\n"


def test_a_folder_exists_once_anything_is_in_it_and_is_created_with_a_place_for_data(tmp_path):
    store = store_of(tmp_path / "new/data")
    assert not store.exists()
    with pytest.raises(NotFound, match="does not exist"):
        store.check_writable()
    store.create()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["new", "new/data", "new/data/M0"]
    assert store.exists() and store.check_writable() is None
    store.create()  # stays as it is
    (tmp_path / "empty").mkdir()
    assert not store_of(tmp_path / "empty").exists()
    (tmp_path / "file").touch()
    assert store_of(tmp_path / "file").exists()
    with pytest.raises(UserError, match="is a file; expected a folder"):
        store_of(tmp_path / "file").check_writable()


def test_a_folders_branches_are_not_for_others_to_make_or_remove(repo):
    store = store_of(repo)
    assert store.branches() == {} and store.on("other").branch == "other" and store.branch == "main"
    for change in (lambda: store.make_branch("x", store.resolve().commit), lambda: store.remove_branch("x")):
        with pytest.raises(UserError, match="is a folder.* use a server's address"):
            change()


def test_partial_files_of_killed_processes_are_removed(repo):
    store = store_of(repo)
    store.resolve()
    own = repo / ".oxen/self_reward"
    left = [files.partial(own / "stats.json"), own / "journal.json.part", own / "trees/ab.json.part"]  # older: no dot
    for path in left:
        path.write_text("{")
    store.resolve()
    assert not any(path.exists() for path in left) and (own / "stats.json").exists()


def test_a_users_file_that_appears_in_the_way_is_not_overwritten(repo, tmp_path):
    store = store_of(repo)
    head = store.resolve().commit
    (repo / PROMPTS).parent.mkdir(parents=True)
    (repo / PROMPTS).write_text("mine\n")
    with pytest.raises(Conflict, match=PROMPTS):
        push(store, tmp_path / "out", {PROMPTS: "yours\n"}, expected_head=head)
    assert (repo / PROMPTS).read_text() == "mine\n"


def test_branches_are_made_from_main_and_switched_only_when_clean(repo, tmp_path):
    main, other = store_of(repo), store_of(repo, branch="other")
    start = main.resolve().commit
    assert other.resolve().commit == start
    mine = push(other, tmp_path / "out", {PROMPTS: "other\n"}, expected_head=start)
    assert main.resolve().commit == start
    assert not (repo / PROMPTS).exists() and (repo / "M0/train/ift.jsonl").exists()
    (repo / "M0/train/ift.jsonl").write_text("changed")
    with pytest.raises(UserError, match="branch main"):
        other.resolve()
    main.resolve()
    assert other.resolve().commit == mine
    assert (repo / PROMPTS).read_text() == "other\n" and (repo / PROMPTS).stat().st_mode & 0o777 == 0o644


def test_missing_repository_revision_and_path_say_what_to_do(repo, tmp_path):
    with pytest.raises(NotFound, match="mkdir -p"):
        store_of(tmp_path / "nowhere").resolve()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="M0/train"):
        store_of(tmp_path / "empty").resolve()
    (tmp_path / "empty/M0").mkdir()
    with pytest.raises(UserError, match="holds no files"):
        store_of(tmp_path / "empty").resolve()
    with pytest.raises(UserError, match="expected oxen:"):
        open_store("oxen://host/a", branch="main", lock_timeout=1, store_timeout=1)
    store = store_of(repo)
    snapshot = store.resolve()
    with pytest.raises(NotFound, match=f"(?s)abcdef0.*{snapshot.commit[:12]}"):
        store.resolve("abcdef0")
    with pytest.raises(NotFound, match="M7/nothing"):
        store.pull(snapshot, ["M7/nothing"], tmp_path / "in")


def test_a_held_lock_ends_the_wait_and_says_who_and_since_when(repo):
    store_of(repo).resolve()
    script = (
        "import sys, time; from self_reward.store.local.store import LocalStore\n"
        f"with LocalStore({str(repo)!r}, branch='main', lock_timeout=1, store_timeout=1)._lock():\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    started = time.monotonic()
    with pytest.raises(TryAgain) as error:
        store_of(repo, lock_timeout=0.5).resolve()
    assert f"process {holder.pid}" in str(error.value) and "since 20" in str(error.value)
    assert 0.4 < time.monotonic() - started < 30
    holder.kill()
    holder.wait()
    assert store_of(repo, lock_timeout=0.5).resolve().files  # the lock died with its process


def test_many_processes_at_once_lose_nothing(repo, tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from self_reward.store import open_store\n"
        "from self_reward.store.errors import Conflict\n"
        f"store = open_store({str(repo)!r}, branch='main', lock_timeout=60, store_timeout=60)\n"
        "local = Path(sys.argv[1]); local.write_text(sys.argv[2])\n"
        "for _ in range(50):\n"
        "    try: store.push({f'M0/x/{sys.argv[2]}': local}, key=sys.argv[2], message='x',"
        " expected_head=store.resolve().commit); break\n"
        "    except Conflict: pass\n"
        "else: sys.exit(1)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / f"f{i}"), f"{i:02x}"]) for i in range(4)
    ]
    assert [process.wait() for process in processes] == [0] * 4
    snapshot = store_of(repo).resolve()
    assert {f"M0/x/{i:02x}" for i in range(4)} < set(snapshot.files)
    assert len(snapshot.log) == 5


def test_an_operation_over_its_time_is_ended(repo):
    with pytest.raises(TryAgain, match="store_timeout"):
        store_of(repo, store_timeout=0.01).resolve()
    assert store_of(repo).resolve().files


def test_nothing_is_written_to_the_users_oxen_configuration(repo, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OXEN_CONFIG_DIR", raising=False)
    (tmp_path / "home").mkdir()
    store_of(repo).resolve()
    assert not list((tmp_path / "home").rglob("*"))
    assert (repo / ".oxen/self_reward/config/user_config.toml").exists()


def test_what_oxen_keeps_out_by_oxenignore_is_not_committed_nor_tried_for_ever(repo):
    (repo / ".oxenignore").write_text("*.bak\n")
    (repo / "M0/train/old.bak").write_text("x")
    first = store_of(repo).resolve()
    assert list(first.files) == ["M0/train/ift.jsonl"]
    assert store_of(repo).resolve().commit == first.commit


def test_oxens_texts_become_types():
    assert is_full(ValueError("x: No space left on device (os error 28)"))
    assert isinstance(from_oxen("While lock file: /r/refs/LOCK: Resource temporarily unavailable"), TryAgain)
    assert from_oxen("something new") is None


def killed_at(moment: str, repo: Path, files: dict[str, Path], key: str, head: str) -> None:
    """Push `files` by an Oxen operation that is killed where it would call staging.`moment`."""
    given = (str(repo), "main", {path: str(source) for path, source in files.items()}, key, "M0 test", head)
    script = (
        "import os\n"
        "from self_reward.store.local import operations, staging\n"
        f"assert staging.{moment}; staging.{moment} = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        f"operations.push(*{given!r})\n"
    )
    environment = {**os.environ, "OXEN_CONFIG_DIR": str(repo / ".oxen/self_reward/config")}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize("moment", ["commit", "_staged", "_is_stored"])  # placed; and staged; and that looked at
def test_a_kill_between_placing_files_and_the_commit_leaves_no_trace(repo, tmp_path, moment):
    store = store_of(repo)
    push(store, tmp_path / "out", {PROMPTS: "old\n", "M0/generated/gone.jsonl": "gone\n"}, key="01")
    before = store.resolve()
    new = tmp_path / "new"
    new.mkdir()
    (new / "prompts.jsonl").write_text("new\n")
    (new / "z.bin").write_bytes(os.urandom(1_000_000))
    killed_at(moment, repo, {"M0/generated": new}, "02", before.commit)
    assert (repo / PROMPTS).read_text() == "new\n" and (repo / "M0/generated/z.bin").exists()
    (repo / "M0/train/ift.jsonl").write_text("new user data")  # must not take the rest along
    after = store.resolve()
    assert [commit.message.split(",")[0] for commit in after.log[:-2]] == ["user data: M0/train/ift.jsonl"]
    assert {**after.sha256, "M0/train/ift.jsonl": ""} == {**before.sha256, "M0/train/ift.jsonl": ""}
    assert (repo / PROMPTS).read_text() == "old\n" and (repo / "M0/generated/gone.jsonl").read_text() == "gone\n"
    assert not (repo / "M0/generated/z.bin").exists()


def test_what_was_staged_and_not_committed_is_no_part_of_a_stages_commit(repo, tmp_path):
    """Trap: a killed add leaves its entry staged, and the next commit takes it along."""
    store = store_of(repo)
    head = store.resolve().commit
    (repo / "M0/staged.txt").write_text("x")
    script = f"import oxen; oxen.Repo({str(repo)!r}).add({str(repo / 'M0/staged.txt')!r})"
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
    (repo / "M0/staged.txt").unlink()
    push(store, tmp_path / "out", {PROMPTS: "a\n"}, expected_head=head)
    for tree in (repo / ".oxen/self_reward/trees").iterdir():
        tree.unlink()  # look at what Oxen has, not at what we remember
    assert sorted(store.resolve().files) == sorted([MANIFEST, PROMPTS, "M0/train/ift.jsonl"])


def test_a_running_oxen_operation_keeps_the_lock_when_its_parent_is_killed(repo):
    (repo / "M0/train/big.bin").write_bytes(os.urandom(50_000_000))
    script = (
        "from self_reward.store import open_store\n"
        f"open_store({str(repo)!r}, branch='main', lock_timeout=9, store_timeout=60).resolve()"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    while process.poll() is None and not (repo / ".oxen/self_reward/journal.json").exists():
        time.sleep(0.001)
    (operation,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(operation, signal.SIGSTOP)  # else it may be over before it is looked for
    try:
        process.kill()
        process.wait()
        with open(repo / ".oxen/self_reward/lock") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(
            TryAgain, match=f"an Oxen operation, not ended yet, of process {process.pid} .* which has ended"
        ):
            store_of(repo, lock_timeout=0).resolve()
    finally:
        os.kill(operation, signal.SIGCONT)
    snapshot = store_of(repo).resolve()
    assert len(snapshot.log) == 1 and "M0/train/big.bin" in snapshot.files


def test_a_sigkill_at_any_moment_is_repaired_by_the_next_run(repo, tmp_path):
    """Each round: a process tree that resolves and pushes is killed at a random moment; then the same runs in peace."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[4])\n"
        "from tests.store.test_store import push, store_of\n"
        "from pathlib import Path\n"
        "store = store_of(sys.argv[1]); head = store.resolve()\n"
        "if head.log[0].key != sys.argv[3]:\n"
        "    n = int(sys.argv[3], 16)\n"
        "    files = {f'M0/generated/{i}.jsonl': f'{n}-{i}\\n' * 50000 for i in range(n % 3 + 2)}\n"
        "    push(store, Path(sys.argv[2]), files, key=sys.argv[3], expected_head=head.commit)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    rounds = int(os.environ.get("KILL_ROUNDS", "6"))
    chance = random.Random(int(os.environ.get("KILL_SEED", "1")))
    journal, staged = repo / ".oxen/self_reward/journal.json", repo / ".oxen/staged"
    killed = 0
    for number in range(rounds):
        key = f"{number + 16:x}"
        (repo / "M0/train/ift.jsonl").write_text(f"round {number}\n" * 10000)  # user data to commit first
        command = [sys.executable, "-c", script, str(repo), str(tmp_path / "out"), key, str(Path(__file__).parents[2])]
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        seen = chance.choice([journal.exists, staged.exists, lambda: '"touched": ["' in _text(journal)])
        while process.poll() is None and not seen():
            time.sleep(0.001)
        time.sleep(chance.choice([0, 0.01, 0.05, 0.2]) * chance.random())
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        subprocess.run(command, env=environment, check=True)
        _assert_whole(repo, [f"{n + 16:x}" for n in range(number + 1)])
    assert killed >= rounds // 2


def test_the_content_of_an_undone_push_is_removed(repo, tmp_path):
    """On a GPU no two runs write the same bytes: each kill would leave a whole checkpoint that nothing refers to."""
    store = store_of(repo)
    head = store.resolve().commit
    files = {f"M0/generated/{i}.jsonl": os.urandom(1_000_000).hex() for i in range(4)}
    for path, content in files.items():
        (tmp_path / "killed" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "killed" / path).write_text(content)
    killed_at("_is_stored", repo, {"M0/generated": tmp_path / "killed/M0/generated"}, "1f", head)
    new = json.loads(_text(repo / ".oxen/self_reward/journal.json"))["new"]
    assert len(new) == 4 and all(index.blob_path(repo, blob).exists() for blob in new)  # else there is nothing to show
    assert len(store.resolve().log) == 1
    _assert_nothing_unreferred(repo)
    push(store, tmp_path / "out", files, key="1f", expected_head=head)
    assert [commit.key for commit in store.resolve().log] == ["1f", None]
    _assert_nothing_unreferred(repo)


@pytest.mark.parametrize("branch", ["main", "new"])
def test_the_content_of_an_undone_push_stays_when_it_was_committed_by_hand_meanwhile(repo, tmp_path, branch):
    head = store_of(repo).resolve().commit
    (tmp_path / "prompts").write_text("new")
    killed_at("_is_stored", repo, {PROMPTS: tmp_path / "prompts"}, "ab", head)
    by_hand = (
        f"import oxen; repo = oxen.Repo({str(repo)!r}); repo.checkout({branch!r}, create={branch == 'new'})\n"
        f"repo.add({str(repo / 'M0')!r}); repo.commit('by hand'); repo.checkout('main')\n"
    )
    environment = {**os.environ, "OXEN_CONFIG_DIR": str(repo / ".oxen/self_reward/config")}
    subprocess.run([sys.executable, "-c", by_hand], check=True, env=environment, capture_output=True)
    store_of(repo).resolve()
    snapshot = store_of(repo, branch=branch).resolve()
    assert snapshot.log[0].message == "by hand"
    store_of(repo).pull(snapshot, [PROMPTS], tmp_path / "in")
    assert (tmp_path / "in" / PROMPTS).read_text() == (repo / PROMPTS).read_text() == "new"


def test_a_failure_right_after_the_commit_does_not_undo_it(repo, tmp_path):
    """A full disk at the first write after Oxen's commit: the working tree went back to the old files once, and the
    next run took them for changed by hand."""
    head = store_of(repo).resolve()
    (tmp_path / "M0/generated").mkdir(parents=True)
    (tmp_path / "M0/generated/prompts.jsonl").write_text("new")
    script = (
        "import errno, sys\n"
        "from self_reward.store.local import index, operations\n"
        "def fail(root, commit, tree):\n"
        "    if commit != sys.argv[3]: raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "index.write_tree = fail\n"
        "files = {'M0/generated/prompts.jsonl': sys.argv[2]}\n"
        "operations.push(sys.argv[1], 'main', files, 'ab', 'M0 test', sys.argv[3])\n"
    )
    command = [sys.executable, "-c", script, str(repo), str(tmp_path / "M0/generated/prompts.jsonl"), head.commit]
    environment = {**os.environ, "OXEN_CONFIG_DIR": str(tmp_path / "config")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode != 0 and "the disk is full" in ended.stderr
    assert (repo / "M0/generated/prompts.jsonl").read_text() == "new"
    snapshot = store_of(repo).resolve()
    assert [commit.key for commit in snapshot.log] == ["ab", None] and "was completed" in str(snapshot.notes)
    assert (repo / "M0/generated/prompts.jsonl").read_text() == "new"


def _assert_nothing_unreferred(repo: Path) -> None:
    store = store_of(repo)
    commits = [commit.id for commit in store.resolve().log]
    for commit in commits:
        store.resolve(commit)
    referred = {entry.blob for commit in commits for entry in index.read_tree(repo, commit).values()}
    stored = {path.parent.parent.name + path.parent.name for path in (repo / ".oxen/versions/files").glob("*/*/data")}
    assert stored == referred


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _assert_whole(repo: Path, keys: list[str]) -> None:
    """One commit a key, all content there and right, nothing left over; looked at without what index.py remembers."""
    for file in [*(repo / ".oxen/self_reward/trees").iterdir(), repo / ".oxen/self_reward/stats.json"]:
        file.unlink(missing_ok=True)
    snapshot: Snapshot = store_of(repo).resolve()
    assert sorted(commit.key for commit in snapshot.log if commit.key) == sorted(keys)
    assert snapshot.commit == snapshot.log[0].id and snapshot.log[0].key == keys[-1]
    manifest = json.loads(snapshot.contents[MANIFEST])
    assert manifest["key"] == keys[-1]
    for path, output in manifest["outputs"].items():
        assert hash_file(repo / path).sha256 == output["sha256"] == snapshot.sha256[path]
    assert sum(1 for commit in snapshot.log if not commit.key) == len(keys)
    names = ("oxentmp", index.TEMPORARY, ".oxen-new", ".part")
    leftovers = [path for path in repo.rglob("*") if any(name in path.name for name in names)]
    assert not leftovers and not (repo / ".oxen/self_reward/journal.json").exists()


def test_files_of_any_name_come_and_go(repo):
    """Oxen's remove takes globs: `a*` would take along what it does not name, `a[1]` would name nothing."""
    names = [
        "a[1].txt",
        "a1.txt",
        "b*.txt",
        "bc.txt",
        "c?d",
        "sp ace'\"$x",
        "new\nline",
        "back\\slash",
        "ä" * 120,
        "-rf",
    ]
    for name in names:
        (repo / "M0/train" / name).write_text(name)
    store = store_of(repo)
    assert {f"M0/train/{name}" for name in names} < set(store.resolve().files)
    kept = ["a1.txt", "bc.txt"]
    for name in set(names) - set(kept):
        (repo / "M0/train" / name).unlink()
    left = {"M0/train/ift.jsonl", *(f"M0/train/{name}" for name in kept)}
    assert set(store.resolve().files) == left
    for tree in (repo / ".oxen/self_reward/trees").iterdir():
        tree.unlink()  # what Oxen has, not what we remember
    assert set(store.resolve().files) == left


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_committed(repo):
    store = store_of(repo)
    head = store.resolve().commit
    (repo / "M0/eval").mkdir()
    (repo / "M0/eval" / os.fsdecode(b"caf\xe9.jsonl")).write_text("{}")
    with pytest.raises(UserError, match=r"M0/eval/caf.*not UTF-8"):
        store.resolve()
    (repo / "M0/eval" / os.fsdecode(b"caf\xe9.jsonl")).unlink()
    assert store.resolve().commit == head


def test_links_are_followed_or_named_never_dropped(repo, tmp_path):
    store, elsewhere = store_of(repo), tmp_path / "elsewhere"
    (elsewhere / "sub").mkdir(parents=True)
    (elsewhere / "eval.jsonl").write_text("linked\n")
    (elsewhere / "sub/x.jsonl").write_text("x\n")
    (repo / "M0/eval").mkdir()
    (repo / "M0/eval/prompts.jsonl").symlink_to(elsewhere / "eval.jsonl")
    (repo / "M0/more").symlink_to(elsewhere / "sub")
    first = store.resolve()
    assert sorted(first.files) == ["M0/eval/prompts.jsonl", "M0/train/ift.jsonl"]
    assert any("M0/more is a link to the folder" in note and "not part of the data" in note for note in first.notes)
    store.pull(first, ["M0/eval/prompts.jsonl"], tmp_path / "in")  # the content, not the link
    assert (tmp_path / "in/M0/eval/prompts.jsonl").read_text() == "linked\n"
    (elsewhere / "eval.jsonl").write_text("changed there\n")
    second = store.resolve()
    assert second.sha256["M0/eval/prompts.jsonl"] == hash_file(elsewhere / "eval.jsonl").sha256
    (elsewhere / "eval.jsonl").unlink()  # or a disk that is not mounted: no reason to remove the data
    with pytest.raises(UserError, match="M0/eval/prompts.jsonl is a link to .*eval.jsonl, which does not exist"):
        store.resolve()
    (repo / "M0/eval/prompts.jsonl").unlink()
    (repo / "M0/train").rename(elsewhere / "train")
    (repo / "M0/train").symlink_to(elsewhere / "train")
    with pytest.raises(UserError, match="M0/train is a link to the folder .* committed before"):
        store.resolve()


@pytest.mark.parametrize("branch", ["main", "other"])
def test_a_changed_generated_file_is_accepted_by_the_command_that_the_error_names(repo, tmp_path, branch):
    store_of(repo).resolve()
    store = store_of(repo, branch=branch)
    first = push(store, tmp_path / "out", {PROMPTS: "good\n", "M0/generated/more.jsonl": "more\n"})
    (repo / PROMPTS).write_text("mine\n")
    (repo / "M0/generated/more.jsonl").write_text("mine too\n")
    with pytest.raises(UserError) as error:
        store.resolve()
    commands = re.findall(r"self-reward (accept .*)", str(error.value))
    assert len(commands) == 2
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for words in commands:
        subprocess.run([sys.executable, "-m", "self_reward.cli", *words.split()], check=True, env=environment)
    snapshot = store.resolve()
    manifest = json.loads(snapshot.contents[MANIFEST])
    assert manifest["outputs"][PROMPTS]["changed_by_hand"] and manifest["key"] == "ab12"
    assert manifest["outputs"][PROMPTS]["sha256"] == snapshot.sha256[PROMPTS] == hash_file(repo / PROMPTS).sha256
    assert (snapshot.log[0].key, snapshot.log[0].message) == ("ab12", f"{PROMPTS}: changed by hand and accepted")
    assert snapshot.log[2].id == first and len(snapshot.log) == 4
    store.pull(snapshot, ["M0/generated"], tmp_path / "in")
    assert (tmp_path / "in" / PROMPTS).read_text() == "mine\n"
    with pytest.raises(UserError, match="M0/train/ift.jsonl was not written by a stage; files that were: M0"):
        store.accept(["M0/train/ift.jsonl"])
    (repo / MANIFEST).write_text("{}")
    with pytest.raises(UserError) as error:
        store.resolve()
    assert "self-reward accept" not in str(error.value)  # of a manifest nobody may say what it should be


def test_accept_where_no_stage_has_run_says_so(repo):
    with pytest.raises(NotFound, match="no stage has run there yet"):
        store_of(repo).accept([PROMPTS])
    assert not (repo / ".oxen").exists()


def test_half_an_answer_of_a_killed_oxen_process_is_no_answer(repo, tmp_path, monkeypatch):
    store_of(repo).resolve()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf \'{"value": {"com\'; kill -9 $$\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(TryAgain, match="the Oxen operation resolve was killed"):
        store_of(repo).resolve()


def test_a_kill_while_a_missing_generated_file_is_given_back_leaves_no_part_of_it(repo, tmp_path):
    store = store_of(repo)
    push(store, tmp_path / "new", {PROMPTS: "a\n"})
    (repo / PROMPTS).unlink()
    program = f"""
import os
from self_reward.store.local import operations
replace = os.replace
os.replace = lambda a, b: os.kill(os.getpid(), 9) if str(b).endswith({PROMPTS!r}) else replace(a, b)
operations.resolve({str(repo)!r}, "main", None)
"""
    environment = {**os.environ, "OXEN_CONFIG_DIR": str(tmp_path / "config")}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert files.partial(repo / PROMPTS).exists()
    older = (repo / PROMPTS).with_name(f"{index.TEMPORARY}1-2")  # what an older version, killed there, has left
    older.write_text("a")
    store.resolve()
    assert [path.name for path in (repo / PROMPTS).parent.iterdir()] == ["prompts.jsonl"]
    assert (repo / PROMPTS).read_text() == "a\n"

"""A whole stage against a server: exit codes, words, times. The double always, a real oxen-server where it is there."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from self_reward.repository import jsonl
from tests.support import servers
from tests.support.place import Place
from tests.support.running import TOKEN, running

ROOT = Path(__file__).parents[2]
SCORES = [
    {"prompt_id": f"p{i}", "response_id": f"p{i}-{j}", "prompt": f"prompt {i}", "completion": f"answer {j}", "score": j}
    for i in range(3)
    for j in range(2)
]
PREFERENCES = "M0/generated/preferences.jsonl"


@pytest.fixture(params=servers.here())
def repo(request, tmp_path, monkeypatch, no_token):
    """A repository with scores on a server of each kind that is here."""
    with running(request.param, tmp_path) as server:
        yield place(server, tmp_path, monkeypatch)


@pytest.fixture
def fake(tmp_path, monkeypatch, no_token):
    """The same on a double that wants TOKEN."""
    with running("guarded", tmp_path) as server:
        yield place(server, tmp_path, monkeypatch)


def place(server, folder: Path, monkeypatch) -> Place:
    monkeypatch.setenv("OXEN_TOKEN", server.token or "")
    monkeypatch.setenv("TERMINATION_LOG", str(folder / "run/termination.log"))
    (folder / "run").mkdir()
    found = Place(server, "programs", folder)
    found.talk.create()
    jsonl.write(folder / "scores.jsonl", SCORES)
    found.store().put({"M0/generated/scores.jsonl": folder / "scores.jsonl"}, message="scores")
    return found


def start(repo, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(repo, *flags), cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )


def command(repo, *flags: str) -> list[str]:
    run = repo.folder / "run"
    return [
        *(sys.executable, "stages/04_gen_preferences.py", "--data_repo", repo.address, "--iteration", "0"),
        *("--cache_dir", f"{run}/cache", "--work_dir", f"{run}/work", "--store_timeout", "120", *flags),
    ]  # fmt: skip


def ended_with(repo, ended, code: int, *said: str) -> None:
    assert ended.returncode == code, ended.stderr
    told = (repo.folder / "run/termination.log").read_text()
    for words in said:
        assert words in ended.stderr and words in told
    assert "Traceback" not in ended.stderr and not leaks(repo)


def leaks(repo) -> list[str]:
    files = [path for path in (repo.folder / "run").rglob("*") if path.is_file()]
    return [str(path) for path in files if TOKEN.encode() in path.read_bytes()]


def cpu_seconds() -> float:
    """Of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_stage_commits_once_and_is_skipped_in_three_seconds(repo):
    first = start(repo)
    assert first.returncode == 0, first.stderr
    commit = re.search(r"commit ([0-9a-f]+)", first.stdout)[1]
    snapshot = repo.store().resolve()
    assert snapshot.commit == commit and PREFERENCES in snapshot.files
    assert len((repo.pull([PREFERENCES]) / PREFERENCES).read_text().splitlines()) == 3
    started, used = time.monotonic(), cpu_seconds()
    again = start(repo)
    used, seconds = cpu_seconds() - used, time.monotonic() - started
    print(f"skipped in {seconds:.2f} s, {used:.2f} s of a processor")
    assert again.returncode == 0 and commit in again.stdout and "already" in (again.stdout + again.stderr).lower()
    assert repo.store().resolve().commit == commit and repo.workspaces() == []
    assert used < 3 and seconds < 60  # the rest is waiting for a processor; store_timeout is 120 s
    assert not leaks(repo) and TOKEN not in first.stdout + first.stderr + again.stdout + again.stderr
    content = b"".join(path.read_bytes() for path in repo.pull(["M0"], "all").rglob("*") if path.is_file())
    assert TOKEN.encode() not in content and TOKEN not in str(repo.log())


def test_a_server_that_is_down_is_75_within_store_timeout(fake):
    fake.fake.kill()
    started = time.monotonic()
    ended = start(fake, "--store_timeout", "2")
    assert time.monotonic() - started < 20
    ended_with(fake, ended, 75, fake.address, "store_timeout = 2 s")


def test_a_server_that_hangs_in_the_middle_of_an_upload_is_75_within_store_timeout(fake):
    before = fake.store().resolve().commit
    fake.fake.fail("PUT", "/parts/", "hang_midway", times=None)
    started = time.monotonic()
    ended = start(fake, "--store_timeout", "2")
    assert time.monotonic() - started < 20
    ended_with(fake, ended, 75, fake.address, "store_timeout = 2 s")
    fake.fake.release()
    assert fake.store().resolve().commit == before
    assert start(fake).returncode == 0 and fake.workspaces() == []
    assert [one["message"].count("key: ") for one in fake.log()] == [1, 0, 0]


def test_a_full_disk_of_the_server_is_75(fake):
    fake.fake.fail("PUT", "/parts/", "disk_full", times=None)
    ended_with(fake, start(fake), 75, fake.address, "the disk of the server is full")


def test_a_wrong_token_is_2_with_one_request(fake):
    fake.fake.requests.clear()
    ended = start(fake, OXEN_TOKEN="wrong-token")
    ended_with(fake, ended, 2, fake.address, "OXEN_TOKEN")
    assert len(fake.fake.requests) == 1 and "wrong-token" not in ended.stderr
    fake.fake.requests.clear()
    ended_with(fake, start(fake, OXEN_TOKEN=""), 2, "set OXEN_TOKEN or OXEN_TOKEN_FILE")
    assert len(fake.fake.requests) == 1


def test_a_missing_repository_is_2_with_how_to_make_one(fake):
    fake.address += "-not-there"
    ended_with(fake, start(fake), 2, fake.address, "create_repo")
    assert list(fake.fake.repositories) == ["ns/programs"]


def test_an_address_that_is_none_is_2(fake):
    for address, said in (
        ("oxen://hub.oxen.ai/only-a-namespace", "expected oxen://HOST/NAMESPACE/NAME"),
        ("https://hub.oxen.ai/ns/name", "did you mean oxen://hub.oxen.ai/ns/name"),
    ):
        fake.address = address
        ended_with(fake, start(fake), 2, said)


def test_a_commit_of_somebody_else_after_the_pinned_one_is_2_and_named(fake):
    pinned = fake.store().resolve().commit
    foreign = fake.talk.push({"notes.txt": b"x"}, message="somebody's notes")
    ended_with(fake, start(fake, "--revision", pinned), 2, foreign, "somebody's notes")
    assert fake.store().resolve().head == foreign


def test_a_generated_file_changed_on_the_server_is_2_with_both_hashes(fake):
    assert start(fake).returncode == 0
    recorded = fake.store().resolve().blobs[PREFERENCES]
    fake.talk.push({PREFERENCES: b"{}\n"}, message="by hand")
    ended_with(fake, start(fake), 2, PREFERENCES, recorded, "self-reward accept")


@pytest.mark.parametrize(
    ("request_", "number", "code", "said"),
    [
        (("GET", "/dir/"), signal.SIGTERM, 143, "SIGTERM"),
        (("GET", "/file/.*scores.jsonl"), signal.SIGTERM, 143, "SIGTERM"),
        (("PUT", "/parts/1$"), signal.SIGTERM, 143, "SIGTERM"),
        (("GET", "/file/.*scores.jsonl"), signal.SIGINT, 130, "interrupted"),
        (("PUT", "/parts/1$"), signal.SIGINT, 130, "interrupted"),
    ],
)
def test_the_token_is_in_no_process_list_and_a_signal_is_heard_while_a_server_hangs(fake, request_, number, code, said):
    """oxenai holds the GIL for the whole call: no signal handler runs."""
    fault = fake.fake.fail(*request_, "hang", times=None)
    process = subprocess.Popen(
        command(fake),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it is ignored by what a shell began with &
    )
    end = time.monotonic() + 30
    while not fault.hits and time.monotonic() < end:
        time.sleep(0.02)
    shown = [Path(f"/proc/{process.pid}/cmdline").read_bytes()]
    for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
        shown += [Path(f"/proc/{child}/cmdline").read_bytes() for child in children.read_text().split()]
    assert fault.hits and TOKEN.encode() not in b"".join(shown) and b"04_gen_preferences" in shown[0]
    started = time.monotonic()
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code and said in told and time.monotonic() - started < 20
    assert not leaks(fake)

"""seed_data: the first run's training data is copied from another repository, such as one of the reproduction's."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from self_reward import texts
from self_reward.errors import UserError
from self_reward.method import judge
from self_reward.parameters.stages import Plan
from self_reward.repository import jsonl
from self_reward.run.seed_data import copy_seed_data
from self_reward.store import open_store
from self_reward.store.errors import Auth, NotFound, ServerError
from tests.stages.test_bad_input import write_model
from tests.support.fake_oxen import FakeOxen
from tests.support.running import address

ROOT = Path(__file__).parents[2]
OPTIONS = {"branch": "main", "lock_timeout": 30.0, "store_timeout": 60.0}
IFT = [{"prompt_id": f"i{i}", "prompt": f"write {i}", "completion": "ant", "source": "ift"} for i in range(40)]
EFT = [
    {
        "prompt_id": f"e{i}",
        "prompt": judge.judge_prompt(texts.builtin("rubric", "additive"), f"what is {i}", "bat"),
        "completion": f"It is right.\n\nScore: {i % 6}",
        "source": "eft",
    }
    for i in range(30)
]
SEEDED = ["M0/eval/prompts.jsonl", "M0/train/ift.jsonl", "M0/train/ift_eft.jsonl"]


@pytest.fixture(autouse=True)
def no_home(no_token, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OXEN_CONFIG_DIR", raising=False)


def reproduction(folder: Path) -> Path:
    """A folder as the reproduction leaves it: its file names, its columns, its own generated files."""
    jsonl.write(folder / "M0/train/ift.jsonl", IFT)
    jsonl.write(folder / "M0/train/ift_eft.jsonl", [*IFT, *EFT])
    jsonl.write(folder / "M0/eval/prompts.jsonl", [{"prompt": f"held out {i}"} for i in range(5)])
    jsonl.write(folder / "M0/generated/prompts.jsonl", [{"prompt_id": "g0", "prompt": "a", "source": "generated"}])
    (folder / "M0/models/sft/final_checkpoint").mkdir(parents=True)
    (folder / "M0/models/sft/final_checkpoint/adapter_config.json").write_text("{}")
    (folder / "README.md").write_text("a data set\n")
    return folder


def on_server(url: str, name: str, folder: Path, cache: Path) -> str:
    """The files of `folder` in a repository on a server."""
    where = address(url, name)
    store = open_store(where, cache_dir=cache, **OPTIONS)
    store.create()
    store.put({path.name: path for path in folder.iterdir() if path.name != ".oxen"}, message="a data set")
    return where


def seed(data_repo, seed_data, tmp_path, **changed) -> None:
    scratch = tmp_path / f"scratch{time.monotonic_ns()}"
    options = {**OPTIONS, "cache_dir": str(tmp_path / "cache"), **changed}
    copy_seed_data(Plan(data_repo=str(data_repo), seed_data=str(seed_data), **options), scratch)


def resolved(data_repo, tmp_path):
    return open_store(str(data_repo), cache_dir=tmp_path / "cache", **OPTIONS).resolve()


def contents(data_repo, tmp_path) -> dict[str, bytes]:
    store = open_store(str(data_repo), cache_dir=tmp_path / "cache", **OPTIONS)
    snapshot = store.resolve()
    paths = [path for path in snapshot.files if path[0] != "."]
    folder = tmp_path / f"out{time.monotonic_ns()}"
    store.pull(snapshot, paths, folder)
    return {path: (folder / path).read_bytes() for path in paths}


@pytest.mark.parametrize(("source", "target"), [("folder", "server"), ("server", "folder"), ("server", "server")])
def test_reproductions_repository_is_copied_once_and_plan_passes(server, tmp_path, source, target):
    given = reproduction(tmp_path / "given")
    wanted = {path: (given / path).read_bytes() for path in SEEDED}
    if source == "server":
        given = on_server(server.url, "datasets", given, tmp_path / "cache")
    data_repo = str(tmp_path / "new/data") if target == "folder" else address(server.url, "data")
    write_model(tmp_path / "model")
    flags = {
        "data_repo": data_repo,
        "seed_data": given,
        "base_model": tmp_path / "model",
        "sampler": "transformers",
        "cache_dir": tmp_path / "cache",
        "eft_replay": 0.1,
    }
    if target == "server":
        flags["create_repo"] = "true"
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, ROOT / "stages/plan.py", *words]
    first = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert f"copied 3 files from {given} to {data_repo}" in first.stderr
    assert contents(data_repo, tmp_path) == wanted
    log = resolved(data_repo, tmp_path).log
    assert log[0].message.startswith(f"seed data: M0/train and M0/eval of {given}")
    if source == "server":
        assert resolved(given, tmp_path).commit in log[0].message

    again = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"seed_data is not needed: {data_repo} has M0/train/ift.jsonl, M0/train/ift_eft.jsonl" in again.stderr
    assert [commit.id for commit in resolved(data_repo, tmp_path).log] == [commit.id for commit in log]


def test_source_folder_is_unchanged_and_a_commit_is_cited(tmp_path):
    given = reproduction(tmp_path / "given")
    seed(tmp_path / "a", given, tmp_path)
    assert not (given / ".oxen").exists()
    assert sorted(contents(tmp_path / "a", tmp_path)) == SEEDED
    commit = resolved(given, tmp_path).commit
    seed(tmp_path / "b", given, tmp_path)
    assert commit in resolved(tmp_path / "b", tmp_path).log[0].message
    assert sorted(contents(tmp_path / "b", tmp_path)) == SEEDED


def test_existing_data_is_kept(tmp_path, caplog):
    caplog.set_level(logging.INFO, "self_reward")
    given = reproduction(tmp_path / "given")
    own = tmp_path / "own/M0/train/ift.jsonl"
    own.parent.mkdir(parents=True)
    own.write_text('{"prompt": "mine", "response": "x"}\n')
    seed(tmp_path / "own", given, tmp_path)
    assert list(contents(tmp_path / "own", tmp_path)) == ["M0/train/ift.jsonl"]
    assert "seed_data is not needed" in caplog.text

    held_out = tmp_path / "half/M0/eval/prompts.jsonl"
    held_out.parent.mkdir(parents=True)
    held_out.write_text('{"prompt": "mine"}\n')
    seed(tmp_path / "half", given, tmp_path)
    assert contents(tmp_path / "half", tmp_path)["M0/eval/prompts.jsonl"] == b'{"prompt": "mine"}\n'
    assert sorted(contents(tmp_path / "half", tmp_path)) == SEEDED


def test_missing_seed_data_is_reported_with_existing_folders(tmp_path):
    other = tmp_path / "other"
    jsonl.write(other / "data/train.jsonl", IFT)
    with pytest.raises(NotFound, match=r"seed_data: .*other has no M0/train/\*.jsonl; files are in data$"):
        seed(tmp_path / "new", other, tmp_path)
    with pytest.raises(NotFound, match="seed_data: .*missing is not a folder"):
        seed(tmp_path / "new", tmp_path / "missing", tmp_path)
    with pytest.raises(UserError, match="seed_data.*expected oxen://HOST"):
        seed(tmp_path / "new", "oxen://hub.oxen.ai/only-one-part", tmp_path)
    with FakeOxen() as fake:
        with pytest.raises(NotFound, match="seed_data: .*does not exist"):
            seed(tmp_path / "new", address(fake.url, "missing"), tmp_path)
        (tmp_path / "other/README.md").write_text("x")
        where = on_server(fake.url, "other", other, tmp_path / "cache")
        with pytest.raises(NotFound, match=r"no M0/train/\*.jsonl; files are in its top folder, data$"):
            seed(tmp_path / "new", where, tmp_path)
        fake.fail("GET", "/branches/main", "503", times=None)
        with pytest.raises(ServerError):
            seed(tmp_path / "new", where, tmp_path, store_timeout=1.0)
    assert not (tmp_path / "new").exists()


def test_token_is_sent_only_to_its_server(tmp_path, monkeypatch):
    given = reproduction(tmp_path / "given")
    with FakeOxen(token="of-theirs") as theirs, FakeOxen(token="of-ours") as ours:
        monkeypatch.setenv("OXEN_TOKEN", "of-theirs")
        where = on_server(theirs.url, "datasets", given, tmp_path / "cache")
        monkeypatch.setenv("OXEN_TOKEN", "of-ours")
        target = address(ours.url, "data")
        open_store(target, cache_dir=tmp_path / "cache", **OPTIONS).create()
        before = len(theirs.requests)
        with pytest.raises(Auth) as caught:
            seed(target, where, tmp_path)
        assert "set SEED_OXEN_TOKEN or SEED_OXEN_TOKEN_FILE" in str(caught.value)
        assert not [request for request in theirs.requests[before:] if "Authorization" in request.headers]
        for wrong, said in (
            ("of ours", "SEED_OXEN_TOKEN holds characters"),
            ("of-ours", "the token of SEED_OXEN_TOKEN,"),
        ):
            monkeypatch.setenv("SEED_OXEN_TOKEN", wrong)
            with pytest.raises(UserError, match=f"seed_data: .*{said}") as caught:
                seed(target, where, tmp_path)
            assert "SEED_SEED" not in str(caught.value) and wrong not in str(caught.value)
        monkeypatch.setenv("SEED_OXEN_TOKEN", "of-theirs")
        seed(target, where, tmp_path)
        assert sorted(contents(target, tmp_path)) == SEEDED

        monkeypatch.delenv("SEED_OXEN_TOKEN")  # both on one server
        second = address(ours.url, "second")
        open_store(second, cache_dir=tmp_path / "cache", **OPTIONS).create()
        seed(second, target, tmp_path)
        assert sorted(contents(second, tmp_path)) == SEEDED


def start_seed(data_repo, given, tmp_path) -> subprocess.Popen:
    repositories = {"data_repo": str(data_repo), "seed_data": str(given), "cache_dir": str(tmp_path / "cache")}
    program = (
        "import sys; from pathlib import Path; from self_reward.parameters.stages import Plan; "
        "from self_reward.run.seed_data import copy_seed_data; "
        "copy_seed_data(Plan.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
    )
    words = [json.dumps({**OPTIONS, **repositories}), str(tmp_path / f"scratch{time.monotonic_ns()}")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", program, *words], env=environment, start_new_session=True)


def kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended, and poll() has taken note of it
        os.killpg(process.pid, signal.SIGKILL)  # the Oxen process too
    process.wait()


@pytest.mark.parametrize("moment", [0.15, 0.3, 0.45, "placed", "first"])
def test_a_kill_leaves_all_or_nothing_in_a_folder(tmp_path, moment):
    given = reproduction(tmp_path / "given")
    target = tmp_path / "data"
    process = start_seed(target, given, tmp_path)
    if isinstance(moment, float):
        time.sleep(moment)
    else:
        name = SEEDED[0] if moment == "first" else SEEDED[-1]
        while not (target / name).exists() and process.poll() is None:
            time.sleep(0.0005)
    kill(process)
    store = None
    if target.exists():
        store = open_store(str(target), **OPTIONS)
        try:
            assert sorted(store.resolve().files) == SEEDED
        except NotFound:
            assert not [path for path in target.rglob("*.jsonl") if ".oxen" not in path.parts]
    seed(target, given, tmp_path)
    assert {path: (given / path).read_bytes() for path in SEEDED} == contents(target, tmp_path)
    assert len(resolved(target, tmp_path).log) == 1


def test_a_kill_leaves_all_or_nothing_on_a_server(tmp_path):
    given = reproduction(tmp_path / "given")
    with FakeOxen() as fake:
        where = address(fake.url, "data")
        open_store(where, cache_dir=tmp_path / "cache", **OPTIONS).create()
        for method, path, how in (
            ("PUT", "/parts/1$", "hang"),
            ("POST", "/merge/main$", "hang"),
            ("POST", "/merge/main$", "lost"),
        ):
            fake.fail(method, path, how, times=None)
            seen = len(fake.seen(method, path))
            process = start_seed(where, given, tmp_path)
            while len(fake.seen(method, path)) == seen and process.poll() is None:
                time.sleep(0.005)
            kill(process)
            fake.release()
            try:
                files = [path for path in resolved(where, tmp_path).files if path[0] != "."]
            except NotFound:
                files = []
            assert files in ([], SEEDED), how
            if how == "hang":
                assert not files
        seed(where, given, tmp_path)
        assert {path: (given / path).read_bytes() for path in SEEDED} == contents(where, tmp_path)
        assert [c.message[:9] for c in resolved(where, tmp_path).log if c.message.startswith("seed")] == ["seed data"]


def test_stage_outputs_are_not_copied(tmp_path):
    source = reproduction(tmp_path / "source")
    for name in ("sft", "dpo"):
        (source / f"M0/eval/{name}.json").write_text("{}")
    target = tmp_path / "target"
    seed(target, source, tmp_path)
    assert sorted(open_store(str(target), **OPTIONS).resolve().files) == SEEDED  # 06_evaluate refuses a user's dpo.json

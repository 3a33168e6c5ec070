"""plan as a program, on a repository on a server (the double): what it makes there, and what it does not fetch."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from self_reward import jsonl
from self_reward.store import open_store
from tests.fake_oxen import FakeOxen
from tests.tiny import WORDS, make_tiny_model

ROOT = Path(__file__).parent.parent
WEIGHTS = "models/base/model.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A user's files: seed prompts, and a base model whose weights are above the size that plan looks into."""
    folder = tmp_path_factory.mktemp("plan")
    make_tiny_model(folder / "models/base", hidden=128, layers=4)
    assert (folder / WEIGHTS).stat().st_size > 1 << 20
    (folder / "M0/train").mkdir(parents=True)
    rows = [{"prompt": f"repeat {word}", "response": word} for word in WORDS[:30]]
    jsonl.write(folder / "M0/train/ift.jsonl", rows)
    return folder


@pytest.fixture
def place(tmp_path):
    with FakeOxen() as server:
        address = f"oxen+http://{server.url.removeprefix('http://')}/ns/plan"
        store = open_store(address, branch="main", lock_timeout=1, store_timeout=20, cache_dir=tmp_path / "cache")

        def plan(*words):
            ended = subprocess.run(
                [sys.executable, "stages/plan.py", "--data_repo", address, "--base_model", "oxen:models/base", "--sft",
                 "never", "--cache_dir", tmp_path / "cache", "--store_timeout", "20", *words],
                cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            assert "Traceback" not in ended.stderr
            return ended.returncode, ended.stdout, ended.stderr

        yield SimpleNamespace(server=server, address=address, store=store, plan=plan, work=tmp_path / "cache/work")


def put(place, files, **changed):
    """Commit the files of `files`, less or other than they are where `changed` says so."""
    found = {path.relative_to(files).as_posix(): path for path in files.rglob("*") if path.is_file()}
    return place.store.put({**found, **changed}, message="user data")


def test_a_repository_is_made_only_when_asked_for(place):
    code, _, err = place.plan()
    assert code == 2 and f"{place.address} does not exist" in err and "--create_repo" in err
    assert not place.server.repositories
    code, _, err = place.plan("--create_repo", "--revision", "x")
    assert code == 2 and "revision is for one stage" in err and not place.server.repositories
    code, _, err = place.plan("--create_repo")
    assert code == 2 and f"plan: created {place.address}, private" in err and "is empty" in err
    assert len(place.server.repositories) == 1
    assert [one.path for one in place.server.seen("POST", "/repos$")] == ["/api/repos"]


def test_the_run_is_pinned_to_what_plan_has_read_and_weights_are_not_fetched(place, files):
    place.store.create()
    commit = put(place, files)
    code, out, err = place.plan("--create_repo")
    assert code == 0 and re.search(rf" commit={commit}$", out, re.M), err
    read = [one.path for one in place.server.requests if one.method == "GET"]
    assert [path for path in read if path.endswith("models/base/config.json")]
    assert not [path for path in read if path.endswith(WEIGHTS)]
    assert not place.work.exists() or not list(place.work.iterdir())


def test_what_is_wrong_with_a_base_model_on_the_server_is_found(place, files, tmp_path):
    place.store.create()
    pointer = tmp_path / "pointer"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n")
    broken = tmp_path / "broken"
    broken.write_text("{")
    put(place, files, **{WEIGHTS: pointer, "models/base/config.json": broken})
    code, _, err = place.plan()
    assert code == 2, err
    assert f"error: {WEIGHTS}: a Git LFS pointer" in err and "error: models/base/config.json: not JSON" in err

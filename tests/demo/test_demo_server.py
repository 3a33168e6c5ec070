"""The demo's data on a server is that of a folder, byte for byte."""

from pathlib import Path

import pytest

from demo import make_data, table
from self_reward.errors import UserError
from self_reward.store import open_store
from tests.demo.test_demo_table import write
from tests.support.running import address

SIZES = {"HELD_OUT": 20, "HELD_OUT_GROUPS": 5, "INSTRUCTIONS": 60, "JUDGEMENTS": 80, "NEW_TASKS": 10}


def test_demo_data_is_pushed_to_a_server_once_and_completely(server, tmp_path, monkeypatch, capsys):
    for name, value in {**SIZES, "REPETITIONS": 10, "COMPARISONS": 10}.items():
        monkeypatch.setattr(make_data, name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    where = address(server.url, "demo")
    assert make_data.make(tmp_path / "local", 3)
    assert make_data.make_on_server(where, 3)
    assert "created, private" in capsys.readouterr().out
    store = open_store(where, branch="main", lock_timeout=0, store_timeout=30, cache_dir=tmp_path / "cache")
    snapshot = store.resolve()
    store.pull(snapshot, list(snapshot.files), tmp_path / "copy")
    assert files(tmp_path / "copy") == files(tmp_path / "local") and len(files(tmp_path / "copy")) > 8

    assert not make_data.make_on_server(where, 3)
    assert store.resolve().head == snapshot.head
    with pytest.raises(UserError, match="holds the demo's data of seed 3, not 4"):
        make_data.make_on_server(where, 4)

    write(tmp_path / "run", M0_sft=4.0, M0_dpo=4.2)
    store.put({"M0/eval": tmp_path / "run/M0/eval"}, message="measured")
    table.fetch(where, tmp_path / "fetched")
    assert files(tmp_path / "fetched") == files(tmp_path / "run")

    (tmp_path / "rubric").write_text("another")
    store.put({"rubrics/list_tasks.txt": tmp_path / "rubric"}, message="changed")
    with pytest.raises(UserError, match="rubrics/list_tasks.txt is missing or changed"):
        make_data.make_on_server(where, 3)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

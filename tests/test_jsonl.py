import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from self_reward import jsonl
from self_reward.errors import UserError


def problems_of(path, required=None):
    with pytest.raises(UserError) as caught:
        list(jsonl.read(path, required))
    return caught.value.problems


def test_rows_come_back_as_written(tmp_path):
    rows = [{"a": "é\u2028\n", "b": [1, None]}, {"a": "", "b": []}]
    assert jsonl.write(tmp_path / "x" / "f.jsonl", rows) == 2
    assert list(jsonl.read(tmp_path / "x" / "f.jsonl", {"a": str, "b": list})) == rows
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["f.jsonl"]


def test_every_bad_row_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"a": "x"}\nnot json\n[1]\n{"b": 1}\n{"a": 1}\n\xff\n\n{"a": true}\n')
    found = problems_of(path, {"a": str})
    assert [problem.split(": ")[0] for problem in found] == [f"{path}:{line}" for line in (2, 3, 4, 5, 6, 8)]
    assert "missing column a; found b" in found[2]
    assert "a is int, expected str" in found[3]
    assert "not UTF-8" in found[4]


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}\n')
    assert list(jsonl.read(path)) == [{"a": "\U0001f600"}]
    path.write_text('{"a": "\\ud800"}\n')
    assert "surrogate" in problems_of(path)[0]


def test_a_million_bad_rows_do_not_print_a_million_lines(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("x\n" * 1000)
    found = problems_of(path)
    assert len(found) == jsonl.MOST_PROBLEMS + 1
    assert "980 more rows" in found[-1]


def test_a_row_of_ten_megabytes_is_refused(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps({"a": "x" * jsonl.LONGEST_ROW}))
    assert "a row of 10000009 bytes" in problems_of(path)[0]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.jsonl"
    jsonl.write(path, [{"a": 1}])

    def rows():
        yield {"a": 2}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        jsonl.write(path, rows())
    assert list(jsonl.read(path)) == [{"a": 1}]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_as_the_users_error(tmp_path, content):
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    try:
        rows = list(jsonl.read(path, {"a": str}))
    except UserError:
        return
    assert all(isinstance(row["a"], str) for row in rows)

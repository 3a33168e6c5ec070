import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from self_reward.errors import UserError
from self_reward.repository import jsonl
from self_reward.rows import Row


class Text(Row):
    a: str


class Number(Row):
    a: float


class Whole(Row):
    a: int

    def problem(self):
        return "negative" if self.a < 0 else None


class Optional(Row):
    a: float | None
    b: list[float | None] | None = None
    c: int = 3


class Carrying(Row, dict=True, forbid_unknown_fields=True):
    a: str

    @property
    def extra(self):
        return self.__dict__


def problems_of(path, kind):
    with pytest.raises(UserError) as caught:
        list(jsonl.read(path, kind))
    return caught.value.problems


def test_rows_come_back_as_written(tmp_path):
    rows = [{"a": "é\u2028\n", "b": [1, None]}, {"a": "", "b": []}]
    assert jsonl.write(tmp_path / "x" / "f.jsonl", rows) == 2
    assert list(jsonl.read(tmp_path / "x" / "f.jsonl")) == rows
    assert list(jsonl.read(tmp_path / "x" / "f.jsonl", Text)) == [Text("é\u2028\n"), Text("")]
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["f.jsonl"]


def test_every_bad_row_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"a": "x"}\nnot json\n[1]\n{"b": 1}\n{"a": 1}\n\xff\n\n{"a": true}\n')
    found = problems_of(path, Text)
    assert [problem.split(": ")[0] for problem in found] == [f"{path}:{line}" for line in (2, 3, 4, 5, 6, 8)]
    assert "missing column a; found b" in found[2]
    assert "a is int, expected str" in found[3]
    assert "not UTF-8" in found[4]


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}\n')
    assert list(jsonl.read(path)) == [{"a": "\U0001f600"}]
    path.write_text('{"a": "\\ud800"}\n')
    assert "surrogate" in problems_of(path, dict)[0]


def test_a_million_bad_rows_do_not_print_a_million_lines(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("x\n" * 1000)
    found = problems_of(path, dict)
    assert len(found) == jsonl.MOST_PROBLEMS + 1
    assert "980 more rows" in found[-1]


def test_a_row_of_ten_megabytes_is_refused(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps({"a": "x" * jsonl.LONGEST_ROW}))
    assert "a row of 10000009 bytes" in problems_of(path, dict)[0]


def test_a_row_of_any_length_is_refused_without_being_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "LONGEST_ROW", 100)
    path = tmp_path / "f.jsonl"
    long = b'{"a": "' + b"x" * 3_000_000 + b'"}'
    path.write_bytes(b'{"a": "first"}\n' + long + b'\n{"a": 1}\n' + long)
    assert problems_of(path, Text) == [
        f"{path}:2: a row of {len(long)} bytes; the longest allowed is 100",
        f"{path}:3: a is int, expected str",
        f"{path}:4: a row of {len(long)} bytes; the longest allowed is 100",
    ]
    just = b'{"a": "' + b"x" * 91 + b'"}'  # 100 bytes
    for end in (b"", b"\n", b"\r\n"):
        path.write_bytes(just + end)
        assert len(list(jsonl.read(path))) == 1
    path.write_bytes(just.replace(b"x", b"xx", 1) + b"\n")
    assert "a row of 101 bytes" in problems_of(path, dict)[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "Infinity is not a JSON number"),
        (b'{"a": 1e999}', "not JSON (Number out of range"),
        (b'{"a": "x"', "not JSON (Input data was truncated)"),
        (b"[", "not JSON: it continues on the next line; write each row as one object on one line"),
        (b' {"a": "x", ', "not JSON: it continues on the next line"),
        (b'{"a": "x"} {}', "not JSON (JSON is malformed: trailing characters"),
        (b'{"a": "\\udc00"}', "half of a surrogate pair"),
        (b'{"a": "x\xffy"}', "not UTF-8 at byte 8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8 at byte 7"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": ' * 50_000, "nested too deep"),
        (b'["a"]', "a JSON list"),
        (b"null", "a JSON null"),
        (b'"a"', "a JSON str"),
        (b"{}", "missing column a; found no column"),
        (b'{"a": null}', "a is null, expected str"),
        (b'{"a": false}', "a is bool, expected str"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(tmp_path, line, said):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"a": ""}\n' + line)
    assert said in problems_of(path, Text)[0] and f"{path}:2: " in problems_of(path, Text)[0]


def test_ends_of_lines_and_of_the_file_do_not_matter_and_an_int_is_a_float(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2.5}\n{"a": 3}')
    assert [row.a for row in jsonl.read(path, Number)] == [1, 2.5, 3]
    assert [row.a for row in jsonl.read(path, Optional)] == [1, 2.5, 3]
    assert "a is float, expected int" in problems_of(path, Whole)[0]
    path.write_bytes(b"")
    assert list(jsonl.read(path, Text)) == []


def test_a_wrong_value_is_reported_with_file_and_line_among_the_other_problems(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": -9}\n\n{"b": 1}\n{"a": -9, "b": 1}\n{"a": 1}\n')
    assert [problem.removeprefix(f"{path}:") for problem in problems_of(path, Whole)] == [
        "1: negative",
        "3: missing column a; found b",
        "4: negative",
    ]


def test_what_may_be_missing_may_be_null_and_wrong_types_are_named_with_their_place(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"a": null}\n{"a": 1, "b": null, "c": null}\n{"c": 4, "b": [1, null], "a": -0.5}\n')
    assert list(jsonl.read(path, Optional)) == [Optional(None), Optional(1), Optional(-0.5, [1, None], 4)]
    path.write_bytes(b'{"a": "1", "b": 3, "c": true}\n{"a": 1, "b": [null, "x"]}\n{"a": 1' + b"0" * 400 + b"}\n{}\n")
    assert [problem.removeprefix(f"{path}:") for problem in problems_of(path, Optional)] == [
        "1: a is str, expected float or null; b is int, expected list or null; c is bool, expected int",
        "2: b[1] is str, expected float or null",
        "3: a: Number out of range",
        "4: missing column a; found no column",
    ]


def test_columns_that_a_class_does_not_name_are_allowed_and_looked_at(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"x": [1, {"y": 2}], "a": "z"}\n')
    assert list(jsonl.read(path, Text)) == [Text("z")]
    for line, problem in (
        (b'{"x": "\xff", "a": "z"}', "not UTF-8 at byte 7"),
        (b'{"x": "\\ud800", "a": "z"}', "half of a surrogate pair"),
        (b'{"x": NaN, "a": "z"}', "NaN is not a JSON number"),
    ):
        path.write_bytes(line)
        for kind in (Text, Carrying, dict):
            assert problem in problems_of(path, kind)[0]


def test_columns_that_are_carried_are_written_again_after_the_others(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"x": [1, {"y": 2}], "a": "z", "a b": null}\n{"a": "y"}\n')
    rows = list(jsonl.read(path, Carrying))
    assert [row.extra for row in rows] == [{"x": [1, {"y": 2}], "a b": None}, {}]
    jsonl.write(path, rows)
    assert path.read_bytes() == b'{"a":"z","x":[1,{"y":2}],"a b":null}\n{"a":"y"}\n'


def test_bad_rows_of_a_generated_file_are_left_out_and_counted_up_to_a_bound(tmp_path):
    path = tmp_path / "f.jsonl"
    good = [{"a": i} for i in range(100)]
    jsonl.write(path, good)
    with open(path, "ab") as file:
        file.write(b'\xff\nx\n[]\n{}\n{"a": ""}\n{"a": -1}\n{"a": -2}\n')

    def read(share):
        bad = jsonl.Bad()
        return bad, jsonl.read_generated(path, Whole, bad, max_bad_rows=share)

    bad, rows = read(7 / 107)
    assert [{"a": row.a} for row in rows] == good
    assert bad.rows == 107 and bad.reasons == {
        "not_utf8": 1, "not_json": 1, "not_an_object": 1, "missing_column": 1, "wrong_type": 1, "wrong_value": 2,
    }  # fmt: skip
    assert [place.split(": ")[0] for place in bad.places] == [f"{path}:{line}" for line in (101, 102, 103)]
    _, rows = read(6.9 / 107)
    with pytest.raises(UserError, match="7 of 107 rows are bad .wrong_value 2, .*The first: .*f.jsonl:101: not UTF-8"):
        list(rows)


def test_a_generated_file_without_a_good_row_is_an_error(tmp_path):
    path = tmp_path / "f.jsonl"
    for content, said in ((b"", "has no rows"), (b"\n", "has no rows"), (b"x\n", "1 of 1 rows are bad")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            list(jsonl.read_generated(path, dict, jsonl.Bad(), max_bad_rows=0.99))


def test_half_a_pair_cannot_be_written(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        jsonl.write(tmp_path / "f.jsonl", [{"a": "\ud800"}])
    assert not (tmp_path / "f.jsonl").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.jsonl"
    jsonl.write(path, [{"a": 1}])

    def rows():
        yield {"a": 2}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        jsonl.write(path, rows())
    assert list(jsonl.read(path)) == [{"a": 1}]
    assert [p.name for p in tmp_path.iterdir()] == ["f.jsonl"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_as_the_users_error(tmp_path, content):
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    try:
        rows = list(jsonl.read(path, Text))
    except UserError:
        return
    assert all(isinstance(row.a, str) for row in rows)

"""Files of one JSON object per line: read with every problem named by file and line, written whole or not at all.

msgspec reads and writes a million rows of 700 bytes in a few seconds. What it cannot read is read again, slowly, to
find out what is wrong.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from self_reward import files
from self_reward.errors import UserError

MOST_PROBLEMS = 20  # enough to see the pattern; a file of a million bad rows must not print a million lines
MOST_PLACES = 3
LONGEST_ROW = 10_000_000  # bytes, without the end of the line
REASONS = ("too_long", "not_utf8", "not_json", "not_an_object", "missing_column", "wrong_type", "wrong_value")
"""What can be wrong with a row, for counting."""

Row = dict[str, Any]
Check = Callable[[Row], str | None]

_BOM = b"\xef\xbb\xbf"
_HALF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_NO_NUMBER = re.compile(rb"[:,\[\s]-?(NaN|Infinity)")


@dataclass
class Bad:
    """The rows of a file that were left out: of `rows` in all, how many by reason, and where the first ones are."""

    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())
        return f"{self.reasons.total()} of {self.rows} rows are bad ({reasons}). The first: {'; '.join(self.places)}"


def read(path: Path, required: dict[str, Any] | None = None, check: Check | None = None) -> Iterator[Row]:
    """Yield the rows of `path`. `required` maps a column to the type (or tuple of types) its values must have; an int
    is a float too. `check(row)` says what else is wrong with a row, or None.

    All problems of the file are collected and raised together, as a UserError, once its end is reached.
    """
    return (row for _, row in read_numbered(path, required, check))


def read_numbered(
    path: Path, required: dict[str, Any] | None = None, check: Check | None = None
) -> Iterator[tuple[int, Row]]:
    """As `read`, each row with the number of its line."""
    problems: list[str] = []
    left_out = 0
    for number, row, _, problem in _rows(path, required or {}, check):
        if not problem:
            if not problems:
                yield number, row
        elif len(problems) < MOST_PROBLEMS:
            problems.append(f"{path}:{number}: {problem}")
        else:
            left_out += 1
    if left_out:
        problems.append(f"{path}: and {left_out} more rows with problems")
    if problems:
        raise UserError(problems)


def read_generated(
    path: Path, required: dict[str, Any], bad: Bad, *, max_bad_rows: float, check: Check | None = None
) -> Iterator[Row]:
    """Yield the good rows of a big file that a stage wrote; the bad ones are counted in `bad`.

    When the file's end is reached and it has no rows, or more than `max_bad_rows` (a share, below 1) of them are bad,
    a UserError says so. The share is not known earlier: commit nothing before the last row has been asked for.
    """
    for number, row, reason, problem in _rows(path, required, check):
        bad.rows += 1
        if not problem:
            yield row
            continue
        bad.reasons[reason] += 1
        if len(bad.places) < MOST_PLACES:
            bad.places.append(f"{path}:{number}: {problem}")
    if not bad.rows:
        raise UserError(f"{path} has no rows; run the stage that writes it again, with --force")
    if bad.reasons.total() / bad.rows > max_bad_rows:
        raise UserError(
            f"{path}: {bad}. Allowed is a share of {max_bad_rows:g} (max_bad_rows): run the stage that writes this "
            "file again with --force, or raise max_bad_rows"
        )


def _rows(path: Path, required: dict[str, Any], check: Check | None) -> Iterator[tuple[int, Row, str, str]]:
    """(line number, row, "", "") or (line number, {}, reason, problem) for each line that is not blank."""
    decode = msgspec.json.Decoder().decode
    columns = [(name, _types(kind)) for name, kind in required.items()]
    with open(path, "rb") as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_ROW + 2), b""), 1):
            try:
                row = decode(line)
                for name, kinds in columns:
                    if type(row[name]) not in kinds:
                        break
                else:
                    if type(row) is dict and len(line) <= LONGEST_ROW:
                        if check is not None and (problem := check(row)):
                            yield number, {}, "wrong_value", problem
                        else:
                            yield number, row, "", ""
                        continue
            except (ValueError, KeyError, TypeError, RecursionError):
                pass
            if not line.strip() and len(line) <= LONGEST_ROW:
                continue
            row, reason, problem = _slowly(line, file, required)
            if not problem and check is not None and (problem := check(row) or ""):
                row, reason = {}, "wrong_value"
            yield number, row, reason, problem


def _slowly(line: bytes, file: Any, required: dict[str, Any]) -> tuple[Row, str, str]:
    """The row of a line that msgspec did not read, and what is wrong with it: nothing where it only begins with a byte
    order mark."""
    ended = line.endswith(b"\n")
    length = len(line.rstrip(b"\r\n"))
    while len(line) == LONGEST_ROW + 2 and not ended:  # the rest of it, which must not fill the memory
        rest = file.readline(1 << 20)
        ended = not rest or rest.endswith(b"\n")
        length += len(rest.rstrip(b"\r\n"))
    if length > LONGEST_ROW:
        return {}, "too_long", f"a row of {length} bytes; the longest allowed is {LONGEST_ROW}"
    line = line.removeprefix(_BOM)
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return {}, "not_utf8", f"not UTF-8 at byte {error.start} of the line; save the file as UTF-8"
    try:
        row = msgspec.json.decode(line)
    except ValueError as error:
        if _HALF_A_PAIR.search(line) and _is_json_without_it(line):
            problem = "half of a surrogate pair (\\ud800 to \\udfff alone) stands for no character; remove it"
        elif found := _NO_NUMBER.search(line):
            problem = f"not JSON: {found[1].decode()} is not a JSON number; write null, or remove the row"
        elif line.lstrip().startswith((b"[", b"{")) and line.rstrip().endswith((b"[", b"{", b",")):
            problem = "not JSON: it continues on the next line; write each row as one object on one line (jq -c does)"
        else:
            problem = f"not JSON ({error}); each line must be one JSON object"
        return {}, "not_json", problem
    except RecursionError:
        return {}, "not_json", "JSON nested too deep"
    if not isinstance(row, dict):
        return {}, "not_an_object", f"a JSON {_type_name(type(row))}; each line must be one JSON object"
    missing = [name for name in required if name not in row]
    if missing:
        return {}, "missing_column", f"missing column {', '.join(missing)}; found {shown_columns(row)}"
    wrong = [
        f"{name} is {_type_name(type(row[name]))}, expected {_type_name(kind)}"
        for name, kind in required.items()
        if type(row[name]) not in _types(kind)
    ]
    return (row, "", "") if not wrong else ({}, "wrong_type", "; ".join(wrong))


def _is_json_without_it(line: bytes) -> bool:
    """Whether the line is JSON once its escapes of surrogates, each six characters long, are another character."""
    try:
        msgspec.json.decode(re.sub(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}", b"?", line))
    except (ValueError, RecursionError):
        return False
    return True


def shown_columns(row: Row) -> str:
    """The names of a row's columns, for a message."""
    return ", ".join(list(row)[:20])[:300] or "no column"


def _types(kind: Any) -> frozenset[type]:
    """The exact types of JSON values that are a `kind`: an int is a float too, and true is neither."""
    kinds = set(kind if isinstance(kind, tuple) else (kind,))
    return frozenset(kinds | {int}) if float in kinds else frozenset(kinds)


def _type_name(kind: Any) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join("null" if k is type(None) else k.__name__ for k in kinds)


def write(path: Path, rows: Iterable[Row]) -> int:
    """Write `rows` to `path`, all of them or nothing; returns how many."""
    encode = msgspec.json.Encoder().encode
    count = 0
    with files.whole_file(path) as part, open(part, "wb") as file:
        for row in rows:
            file.write(encode(row))
            file.write(b"\n")
            count += 1
    return count

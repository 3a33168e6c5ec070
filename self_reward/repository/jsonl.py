"""Files of one JSON object per line: read with every problem named by file and line, written whole or not at all.

msgspec reads a line straight into its row class, a million rows of 700 bytes in a few seconds. A line that it cannot
read in this way is read again slowly, to say what is wrong with it.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, TypeVar, overload

import msgspec

from self_reward import files
from self_reward.errors import UserError
from self_reward.rows import Row

MOST_PROBLEMS = 20  # enough to see the pattern; a file of a million bad rows must not print a million lines
MOST_PLACES = 3
LONGEST_ROW = 10_000_000  # bytes, without the end of the line

R = TypeVar("R", bound=Row | dict[str, Any])

_BOM = b"\xef\xbb\xbf"
_HALF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_A_NUMBER = re.compile(rb"[:,\[\s]-?(NaN|Infinity)")
_WRONG_TYPE = re.compile(r"Expected `(.+)`, got `(.+)`")  # what msgspec says
_PLACE = re.compile(r" - at `\$(.+)`$")


@dataclass
class Bad:
    """The rows of a file that were left out: of `rows` in all, how many by reason, and where the first ones are."""

    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())
        return f"{self.reasons.total()} of {self.rows} rows are bad ({reasons}). The first: {'; '.join(self.places)}"


@dataclass
class Problem(Exception):
    """What is wrong with a line: the kind of problem, for counting, and a text."""

    reason: str
    text: str


@overload
def read(path: Path) -> Iterator[dict[str, Any]]: ...
@overload
def read(path: Path, kind: type[R]) -> Iterator[R]: ...
def read(path: Path, kind: Any = dict) -> Iterator[Any]:
    """Yield the rows of `path`, each as a `kind`: a class of rows.py, or a dict of whatever columns it has.

    All problems of the file are collected and raised together, as a UserError, once its end is reached.
    """
    return (row for _, row in read_numbered(path, kind))


def read_numbered(path: Path, kind: type[R]) -> Iterator[tuple[int, R]]:
    """As `read`, each row with the number of its line."""
    problems: list[str] = []
    left_out = 0
    for number, row in _rows(path, kind):
        if not isinstance(row, Problem):
            if not problems:
                yield number, row
        elif len(problems) < MOST_PROBLEMS:
            problems.append(f"{path}:{number}: {row.text}")
        else:
            left_out += 1
    if left_out:
        problems.append(f"{path}: and {left_out} more rows with problems")
    if problems:
        raise UserError(problems)


def read_generated(path: Path, kind: type[R], bad: Bad, *, max_bad_rows: float) -> Iterator[R]:
    """Yield the good rows of a big file that a stage wrote; the bad ones are counted in `bad`.

    When the file's end is reached and it has no rows, or more than `max_bad_rows` (a share, below 1) of them are bad,
    a UserError says so. The share is not known earlier: commit nothing before the last row has been asked for.
    """
    for number, row in _rows(path, kind):
        bad.rows += 1
        if not isinstance(row, Problem):
            yield row
            continue
        bad.reasons[row.reason] += 1
        if len(bad.places) < MOST_PLACES:
            bad.places.append(f"{path}:{number}: {row.text}")
    if not bad.rows:
        raise UserError(f"{path} has no rows; run the stage that writes it again, with --force")
    if bad.reasons.total() / bad.rows > max_bad_rows:
        raise UserError(
            f"{path}: {bad}. Allowed is a share of {max_bad_rows:g} (max_bad_rows): run the stage that writes this "
            "file again with --force, or raise max_bad_rows"
        )


def _rows(path: Path, kind: type[R]) -> Iterator[tuple[int, R | Problem]]:
    """(line number, row or what is wrong with it) for each line that is not blank."""
    decode: Callable[[bytes], R] = msgspec.json.Decoder(kind).decode
    problem_of: Callable[[R], str | None] = getattr(kind, "problem", lambda row: None)
    with open(path, "rb") as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_ROW + 2), b""), 1):
            try:
                row = decode(line)
                line.decode()  # msgspec skips columns that the class does not name, without a look at their bytes
                if len(line) <= LONGEST_ROW and not problem_of(row):
                    yield number, row
                    continue
            except (ValueError, RecursionError):
                pass
            if not line.strip() and len(line) <= LONGEST_ROW:
                continue
            try:
                yield number, _shaped(_columns(line, file), kind)
            except Problem as problem:
                yield number, problem


def _columns(line: bytes, file: IO[bytes]) -> dict[str, Any]:
    """The JSON object of a line that was not read at once. Raises Problem."""
    ended = line.endswith(b"\n")
    length = len(line.rstrip(b"\r\n"))
    while len(line) == LONGEST_ROW + 2 and not ended:  # the rest of it, which must not fill the memory
        rest = file.readline(1 << 20)
        ended = not rest or rest.endswith(b"\n")
        length += len(rest.rstrip(b"\r\n"))
    if length > LONGEST_ROW:
        raise Problem("too_long", f"a row of {length} bytes; the longest allowed is {LONGEST_ROW}")
    line = line.removeprefix(_BOM)
    try:
        line.decode()
    except UnicodeDecodeError as error:
        raise Problem("not_utf8", f"not UTF-8 at byte {error.start} of the line; save the file as UTF-8") from None
    try:
        columns = msgspec.json.decode(line)
    except ValueError as error:
        if _HALF_A_PAIR.search(line) and _is_json_without_it(line):
            text = "half of a surrogate pair (\\ud800 to \\udfff alone) stands for no character; remove it"
        elif found := _NOT_A_NUMBER.search(line):
            text = f"not JSON: {found[1].decode()} is not a JSON number; write null, or remove the row"
        elif line.lstrip().startswith((b"[", b"{")) and line.rstrip().endswith((b"[", b"{", b",")):
            text = "not JSON: it continues on the next line; write each row as one object on one line (jq -c does)"
        else:
            text = f"not JSON ({error}); each line must be one JSON object"
        raise Problem("not_json", text) from None
    except RecursionError:
        raise Problem("not_json", "JSON nested too deep") from None
    if not isinstance(columns, dict):
        found_type = "null" if columns is None else type(columns).__name__
        raise Problem("not_an_object", f"a JSON {found_type}; each line must be one JSON object")
    return columns


def _is_json_without_it(line: bytes) -> bool:
    """Whether the line is JSON once its escapes of surrogates, each six characters long, are another character."""
    try:
        msgspec.json.decode(re.sub(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}", b"?", line))
    except (ValueError, RecursionError):
        return False
    return True


def _shaped(columns: dict[str, Any], kind: Any) -> Any:
    """The row of these columns. Raises Problem with all columns that are missing, or all that have another type."""
    if kind is dict:
        return columns
    fields = _fields(kind)
    known = {
        name: columns[name]
        for name, column in fields.items()
        if name in columns and (column.required or columns[name] is not None)
    }
    other_names = kind.OTHER_NAMES
    if missing := [
        f"{name} (or {other_names[name]})" if name in other_names else name
        for name, column in fields.items()
        if name not in known and (column.required or name in other_names) and other_names.get(name) not in known
    ]:
        shown = ", ".join(list(columns)[:20])[:300] or "no column"
        raise Problem("missing_column", f"missing column {', '.join(missing)}; found {shown}")
    try:
        row = msgspec.convert(known, kind)
    except msgspec.ValidationError as error:
        wrong = [_type_problem(name, value, fields[name].type) for name, value in known.items()]
        raise Problem("wrong_type", "; ".join(filter(None, wrong)) or str(error)) from None
    row.extra.update((name, value) for name, value in columns.items() if name not in fields)
    if text := row.problem():
        raise Problem("wrong_value", text)
    return row


@cache
def _fields(kind: type[Row]) -> dict[str, msgspec.structs.FieldInfo]:
    return {column.name: column for column in msgspec.structs.fields(kind)}


def _type_problem(name: str, value: Any, kind: Any) -> str | None:
    """What in column `name` is not a `kind`, and where."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        said, place = _PLACE.sub("", str(error)), _PLACE.search(str(error))
        name += place[1] if place else ""
        if not (types := _WRONG_TYPE.fullmatch(said)):
            return f"{name}: {said.replace('Object missing required field', 'missing')}"
        expected, found = (words.replace("array", "list").replace("object", "dict") for words in types.groups())
        return f"{name} is {found}, expected {expected.replace(' | ', ' or ')}"
    return None


def write(path: Path, rows: Iterable[Row | dict[str, Any]]) -> int:
    """Write `rows` to `path`, all of them or nothing; returns how many."""
    encode = msgspec.json.Encoder().encode
    count = 0
    with files.whole_file(path) as part, open(part, "wb") as file:
        for row in rows:
            if not isinstance(row, dict) and row.extra:
                row = {**msgspec.to_builtins(row), **row.extra}
            file.write(encode(row))
            file.write(b"\n")
            count += 1
    return count

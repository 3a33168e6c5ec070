"""Files of one JSON object a line: read with every problem named by file and line, written whole or not at all."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from self_reward.errors import UserError

MOST_PROBLEMS = 20  # enough to see the pattern; a file of a million bad rows must not print a million lines
LONGEST_ROW = 10_000_000  # bytes


def read(path: Path, required: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of `path`. `required` maps a column to the type (or tuple of types) its values must have.

    All problems of the file are collected and raised together, as a UserError, once its end is reached.
    """
    problems: list[str] = []
    left_out = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row, problem = _parse(line, required or {})
            if problem is None:
                if not problems:
                    yield row
            elif len(problems) < MOST_PROBLEMS:
                problems.append(f"{path}:{number}: {problem}")
            else:
                left_out += 1
    if left_out:
        problems.append(f"{path}: and {left_out} more rows with problems")
    if problems:
        raise UserError(problems)


def _parse(line: bytes, required: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    if len(line) > LONGEST_ROW:
        return {}, f"a row of {len(line)} bytes; the longest allowed is {LONGEST_ROW}"
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if b"\\ud" in line or b"\\uD" in line:  # half of a pair stands for no character and could not be written again
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return {}, "half of a surrogate pair (\\ud800 to \\udfff alone) stands for no character; remove it"
    except UnicodeDecodeError as error:
        return {}, f"not UTF-8 at byte {error.start} of the line; save the file as UTF-8"
    except ValueError as error:
        return {}, f"not JSON ({error}); each line must be one JSON object"
    except RecursionError:
        return {}, "JSON nested too deep"
    if not isinstance(row, dict):
        return {}, f"a JSON {type(row).__name__}; each line must be one JSON object"
    missing = [name for name in required if name not in row]
    if missing:
        return {}, f"missing column {', '.join(missing)}; found {', '.join(row) or 'no column'}"
    wrong = [
        f"{name} is {type(row[name]).__name__}, expected {_type_name(kind)}"
        for name, kind in required.items()
        if not isinstance(row[name], kind) or (isinstance(row[name], bool) and kind is not bool)
    ]
    return row, "; ".join(wrong) or None


def _type_name(kind: Any) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join("null" if k is type(None) else k.__name__ for k in kinds)


def write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write `rows` to `path` by way of a temporary file and a rename; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    count = 0
    with open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return count

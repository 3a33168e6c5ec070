"""What holds for every input of the parsers and readers, whatever a model or a person wrote: one function a claim, used
by test_properties.py (hypothesis) and by fuzz/ (atheris). Each raises AssertionError where the claim fails; anything
else that comes out is a bug too."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from self_reward.errors import UserError
from self_reward.method import judge, prompts
from self_reward.method.asking import Sample
from self_reward.models import policy
from self_reward.parameters import flat, sources, stages
from self_reward.repository import jsonl
from self_reward.rows import Row

REASONS = {"too_long", "not_utf8", "not_json", "not_an_object", "missing_column", "wrong_type", "wrong_value"}
# no digit, no number word, no "score"; it ends the line that stands before it
PROSE = "\nAll in all this says it well."


def seconds(function: Callable[[str], object], text: str) -> float:
    """CPU time of one call."""
    start = time.process_time()
    function(text)
    return time.process_time() - start


def assert_linear(function: Callable[[str], object], head: str, middle: str, tail: str, size: int = 40_000) -> None:
    """`middle` repeated to `size` characters costs milliseconds when linear and seconds when quadratic. A slow call is
    measured again at a quarter of the size: what is merely slow (a busy machine) then takes about a quarter."""
    text = head + middle * (size // max(len(middle), 1)) + tail
    if seconds(function, text) < 0.5:
        return
    slow = min(seconds(function, text) for _ in range(2))
    quarter = seconds(function, head + middle * (size // 4 // max(len(middle), 1)) + tail)
    assert slow < 0.5 or slow < 8 * quarter, (
        f"{slow:.1f} s for {len(text)} characters of {head!r}, {middle!r}, {tail!r}"
    )


def score(text: str, low: float = 0, high: float = 5) -> None:
    """parse_score and score_prefix: a score of the scale or None; prose around a stated score changes nothing; a
    judgement cut before its score reads the digit that is put there."""
    found = judge.parse_score(text, low, high)
    assert found is None or low <= found <= high, found
    stated = judge._last_stated(text.replace("\u00a0", " ")) is not None
    if stated:
        assert judge.parse_score("It says much, and well.\n" + text, low, high) == found
        if found is not None:
            assert judge.parse_score(text + PROSE, low, high) == found
    prefix = judge.score_prefix(text)
    for digit in range(int(low), min(int(high), 9) + 1):
        read = judge.parse_score(f"{prefix}{digit}", low, high)
        assert read == digit, f"{prefix!r} + {digit} reads as {read}"


def new_prompts(text: str, finish_reason: str = "stop") -> None:
    """parse_prompts: nothing empty, nothing that is not in the answer and in its order; cut off, the answer has the
    same tasks without the last."""
    found = prompts.parse_prompts(text, finish_reason)
    folded = text.replace("\r\n", "\n").replace("\r", "\n")
    for prompt in found:
        assert prompt == prompt.strip() != "", found
        at = 0
        for line in prompt.split("\n"):
            at = folded.find(line, at) + len(line)
            assert at >= len(line), f"{line!r} is not in the answer, or not there"
    whole = prompts.parse_prompts(text, "stop")
    cut = prompts.parse_prompts(text, "length")
    assert len(whole) - 1 <= len(cut) <= len(whole), (whole, cut)
    assert cut == whole[: len(cut)], (whole, cut)


def split(rubric: str, prompt: str, response: str) -> None:
    """judge_prompt then split_judge_prompt gives both texts back (stripped, "<" of a rubric's tag as "&lt;")."""
    parts = judge.split_judge_prompt(rubric, judge.judge_prompt(rubric, prompt, response))
    assert parts is not None
    tagged = [part.replace("&lt;", "<") for part in parts]
    assert tagged == [text.strip().replace("&lt;", "<") for text in (prompt, response)], parts


class Scored(Row, dict=True, forbid_unknown_fields=True):
    """A row of two columns that carries others along."""

    prompt: str
    score: float | None

    @property
    def extra(self) -> dict[str, Any]:
        return self.__dict__

    def columns(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "score": self.score, **self.extra}


def jsonl_bytes(path: Path, content: bytes) -> None:
    """jsonl.read and read_generated on any bytes: each line is blank, a row, or a problem with its file and number,
    as an independent reading of the lines says; nothing but UserError comes out."""
    path.write_bytes(content)
    good, bad = [], []
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            row = _plain_row(line)
            (bad if row is None else good).append((number, row))
    problems: list[str] = []
    rows = []
    try:
        for row in jsonl.read(path, Scored):
            rows.append(row.columns())
    except UserError as error:
        problems = error.problems
    named = [int(problem.removeprefix(f"{path}:").partition(":")[0]) for problem in problems[: jsonl.MOST_PROBLEMS]]
    assert named == [number for number, _ in bad][: jsonl.MOST_PROBLEMS], (named, bad, problems)
    assert len(problems) == min(len(bad), jsonl.MOST_PROBLEMS + 1)
    first_bad = bad[0][0] if bad else len(content) + 2
    assert rows == [row for number, row in good if number < first_bad]

    count = jsonl.Bad()
    rows = []
    stopped = False
    try:
        for row in jsonl.read_generated(path, Scored, count, max_bad_rows=0.5):
            rows.append(row.columns())
    except UserError:
        stopped = True
    assert rows == [row for _, row in good]
    assert count.reasons.total() == len(bad) and count.rows == len(good) + len(bad)
    assert set(count.reasons) <= REASONS
    assert stopped == (not good or len(bad) > len(good))


def _plain_row(line: bytes) -> dict[str, Any] | None:
    """The row in a line by the standard library's reader, or None."""
    try:
        text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        row = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        json.dumps(row, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair stands for nothing
        if type(row) is not dict or type(row.get("prompt")) is not str or "score" not in row:
            return None
        if type(row["score"]) not in (int, float, type(None)):
            return None
        return row if row["score"] is None else {**row, "score": float(row["score"])}
    except (ValueError, OverflowError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(number)
    return value


HEADER = b'{"request": {"n": 2}}\n'


def partial_file(path: Path, rows: list[tuple[int, list[Sample]]], kept: int, garbage: bytes) -> None:
    """policy.read_partial of a file cut after `kept` bytes, with `garbage` (no row of its own) after it: the rows
    before the first damaged one come back; and what is appended then is read the next time."""
    lines = [
        json.dumps({"index": i, "samples": [[s.text, s.token_ids, s.finish_reason] for s in samples]}).encode() + b"\n"
        for i, samples in rows
    ]
    content = HEADER + b"".join(lines)
    damaged = content[:kept] + garbage
    path.write_bytes(damaged)
    whole = 0
    if damaged.startswith(HEADER):
        for line, found_line in zip(lines, damaged[len(HEADER) :].split(b"\n")[:-1], strict=False):
            if _or_none(found_line) != json.loads(line):
                break
            whole += 1
    found = policy.read_partial(path, HEADER)
    assert found == dict(rows[:whole]), (found, whole)
    with open(path, "ab") as file:  # as generate() resumes
        if file.tell() == 0:
            file.write(HEADER)
        for line in lines[whole:]:
            file.write(line)
    assert policy.read_partial(path, HEADER) == dict(rows)


def _or_none(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def partial_bytes(path: Path, content: bytes) -> None:
    """policy.read_partial of any bytes: samples or nothing, and what stays in the file reads the same again."""
    path.write_bytes(content)
    found = policy.read_partial(path, HEADER)
    for index, samples in found.items():
        assert type(index) is int and all(isinstance(sample, Sample) for sample in samples), found
    kept = path.read_bytes()
    assert content.startswith(kept) and kept[-1:] in (b"", b"\n")
    assert policy.read_partial(path, HEADER) == found and path.read_bytes() == kept


def parameter_sources(stage: str, argv: list[str], environment: str, file: Path | None, content: bytes = b"") -> Any:
    """sources.parse of any three sources: an object that reads back equal from what it hands on, or one UserError of
    short messages."""
    kind = stages.STAGES[stage]
    if file is not None:
        file.write_bytes(content)
        argv = ["--parameter_file", str(file), *argv]
    try:
        found = sources.parse(kind, "", argv, {sources.ENVIRONMENT: environment})
    except UserError as error:
        assert error.problems and all(problem.strip() for problem in error.problems)
        assert len(str(error)) < 2_000 * (10 + len(argv)), f"a message of {len(str(error))} characters"
        str(error).encode("utf-8", "surrogateescape")
        return None
    handed_on = sources.as_environment(found, list(flat.flat(kind)))
    again = sources.parse(kind, "", [], {sources.ENVIRONMENT: handed_on})
    assert again == found and flat.key_parameters(again) == flat.key_parameters(found)
    return found

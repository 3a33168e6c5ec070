"""The user's data: training examples and held-out sets, under our column names or the reproduction's."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from self_reward.errors import UserError
from self_reward.repository import jsonl

Ranked = list[tuple[str, list[tuple[str, float]]]]


@dataclass(frozen=True, slots=True)
class Example:
    """One row of M{k}/train: `source` is ift (an instruction and its answer) or eft (a judgement); `line` is where it
    stands in its file."""

    prompt: str
    response: str
    source: str
    line: int = field(default=0, compare=False)


def read(path: Path) -> list[Example]:
    """Read a train file; the answer is in `response`, or in `completion` as the reproduction had it (B5).

    Raises UserError with every bad row (file and line), or when there is no row.
    """
    examples = [
        Example(row["prompt"], _answer(row), str(row.get("source") or "ift").lower(), number)
        for number, row in jsonl.read_numbered(path, {"prompt": str}, _example_problem)
    ]
    if not examples:
        raise UserError(f"{path} has no rows; expected one JSON object a line: prompt, response, source (ift or eft)")
    return examples


def _answer(row: jsonl.Row) -> Any:
    return row.get("response") or row.get("completion")


def _example_problem(row: jsonl.Row) -> str | None:
    response = _answer(row)
    if not isinstance(response, str):
        if row.get("response") == "" or row.get("completion") == "":
            return "the response is empty"
        if response is not None:
            return f"the response is {type(response).__name__}, expected str"
        return f"no text in column response (or completion); found {jsonl.shown_columns(row)}"
    if type(row.get("source") or "") is not str:
        return f"source is {type(row['source']).__name__}, expected ift or eft"
    if not response.strip():
        return "the response is empty"
    return _prompt_problem(row)


def _prompt_problem(row: jsonl.Row) -> str | None:
    return None if row["prompt"].strip() else "the prompt is empty"


def read_prompts(path: Path) -> list[str]:
    """The prompts of M0/eval/prompts.jsonl. Raises UserError with every bad row, or when there is no row."""
    prompts = [row["prompt"] for row in jsonl.read(path, {"prompt": str}, _prompt_problem)]
    if not prompts:
        raise UserError(f"{path} has no rows; put held-out prompts there, one JSON object a line, or remove the file")
    return prompts


def read_ranked(path: Path) -> Ranked:
    """M0/eval/eft.jsonl: prompts, each with (response, rank) of its answers; rank 0 is the best. Raises UserError with
    every bad row, or when there is no row."""
    groups = [
        (row["prompt"], [(answer["text"], float(answer["rank"])) for answer in row["responses"]])
        for row in jsonl.read(path, {"prompt": str, "responses": list}, _ranked_problem)
    ]
    if not groups:
        raise UserError(f"{path} has no rows; put ranked responses there, one JSON object a line, or remove the file")
    return groups


def _ranked_problem(row: jsonl.Row) -> str | None:
    if len(row["responses"]) < 2:
        return f"{len(row['responses'])} responses; expected two or more of {{text, rank}}"
    for number, answer in enumerate(row["responses"], 1):
        if not _is_ranked(answer):
            return f"response {number} is no {{text, rank}} of a text and a number"
    return _prompt_problem(row)


def _is_ranked(answer: Any) -> bool:
    if not isinstance(answer, dict) or type(answer.get("text")) is not str:
        return False
    rank: Any = answer.get("rank")
    return type(rank) in (int, float) and -1e9 < rank < 1e9  # JSON also has integers that no float can hold

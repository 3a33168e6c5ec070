"""The user's data: training examples and held-out sets, under our column names or the reproduction's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self_reward import jsonl
from self_reward.errors import UserError


@dataclass(frozen=True, slots=True)
class Example:
    """One row of M{k}/train: `source` is ift (an instruction and its answer) or eft (a judgement)."""

    prompt: str
    response: str
    source: str


def read(path: Path) -> list[Example]:
    """Read a train file; the answer is in `response`, or in `completion` as the reproduction had it (B5).

    Raises UserError with every bad row (file and line), or when there is no row.
    """
    examples, problems = [], []
    for number, row in enumerate(jsonl.read(path, {"prompt": str}), 1):
        response = row.get("response") or row.get("completion")
        if not isinstance(response, str):
            found = ", ".join(row)
            problems.append(f"{path.name} row {number}: no text in column response (or completion); found {found}")
        elif not row["prompt"].strip():
            problems.append(f"{path.name} row {number}: the prompt is empty")
        elif not response.strip():
            problems.append(f"{path.name} row {number}: the response is empty")
        else:
            examples.append(Example(row["prompt"], response, str(row.get("source") or "ift").lower()))
    if len(problems) > jsonl.MOST_PROBLEMS:
        problems[jsonl.MOST_PROBLEMS :] = [f"and {len(problems) - jsonl.MOST_PROBLEMS} more rows with problems"]
    if not examples and not problems:
        problems.append(
            f"{path.name} has no rows; expected one JSON object a line: prompt, response, source (ift or eft)"
        )
    if problems:
        raise UserError(problems)
    return examples


def read_prompts(path: Path) -> list[str]:
    """The prompts of M0/eval/prompts.jsonl."""
    return [row["prompt"] for row in jsonl.read(path, {"prompt": str})]


def read_ranked(path: Path) -> list[tuple[str, list[tuple[str, float]]]]:
    """M0/eval/eft.jsonl: prompts, each with (response, rank) of its answers; rank 0 is the best."""
    groups = []
    problems = []
    for number, row in enumerate(jsonl.read(path, {"prompt": str, "responses": list}), 1):
        answers = [answer for answer in row["responses"] if _is_ranked(answer)]
        if len(answers) < len(row["responses"]) or len(answers) < 2:
            problems.append(f"{path.name} row {number}: responses must be two or more of {{text, rank}}")
        else:
            groups.append((row["prompt"], [(answer["text"], float(answer["rank"])) for answer in answers]))
    if problems:
        raise UserError(problems[: jsonl.MOST_PROBLEMS])
    return groups


def _is_ranked(answer: Any) -> bool:
    if not isinstance(answer, dict):
        return False
    rank = answer.get("rank")
    return isinstance(answer.get("text"), str) and isinstance(rank, int | float) and not isinstance(rank, bool)

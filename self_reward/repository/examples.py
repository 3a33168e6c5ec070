"""The training data in M{k}/train: what is in it, and what of it SFT sees."""

import re
from collections import Counter
from collections.abc import Container
from pathlib import Path

from self_reward.errors import UserError
from self_reward.method import judge
from self_reward.repository import jsonl
from self_reward.rows import Example


def read(path: Path) -> list[tuple[int, Example]]:
    """The examples of a train file, each with the number of its line.

    Raises UserError with every bad row (file and line), or when there is no row.
    """
    examples = list(jsonl.read_numbered(path, Example))
    if not examples:
        raise UserError(f"{path} has no rows; expected one JSON object per line: prompt, response, source (ift or eft)")
    return examples


def select(
    examples: list[tuple[int, Example]], rubric: str, kept_out: Container[str], path: Path | str = "the training data"
) -> tuple[list[Example], dict[str, int]]:
    """The examples to train on, and how many were kept by source and held out.

    A prompt of `kept_out` is left out also if it is part of a judgement. Raises UserError, with the line of the file
    `path`, when judging examples do not have the form of the rubric: the judge would be taught one question and asked
    another.
    """
    counts: Counter[str] = Counter()
    selected, wrong = [], []
    for line, example in examples:
        judged = example.prompt
        if example.source == "eft":
            parts = judge.split_judge_prompt(rubric, example.prompt)
            if parts is None:
                wrong.append((line, example))
                continue
            judged = parts[0]
        if judged in kept_out:
            counts["held_out"] += 1
            continue
        counts[example.source] += 1
        selected.append(example)
    if wrong:
        line, example = wrong[0]
        raise UserError(
            f"{path}:{line}: source is eft, but the prompt does not have the form of the rubric "
            f"({len(wrong)} of {len(examples)} rows do not), so the judge would be asked something else than it was "
            f"taught. {difference(rubric, example.prompt)}. Put the rubric of these prompts into the data repository, "
            "with {prompt} and {response} in their places, and give its path as rubric (--rubric)"
        )
    if not selected:
        raise UserError(
            f"{path}: all {len(examples)} training examples are held out; give M0/eval, or a lower eval_fraction"
        )
    return selected, dict(counts)


def difference(rubric: str, prompt: str) -> str:
    """Where `prompt`, which does not have the form of `rubric`, first departs from its words."""
    before, _, middle, _, after = re.split(r"\{(prompt|response)\}", rubric)
    text = " ".join(prompt.split())
    at = 0
    for words, where in (
        (before.split(), "at its start"),
        (middle.split(), "between {prompt} and {response}"),
        (after.split(), "after {prompt} and {response}"),
    ):
        for i in range(len(words)):
            same = " ".join(words[:i])
            place = text.find(" ".join(words[: i + 1]), at)
            if place == 0 or (place > 0 and where != "at its start"):
                continue
            start = text.find(same, at) + len(same) if same else at
            return (
                f"First difference: {where} the rubric has {_few(' '.join(words[i:]))}"
                f"{f' after {same[-40:]!r}' if same else ''}, the prompt has {_few(text[start:])}"
            )
        at = text.find(" ".join(words), at) + len(" ".join(words))
    return f"First difference: the prompt continues after the rubric's end with {_few(text[at:])}"


def _few(text: str) -> str:
    return repr(text.strip()[:80]) if text.strip() else "nothing"

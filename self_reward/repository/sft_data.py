"""Which training examples SFT sees."""

import re
from collections import Counter
from pathlib import Path

from self_reward.errors import UserError
from self_reward.method import judge, prompts
from self_reward.repository.examples import Example


def select(
    examples: list[Example],
    *,
    rubric: str,
    held_out: set[str],
    held_out_fraction: float,
    path: Path | str = "the training data",
) -> tuple[list[Example], dict[str, int]]:
    """The examples to train on, and how many were found, kept and held out, by source.

    A held-out prompt is left out also where it stands inside a judgement. Raises UserError, with the line of the file
    `path`, when judging examples do not have the form of the rubric: the judge would be taught one question and asked
    another.
    """
    counts: Counter[str] = Counter()
    kept, wrong = [], []
    for example in examples:
        judged = example.prompt
        if example.source == "eft":
            parts = judge.split_judge_prompt(rubric, example.prompt)
            if parts is None:
                wrong.append(example)
                continue
            judged = parts[0]
        if judged in held_out or prompts.held_out(judged, held_out_fraction):
            counts["held_out"] += 1
            continue
        counts[example.source] += 1
        kept.append(example)
    if wrong:
        raise UserError(
            f"{path}:{wrong[0].line}: source is eft, but the prompt does not have the form of the rubric "
            f"({len(wrong)} of {len(examples)} rows do not), so the judge would be asked something else than it was "
            f"taught. {difference(rubric, wrong[0].prompt)}. Put the rubric of these prompts into the data repository, "
            "with {prompt} and {response} in their places, and give its path as rubric (--rubric)"
        )
    if not kept:
        raise UserError(
            f"{path}: all {len(examples)} training examples are held out; give M0/eval, or a lower eval_fraction"
        )
    return kept, dict(counts)


def difference(rubric: str, prompt: str) -> str:
    """Where `prompt` first departs from the words of `rubric`, whose form it does not have."""
    before, _, middle, _, after = re.split(r"\{(prompt|response)\}", rubric)
    found = " ".join(prompt.split())
    at = 0
    for words, where in (
        (before.split(), "at its start"),
        (middle.split(), "between {prompt} and {response}"),
        (after.split(), "after {prompt} and {response}"),
    ):
        for i in range(len(words)):
            same = " ".join(words[:i])
            place = found.find(" ".join(words[: i + 1]), at)
            if place == 0 or (place > 0 and where != "at its start"):
                continue
            start = found.find(same, at) + len(same) if same else at
            return (
                f"First difference: {where} the rubric has {_few(' '.join(words[i:]))}"
                f"{f' after {same[-40:]!r}' if same else ''}, the prompt has {_few(found[start:])}"
            )
        at = found.find(" ".join(words), at) + len(" ".join(words))
    return f"First difference: the prompt goes on after the rubric's end with {_few(found[at:])}"


def _few(text: str) -> str:
    return repr(text.strip()[:80]) if text.strip() else "nothing"

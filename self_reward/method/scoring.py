"""Judging responses: ask the judge, read its scores, average its votes (paper section 2.2, rubric of figure 2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self_reward.errors import UserError
from self_reward.method import judge
from self_reward.models import chat, generation


@dataclass(frozen=True, slots=True)
class Judgement:
    """A response's score (mean of the readable votes, or None), its votes and the texts that they were read from."""

    score: float | None
    votes: list[float | None]
    reasoning: list[str]


def score(
    sampler: Any,
    tokenizer: Any,
    answers: Sequence[tuple[str, str]],
    *,
    rubric: str,
    votes: int,
    temperature: float,
    top_p: float,
    max_tokens: int,
    forced: bool,
    low: int,
    high: int,
    seed: int,
    partial: Path,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> list[Judgement]:
    """Judge each (prompt, response). Equal ones are judged once: the same question has the same distribution of votes.

    `forced`: after each justification the next token is restricted to the scale's digits, and the vote is its expected
    value (G-Eval, arXiv 2303.16634). `shard` is as in generation.generate: a response of another shard has no votes.
    """
    distinct = list(dict.fromkeys(answers))
    questions = [chat.prompt_ids(tokenizer, judge.judge_prompt(rubric, *answer)) for answer in distinct]
    samples = generation.generate(
        sampler,
        questions,
        n=votes,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        stop_token_ids=chat.stop_token_ids(tokenizer),
        seed=seed,
        partial=partial,
        shard=shard,
        progress=progress,
    )
    texts = [[sample.text for sample in row] for row in samples]
    read = (
        _expected(sampler, tokenizer, questions, texts, low, high)
        if forced
        else [[judge.parse_score(text, low, high) for text in row] for row in texts]
    )
    judgements = {
        answer: Judgement(judge.average(row)[0], row, reasoning)
        for answer, row, reasoning in zip(distinct, read, texts, strict=True)
    }
    return [judgements[answer] for answer in answers]


def _expected(
    sampler: Any, tokenizer: Any, questions: list[list[int]], texts: list[list[str]], low: int, high: int
) -> list[list[float | None]]:
    values = [float(value) for value in range(low, high + 1)]
    by_choices: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    asked: dict[tuple[int, int], list[int]] = {}
    for i, (question, row) in enumerate(zip(questions, texts, strict=True)):
        for j, text in enumerate(row):
            before, choices = forced_choices(tokenizer, judge.score_prefix(text), range(low, high + 1))
            if len(question) + len(before) < sampler.max_model_len:  # else no room is left for the score: unreadable
                by_choices.setdefault(choices, []).append((i, j))
                asked[i, j] = question + before
    votes: list[list[float | None]] = [[None] * len(row) for row in texts]
    for choices, places in by_choices.items():
        rows = sampler.choice_logprobs([asked[place] for place in places], list(choices))
        for (i, j), logprobs in zip(places, rows, strict=True):
            votes[i][j] = judge.expected_score(logprobs, values)
    return votes


def forced_choices(tokenizer: Any, prefix: str, digits: Sequence[int]) -> tuple[list[int], tuple[int, ...]]:
    """Ids of a judgement up to its score, and the ids that each digit would continue them with.

    Found by tokenising prefix and digit together, since many tokenizers join the space and the digit.
    Raises UserError where the tokenizer does not tell the digits apart by one token.
    """
    written = [tokenizer(f"{prefix}{digit}", add_special_tokens=False)["input_ids"] for digit in digits]
    common = 0
    while all(len(ids) > common + 1 and ids[common] == written[0][common] for ids in written):
        common += 1
    choices = tuple(ids[common] for ids in written)
    if len(set(choices)) < len(choices):
        raise UserError(
            "judge_forced_score: this tokenizer has no token of its own for each score; set judge_forced_score: false"
        )
    return written[0][:common], choices

"""Judging responses: ask the judge, read its scores, average its votes (paper section 2.2, rubric of figure 2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self_reward import chat, generation, judge


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
    progress: Callable[[int, int], None] | None = None,
) -> list[Judgement]:
    """Judge each (prompt, response). Equal ones are judged once: the same question has the same distribution of votes.

    `forced`: after each justification the next token is restricted to the scale's digits, and the vote is its expected
    value (G-Eval, arXiv 2303.16634).
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
    choices = [chat.digit_id(tokenizer, int(value)) for value in values]
    asked = [
        question + tokenizer(judge.score_prefix(text), add_special_tokens=False)["input_ids"]
        for question, row in zip(questions, texts, strict=True)
        for text in row
    ]
    votes = [judge.expected_score(row, values) for row in sampler.choice_logprobs(asked, choices)]
    width = len(texts[0]) if texts else 1
    return [list(votes[i : i + width]) for i in range(0, len(votes), width)]

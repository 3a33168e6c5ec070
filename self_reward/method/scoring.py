"""Judging responses: ask the judge, read its scores, average its votes (paper section 2.2, rubric of figure 2)."""

from collections.abc import Sequence
from dataclasses import dataclass

from self_reward.method import judge
from self_reward.method.asking import Policy
from self_reward.parameters.settings import Judging, Scale
from self_reward.rows import Score


@dataclass(frozen=True, slots=True)
class Judgement:
    """A response's score (mean of the readable votes, or None), its votes and the texts that they were read from."""

    score: float | None
    votes: list[float | None]
    reasoning: list[str]


def score(
    policy: Policy,
    answers: Sequence[tuple[str, str]],
    rubric: str,
    scale: Scale,
    judging: Judging,
    *,
    votes: int,
    part: str = "",
) -> list[Judgement]:
    """Judge each (prompt, response) `votes` times; equal pairs once, since their votes have the same distribution. A
    response of another shard has no votes.

    With `judging.forced_score`, the token after each justification is restricted to the scale's digits, and the vote is
    its expected value (G-Eval, arXiv 2303.16634).
    """
    distinct = list(dict.fromkeys(answers))
    questions = [judge.judge_prompt(rubric, *answer) for answer in distinct]
    samples = policy.ask(questions, judging, n=votes, part=part)
    texts = [[sample.text for sample in row] for row in samples]
    if judging.forced_score:
        read = _expected(policy, questions, texts, scale)
    else:
        read = [[judge.parse_score(text, scale.min, scale.max) for text in row] for row in texts]
    judgements = {
        answer: Judgement(judge.average(row), row, reasoning)
        for answer, row, reasoning in zip(distinct, read, texts, strict=True)
    }
    return [judgements[answer] for answer in answers]


def counts(rows: Sequence[Score]) -> dict[str, int]:
    """The figures that 03_gen_scores reports."""
    votes = [vote for row in rows for vote in row.votes or ()]
    return {
        "responses": len(rows),
        "votes": len(votes),
        "unreadable_votes": votes.count(None),
        "unscored_responses": sum(row.score is None for row in rows),
    }


def unreadable_samples(rows: Sequence[Score]) -> list[str]:
    """The first three judgements without a readable score."""
    pairs = [pair for row in rows for pair in zip(row.votes or (), row.reasoning or (), strict=True)]
    return list(dict.fromkeys(text for vote, text in pairs if vote is None))[:3]


def _expected(
    policy: Policy, questions: Sequence[str], texts: Sequence[Sequence[str]], scale: Scale
) -> list[list[float | None]]:
    """The expected score of each judgement; None if the model has no room left for it."""
    digits = range(scale.min, scale.max + 1)
    asked = zip(questions, texts, strict=True)
    begun = [(question, judge.score_prefix(text)) for question, row in asked for text in row]
    scores = (
        None if logprobs is None else judge.expected_score(logprobs, [float(digit) for digit in digits])
        for logprobs in policy.choice_logprobs(begun, [str(digit) for digit in digits])
    )
    return [[next(scores) for _ in row] for row in texts]

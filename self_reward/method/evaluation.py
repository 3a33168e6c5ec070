"""Measures a checkpoint. Training never uses these results."""

import importlib
import math
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from self_reward.errors import UserError
from self_reward.method import metrics
from self_reward.method.asking import Policy
from self_reward.method.scoring import Judgement
from self_reward.parameters.settings import Sampling
from self_reward.rows import Ranked

Verifier = Callable[[str, str], "float | dict[str, float]"]


def load_verifier(name: str) -> Verifier:
    """The function that `module:function` names."""
    module, _, function = name.partition(":")
    try:
        verifier: Verifier = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever the user's module raises when it is imported
        raise UserError(
            f"verifier = {name}: {type(error).__name__}: {error}; expected module:function, importable here"
        ) from error
    if not callable(verifier):
        raise UserError(f"verifier = {name}: not a function")
    return verifier


def measure(
    policy: Policy,
    prompts: Sequence[str],
    groups: Sequence[Ranked],
    *,
    answering: Sampling,
    judge: Callable[[Sequence[tuple[str, str]]], list[Judgement]],
    verifier: Verifier | None,
    perfect: float,
) -> dict[str, Any]:
    """Answer `prompts`, and judge the answers and the ranked responses of `groups`. `judge` gives the judgement of each
    (prompt, response); `perfect` is the highest score."""
    samples = policy.ask(prompts, answering, part="answers")
    answers = [(prompt, sample.text) for prompt, (sample,) in zip(prompts, samples, strict=True)]
    ranked = [(group.prompt, response.text) for group in groups for response in group.responses]
    judgements = judge(answers + ranked)
    own, held_out = judgements[: len(answers)], judgements[len(answers) :]
    columns = verified(verifier, answers) if verifier else {}
    agreement = judge_against_verifier(own, columns["reward"]) if "reward" in columns else {}
    return {
        "prompts": len(prompts),
        "verifier": summary(columns),
        "judge": {
            "parse_rate": parse_rate(judgements),
            "mean_score": metrics.mean_and_se([j.score for j in own if j.score is not None])[0],
            "agreement": judge_against_ranks(held_out, groups, perfect),
            **agreement,
        },
        "tokens": metrics.length_stats([len(sample.token_ids) for (sample,) in samples]),
        "truncated": sum(sample.finish_reason == "length" for (sample,) in samples),
        "samples": [{"prompt": prompt, "response": response} for prompt, response in answers[:5]],
    }


def verified(verifier: Verifier, answers: Sequence[tuple[str, str]]) -> dict[str, list[float]]:
    """The verifier's values for each (prompt, response), by measure; a plain number is the measure `reward`. Raises
    UserError if it fails or returns anything but finite numbers."""
    columns: dict[str, list[float]] = {}
    for prompt, response in answers:
        try:
            result = verifier(prompt, response)
            values = {str(k): float(v) for k, v in (result if isinstance(result, dict) else {"reward": result}).items()}
        except (Exception, SystemExit) as error:  # whatever the user's function raises
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"the verifier fails in {place.filename}:{place.lineno} ({type(error).__name__}: {error}); expected a "
                f"number or a dict of numbers for prompt {prompt[:200]!r} and response {response[:200]!r}"
            ) from error
        returned = f"the verifier returned {values} for prompt {prompt[:200]!r} and response {response[:200]!r}"
        if not values or not all(map(math.isfinite, values.values())):
            raise UserError(f"{returned}; expected finite numbers")
        if columns and set(values) != set(columns):
            raise UserError(f"{returned}; expected {', '.join(columns)}, as for the responses before")
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return columns


def summary(columns: dict[str, list[float]]) -> dict[str, dict[str, float | None]]:
    """Mean, standard error and number of each measure."""
    figures = {name: (*metrics.mean_and_se(values), len(values)) for name, values in columns.items()}
    return {name: {"mean": mean, "se": se, "n": n} for name, (mean, se, n) in figures.items()}


def judge_against_verifier(judgements: Sequence[Judgement], rewards: Sequence[float]) -> dict[str, float | int | None]:
    """Pearson correlation and share of equal scores, over the readable judgements."""
    both = [(j.score, r) for j, r in zip(judgements, rewards, strict=True) if j.score is not None]
    return {
        "verifier_correlation": metrics.correlation([s for s, _ in both], [r for _, r in both]),
        "verifier_exact": sum(abs(s - r) < 0.5 for s, r in both) / len(both) if both else None,
        "verifier_n": len(both),
    }


def parse_rate(judgements: Sequence[Judgement]) -> float | None:
    """Share of votes that were readable."""
    votes = [vote for judged in judgements for vote in judged.votes]
    return sum(vote is not None for vote in votes) / len(votes) if votes else None


def judge_against_ranks(judgements: Sequence[Judgement], groups: Sequence[Ranked], perfect: float) -> dict[str, Any]:
    """Agreement of the judge with ranked responses; `judgements` are in the order of the responses of `groups`."""
    scores = (judged.score for judged in judgements)
    rows = [[(next(scores), response.rank) for response in group.responses] for group in groups]
    return metrics.judge_agreement([([s for s, _ in row], [rank for _, rank in row]) for row in rows], perfect)

"""When a run stops by itself, and what it says.

A rule returns None (go on) or the reason to stop, which goes to the stop file while the stage still succeeds. When
there is nothing at all to go on with, a rule raises UserError: then something is wrong that the user must change.
"""

from collections.abc import Mapping, Sequence

from self_reward.errors import UserError

_SAMPLES = 3
_LONGEST_SAMPLE = 300  # characters


def parse_rate(readable: int, total: int, *, min_parse_rate: float, samples: Sequence[str] = ()) -> str | None:
    """After 03_gen_scores: a judge of whose `total` judgements only `readable` can be read is no judge.

    `samples`: unreadable judgements to show. Raises UserError when none is readable.
    """
    if total == 0:
        raise UserError(
            "no judgement was made; expected at least one: look at the number of responses of 02_gen_responses"
        )
    rate = readable / total
    if readable == 0:
        raise UserError(
            f"none of {total} judgements holds a score that can be read "
            f"(parse rate 0, expected at least {min_parse_rate:g}). "
            "Teach the judge with EFT rows in M0/train/ift+eft.jsonl, use the rubric it was taught (rubric), "
            f"give it room to finish (judge_max_tokens), or set judge_forced_score.{_shown(samples)}"
        )
    if rate < min_parse_rate:
        return (
            f"parse rate {rate:.3f} ({readable} of {total} judgements), "
            f"expected at least {min_parse_rate:g} (min_parse_rate). "
            "The judge does not keep to the rubric's form: set judge_forced_score, "
            "add EFT rows, or lower min_parse_rate."
            f"{_shown(samples)}"
        )
    return None


def number_of_pairs(
    pairs: int,
    *,
    min_pairs: int,
    prompts: int,
    reasons: Mapping[str, int],
    scores: Mapping[float, int] | None = None,
) -> str | None:
    """After 04_gen_preferences: too few pairs to train on.

    `reasons`: prompts without a pair by reason; `scores`: how often each mean score occurs. Raises UserError without
    any pair.
    """
    if pairs >= max(min_pairs, 1):
        return None
    why = ", ".join(
        f"{reason} {count}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]) if count
    )
    found = f"{pairs} pairs from {prompts} prompts; prompts without a pair: {why or 'none'}."
    if scores:
        found += " Scores: " + ", ".join(f"{score:g} x {count}" for score, count in sorted(scores.items())) + "."
    advice = (
        "More responses_per_prompt or a higher response_temperature makes answers differ, "
        "more judge_votes makes ties rarer, a lower min_margin keeps closer pairs, more prompts make more pairs"
    )
    if pairs == 0:
        raise UserError(f"{found} Expected at least one. {advice}.")
    return f"{found} Expected at least {min_pairs} pairs (min_pairs). {advice}."


def _shown(samples: Sequence[str]) -> str:
    shown = [
        sample if len(sample) <= _LONGEST_SAMPLE else sample[:_LONGEST_SAMPLE] + "..." for sample in samples[:_SAMPLES]
    ]
    return f" Samples: {'; '.join(repr(sample) for sample in shown)}" if shown else ""

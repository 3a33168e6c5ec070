"""Rules that stop a run. Each returns None (continue) or the reason to stop, which goes to the stop file while the
stage still succeeds; or raises UserError if nothing is left to continue with: the user must change something."""

from collections.abc import Mapping, Sequence

from self_reward.errors import UserError

_SAMPLES = 3
_LONGEST_SAMPLE = 300  # characters


def parse_rate(readable: int, total: int, *, min_parse_rate: float, samples: Sequence[str] = ()) -> str | None:
    """After 03_gen_scores: too few of `total` judgements are `readable`. `samples`: unreadable judgements to show."""
    if total == 0:
        raise UserError("no judgements; expected at least one: check the number of responses of 02_gen_responses")
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
            "The judge does not follow the rubric's format: set judge_forced_score, "
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
    """After 04_gen_preferences: too few pairs to train on. `reasons`: prompts without a pair by reason; `scores`: how
    often each mean score occurs."""
    if pairs >= max(min_pairs, 1):
        return None
    counts = sorted(reasons.items(), key=lambda item: -item[1])
    why = ", ".join(f"{reason} {count}" for reason, count in counts if count)
    summary = f"{pairs} pairs from {prompts} prompts; prompts without a pair: {why or 'none'}."
    if scores:
        summary += " Scores: " + ", ".join(f"{score:g} x {count}" for score, count in sorted(scores.items())) + "."
    advice = (
        "More responses_per_prompt or a higher response_temperature makes answers differ, "
        "more judge_votes makes ties rarer, a lower min_margin keeps closer pairs, more prompts make more pairs"
    )
    if pairs == 0:
        raise UserError(f"{summary} Expected at least one. {advice}.")
    return f"{summary} Expected at least {min_pairs} pairs (min_pairs). {advice}."


def _shown(samples: Sequence[str]) -> str:
    shown = (repr(sample[:_LONGEST_SAMPLE] + "..." * (len(sample) > _LONGEST_SAMPLE)) for sample in samples[:_SAMPLES])
    return f" Samples: {'; '.join(shown)}" if samples else ""

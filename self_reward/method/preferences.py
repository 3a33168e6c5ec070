"""Preference pairs from scored responses (paper section 2.3; options of Meta-Rewarding, arXiv 2407.19594)."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import Literal

from msgspec.structs import replace

from self_reward.errors import UserError
from self_reward.method.judge import parse_score
from self_reward.parameters.settings import PairRules, Scale
from self_reward.rows import Preference, Score

Reason = Literal["unscored", "truncated", "identical", "tie", "margin"]
"""Why a prompt makes no pair: fewer than two readable scores; fewer than two responses that were not cut off; fewer
than two texts; equal scores; scores no further apart than min_margin."""

TOTALS = ("prompts", "responses", "unreadable", "pairs")
"""What `build` counts besides the reasons."""

_NEAR = 1e-9  # means of votes are not exact: 4.6 - 4.0 must not be more than a margin of 0.6
_score = attrgetter("score")


def build(
    rows: Iterable[Score], rules: PairRules, seed: int, counts: Counter[str], path: Path | str = "the scores"
) -> Iterator[Preference]:
    """Stream the pairs of the scored responses in the file `path`; the rows of a prompt must be consecutive.

    Fills `counts`: prompts, responses, unreadable (responses without a score), pairs, and the prompts without a pair by
    reason. Raises UserError for a prompt_id that returns later or has two prompts.

    `shuffle_preferences` is the control: each text gets a random score in 0..5 that depends only on `seed`, the prompt
    and the text; everything else (what is dropped, rho, margin, columns) is as usual. Swapping the chosen and the
    rejected of judged pairs would not do, since best against worst is the judge's choice too.
    """
    seen: set[str] = set()
    for identity, group in groupby(rows, key=attrgetter("prompt_id")):
        if identity in seen:
            raise UserError(
                f"{path}: prompt_id {identity} comes back after other prompts; the rows of a prompt must be "
                "consecutive: sort the file by prompt_id, or remove rows that were added twice"
            )
        seen.add(identity)
        responses = list(group)
        if any(row.prompt != responses[0].prompt for row in responses):
            raise UserError(f"{path}: prompt_id {identity} has two prompts; expected one prompt per prompt_id")
        readable = [row for row in responses if _is_readable(row)]
        counts["prompts"] += 1
        counts["responses"] += len(responses)
        counts["unreadable"] += len(responses) - len(readable)
        if rules.shuffle_preferences:
            readable = [replace(row, score=_random_score(seed, row), votes=None) for row in readable]
        preferences, reason = pairs(readable, rules)
        counts["pairs"] += len(preferences)
        if reason:
            counts[reason] += 1
        yield from preferences


def pairs(responses: list[Score], rules: PairRules) -> tuple[list[Preference], Reason | None]:
    """The pairs of one prompt: best response against worst, then (`max_pairs`) best against worst of the rest; or the
    reason why it has none.

    - A score of None, or below 0 (the reproduction's -1), is never paired (bug B14), nor a text with itself.
    - score_chosen - score_rejected must be more than `min_margin` and more than 0.
    - `drop_identical`: equal texts are one response with their mean score.
    - `length_rho` > 0: chosen is the shortest with score >= (1-rho) max + rho min, rejected the longest with score
      <= (1-rho) min + rho max. Length in tokens if every row has them, otherwise in characters.
    - Among equals: the lower variance of votes (`tie_break` "variance"), then the first by response_id.
    """
    usable = [row for row in responses if _is_readable(row)]
    if len(usable) < 2:
        return [], "unscored"
    if rules.drop_truncated:
        usable = [row for row in usable if row.finish_reason != "length"]
        if len(usable) < 2:
            return [], "truncated"
    if all(row.response_id is not None for row in usable):
        usable.sort(key=attrgetter("response_id"))
    if rules.drop_identical:
        usable = _merge_identical(usable)
        if len(usable) < 2:
            return [], "identical"
    if rules.tie_break == "variance":
        usable.sort(key=_variance)  # stable: response_id order stays among equals
    by_tokens = all(row.tokens is not None for row in usable)
    length = attrgetter("tokens") if by_tokens else lambda row: len(row.completion)

    preferences: list[Preference] = []
    reason: Reason | None = None
    while len(usable) >= 2 and len(preferences) < rules.max_pairs:
        best = max(usable, key=_score)  # the first of equals
        worst = min(usable, key=_score)
        high, low, rho = _score(best), _score(worst), rules.length_rho
        if high - low <= _NEAR:
            reason = "tie"
            break
        if rho > 0:
            floor = (1 - rho) * high + rho * low - _NEAR
            ceiling = (1 - rho) * low + rho * high + _NEAR
            best = min((row for row in usable if _score(row) >= floor), key=lambda row: (length(row), -_score(row)))
            worst = min((row for row in usable if _score(row) <= ceiling), key=lambda row: (-length(row), _score(row)))
        if _score(best) - _score(worst) <= rules.min_margin + _NEAR:
            reason = "margin"
            break
        if best.completion.strip() == worst.completion.strip():
            reason = "identical"
            break
        preferences.append(
            Preference(best.prompt_id, best.prompt, best.completion, worst.completion, _score(best), _score(worst))
        )
        usable = [row for row in usable if row is not best and row is not worst]
    return preferences, None if preferences else reason


def _is_readable(row: Score) -> bool:
    return row.score is not None and 0 <= row.score < math.inf  # NaN compares false


def _variance(row: Score) -> float:
    """Population variance of the readable votes (statistics.pvariance takes 40 times as long)."""
    votes = [vote for vote in row.votes or () if vote is not None]
    if not votes:
        return math.inf
    mean = math.fsum(votes) / len(votes)
    return math.fsum((vote - mean) ** 2 for vote in votes) / len(votes)


def _merge_identical(rows: list[Score]) -> list[Score]:
    """One row per text, in the order of first occurrence, with the mean score and all votes."""
    same: dict[str, list[Score]] = {}
    for row in rows:
        same.setdefault(row.completion.strip(), []).append(row)
    merged = []
    for group in same.values():
        if len(group) == 1:
            merged.append(group[0])
        else:
            mean = math.fsum(map(_score, group)) / len(group)
            votes = [vote for row in group for vote in row.votes or ()]
            merged.append(replace(group[0], score=mean, votes=votes))
    return merged


def _random_score(seed: int, row: Score) -> float:
    text = f"{seed}\0{row.prompt_id}\0{row.completion.strip()}".encode("utf-8", "surrogatepass")
    return 5 * int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48


def replay_pairs(eft: list[tuple[str, str]], count: int, rng: Random, scale: Scale) -> list[tuple[str, str, str]]:
    """`count` triples (judge prompt, its judgement, another row's judgement with another score), for EFT replay in DPO.

    `eft` holds (judge prompt, judgement); rows without a readable score are not used. Rows repeat only if there are
    fewer than `count`. Raises UserError if all scores are equal.
    """
    by_score: dict[float, list[str]] = {}
    readable = []
    for prompt, judgement in eft:
        score = parse_score(judgement, scale.min, scale.max)
        if score is not None:
            readable.append((prompt, judgement, score))
            by_score.setdefault(score, []).append(judgement)
    if count and len(by_score) < 2:
        scores = ", ".join(f"{score:g}" for score in by_score) or "no readable score"
        raise UserError(
            f"eft_replay needs judgements with at least two scores; found {scores} in {len(eft)} EFT rows for "
            "training; add more to M0/train/ift+eft.jsonl, or set eft_replay: 0"
        )
    chosen: list[tuple[str, str, float]] = []
    while len(chosen) < count:
        chosen += rng.sample(readable, min(count - len(chosen), len(readable)))
    others = {
        score: [judgement for other, group in by_score.items() if other != score for judgement in group]
        for score in by_score
    }
    return [(prompt, judgement, rng.choice(others[score])) for prompt, judgement, score in chosen]

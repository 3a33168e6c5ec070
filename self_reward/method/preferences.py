"""Preference pairs from scored responses (paper section 2.4; options of Meta-Rewarding, arXiv 2407.19594)."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any, Literal

from self_reward.errors import UserError
from self_reward.method.judge import parse_score
from self_reward.method.prompts import prompt_id

Row = dict[str, Any]
REASONS = ("unscored", "truncated", "identical", "tie", "margin")  # why a prompt makes no pair

_NEAR = 1e-9  # means of votes are not exact: 4.6 - 4.0 must not be more than a margin of 0.6

TOTALS = ("prompts", "responses", "unreadable", "pairs")
"""What `build` counts beside the reasons why a prompt has no pair."""


def pairs(
    responses: list[Row],
    *,
    length_rho: float = 0.0,
    min_margin: float = 0.0,
    tie_break: Literal["none", "variance"] = "none",
    drop_truncated: bool = False,
    drop_identical: bool = False,
    max_pairs: int = 1,
    lowest_score: float = 0.0,
) -> tuple[list[Row], str | None]:
    """The pairs of one prompt, best response against worst, then (`max_pairs`) best against worst of those left.

    `responses`: rows with prompt, completion, score (mean or None), and where there prompt_id, response_id,
    finish_reason, tokens, votes. Without a pair the reason comes back too: "unscored" (fewer than two readable
    scores), "truncated", "identical" (fewer than two responses left, or the same text twice), "tie" (all scores equal)
    or "margin".

    - A score of None, or below `lowest_score` (the reproduction's -1), is never paired (bug B14).
    - score_chosen - score_rejected must be more than `min_margin` and more than 0.
    - `drop_identical`: equal texts are one response with their mean score. A text is never paired with itself in any
      case.
    - `length_rho` > 0: chosen is the shortest with score >= (1-rho) max + rho min, rejected the longest with score
      <= (1-rho) min + rho max. Length in tokens where every row has them, else in characters.
    - Among equals: the lower variance of votes (`tie_break` "variance"), then the first by response_id.
    """
    usable = [row for row in responses if _readable(row["score"], lowest_score)]
    if len(usable) < 2:
        return [], "unscored"
    if drop_truncated:
        usable = [row for row in usable if row.get("finish_reason") != "length"]
        if len(usable) < 2:
            return [], "truncated"
    if all("response_id" in row for row in usable):
        usable.sort(key=itemgetter("response_id"))
    if drop_identical:
        usable = _merge_identical(usable)
        if len(usable) < 2:
            return [], "identical"
    if tie_break == "variance":
        usable.sort(key=_variance)  # stable: response_id order stays among equals
    length = _tokens if all(isinstance(row.get("tokens"), int) for row in usable) else _characters

    made: list[Row] = []
    reason = None
    while len(usable) >= 2 and len(made) < max_pairs:
        best = max(usable, key=itemgetter("score"))  # the first of equals
        worst = min(usable, key=itemgetter("score"))
        high, low = best["score"], worst["score"]
        if high - low <= _NEAR:
            reason = "tie"
            break
        if length_rho > 0:
            floor = (1 - length_rho) * high + length_rho * low - _NEAR
            ceiling = (1 - length_rho) * low + length_rho * high + _NEAR
            best = min((row for row in usable if row["score"] >= floor), key=lambda row: (length(row), -row["score"]))
            worst = min(
                (row for row in usable if row["score"] <= ceiling), key=lambda row: (-length(row), row["score"])
            )
        if best["score"] - worst["score"] <= max(min_margin, 0.0) + _NEAR:
            reason = "margin"
            break
        if best["completion"].strip() == worst["completion"].strip():
            reason = "identical"
            break
        made.append(
            {
                "prompt_id": best.get("prompt_id") or prompt_id(best["prompt"]),
                "prompt": best["prompt"],
                "chosen": best["completion"],
                "rejected": worst["completion"],
                "score_chosen": float(best["score"]),
                "score_rejected": float(worst["score"]),
            }
        )
        usable = [row for row in usable if row is not best and row is not worst]
    return made, None if made else reason


def _readable(score: Any, lowest: float) -> bool:
    return score is not None and lowest <= score < math.inf  # NaN compares false


def _tokens(row: Row) -> int:
    return row["tokens"]


def _characters(row: Row) -> int:
    return len(row["completion"])


def _variance(row: Row) -> float:
    votes = [vote for vote in row.get("votes") or () if vote is not None]
    if not votes:
        return math.inf
    mean = math.fsum(votes) / len(votes)
    return math.fsum((vote - mean) ** 2 for vote in votes) / len(votes)


def _merge_identical(rows: list[Row]) -> list[Row]:
    """One row for each text, in the order of its first; its score is the mean, its votes are all of them."""
    same: dict[str, list[Row]] = {}
    for row in rows:
        same.setdefault(row["completion"].strip(), []).append(row)
    merged = []
    for group in same.values():
        if len(group) == 1:
            merged.append(group[0])
        else:
            mean = math.fsum(row["score"] for row in group) / len(group)
            votes = [vote for row in group for vote in row.get("votes") or ()]
            merged.append({**group[0], "score": mean, "votes": votes})
    return merged


def build(
    rows: Iterable[Row],
    counts: Counter[str],
    *,
    shuffle_preferences: bool = False,
    seed: int = 0,
    lowest_score: float = 0.0,
    path: Path | str = "the scores",
    **options: Any,
) -> Iterator[Row]:
    """The pairs of a file of scored responses, as a stream; a prompt's rows must stand together.

    `counts` is filled on the way: prompts, responses, unreadable (responses without a score), pairs, and the prompts
    without a pair by their reason. `options` are those of `pairs`. Raises UserError, with the file
    `path`, for a prompt_id that comes back later or stands for two prompts.

    `shuffle_preferences` is the control: each text gets a random score in 0..5 that depends on `seed`, the prompt and
    the text alone, and everything else (what is dropped, rho, margin, columns) is as usual. Swapping the chosen and
    the rejected of judged pairs would not do: best against worst is a choice of the judge too.
    """
    seen: set[str] = set()
    for identity, group in groupby(rows, key=_identity):
        if identity in seen:
            raise UserError(
                f"{path}: prompt_id {identity} comes back after other prompts; the rows of a prompt must stand "
                "together: sort the file by prompt_id, or remove rows that were added twice"
            )
        seen.add(identity)
        responses = list(group)
        if any(row["prompt"] != responses[0]["prompt"] for row in responses):
            raise UserError(
                f"{path}: prompt_id {identity} stands for two prompts; expected one prompt for each prompt_id"
            )
        unreadable = sum(not _readable(row["score"], lowest_score) for row in responses)
        counts["prompts"] += 1
        counts["responses"] += len(responses)
        counts["unreadable"] += unreadable
        if shuffle_preferences:
            responses = [
                {**row, "score": lowest_score + _random_score(seed, identity, row["completion"]), "votes": []}
                for row in responses
                if _readable(row["score"], lowest_score)
            ]
        made, reason = pairs(responses, lowest_score=lowest_score, **options)
        counts["pairs"] += len(made)
        if reason:
            counts[reason] += 1
        yield from made


def _identity(row: Row) -> str:
    return row.get("prompt_id") or prompt_id(row["prompt"])


def _random_score(seed: int, identity: str, completion: str) -> float:
    text = f"{seed}\0{identity}\0{completion.strip()}".encode("utf-8", "surrogatepass")
    return 5 * int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48


def replay_pairs(
    eft: list[tuple[str, str]], count: int, rng: Random, *, low: float = 0, high: float = 5
) -> list[tuple[str, str, str]]:
    """`count` triples (judge prompt, its own judgement, another row's judgement with another score), for EFT replay in
    DPO.

    `eft` holds (judge prompt, judgement); a row whose score cannot be read is not used. Rows repeat only where `count`
    is more than there are. Raises UserError when all scores are the same.
    """
    by_score: dict[float, list[str]] = {}
    readable = []
    for prompt, judgement in eft:
        score = parse_score(judgement, low, high)
        if score is not None:
            readable.append((prompt, judgement, score))
            by_score.setdefault(score, []).append(judgement)
    if count and len(by_score) < 2:
        found = ", ".join(f"{score:g}" for score in by_score) or "no readable score"
        raise UserError(
            f"eft_replay needs judgements of at least two scores; found {found} in {len(eft)} EFT rows that may be "
            "trained on; put more into M0/train/ift+eft.jsonl, or set eft_replay: 0"
        )
    chosen: list[tuple[str, str, float]] = []
    while len(chosen) < count:
        chosen += rng.sample(readable, min(count - len(chosen), len(readable)))
    others = {
        score: [judgement for other, group in by_score.items() if other != score for judgement in group]
        for score in by_score
    }
    return [(prompt, judgement, rng.choice(others[score])) for prompt, judgement, score in chosen]

"""Measures of judges and models."""

import math
import statistics
from collections.abc import Sequence


def judge_agreement(
    groups: Sequence[tuple[Sequence[float | None], Sequence[float]]], perfect: float = 5
) -> dict[str, float | int | None]:
    """How far a judge agrees with people (paper section 3.2.2).

    A group is one prompt: the judge's scores (None: unreadable) and the human ranks (0 = best, as in OASST) of its
    responses. Unreadable responses are left out and counted (bug B14). A group counts if its readable responses have at
    least two ranks.

    - pairwise_accuracy: share of pairs of different human rank that the judge orders the same way; its ties do not
      count as such. tie_rate: share of pairs that it ties.
    - five_best: share of responses scored `perfect` that people rank best among the group's readable ones.
    - exact_match: share of groups with every pair of different human rank in the right order.
    - spearman, kendall (tau-b): means over the groups; 0 for a group in which the judge gives equal scores.

    A share of nothing is None.
    """
    from scipy import stats  # takes a second, and only 06_evaluate needs it

    pairs = right = ties = fives = fives_best = exact = unparsed = responses = 0
    spearmans: list[float] = []
    kendalls: list[float] = []
    for predicted, ranks in groups:
        if len(predicted) != len(ranks):
            raise ValueError(f"{len(predicted)} scores for {len(ranks)} ranks; expected one each")
        responses += len(predicted)
        readable = [(score, rank) for score, rank in zip(predicted, ranks, strict=True) if score is not None]
        unparsed += len(predicted) - len(readable)
        scores, human = [score for score, _ in readable], [-rank for _, rank in readable]
        if len(set(human)) < 2:
            continue
        group_pairs = group_right = 0
        for i in range(len(readable)):
            for j in range(i):
                if human[i] != human[j]:
                    group_pairs += 1
                    group_right += (scores[i] - scores[j]) * (human[i] - human[j]) > 0
                    ties += scores[i] == scores[j]
        pairs, right = pairs + group_pairs, right + group_right
        exact += group_right == group_pairs
        for score, rank in zip(scores, human, strict=True):
            if score >= perfect - 1e-9:
                fives += 1
                fives_best += rank == max(human)
        constant = len(set(scores)) < 2
        spearmans.append(0.0 if constant else float(stats.spearmanr(scores, human).statistic))
        kendalls.append(0.0 if constant else float(stats.kendalltau(scores, human).statistic))
    counted = len(spearmans)
    return {
        "pairwise_accuracy": right / pairs if pairs else None,
        "tie_rate": ties / pairs if pairs else None,
        "five_best": fives_best / fives if fives else None,
        "exact_match": exact / counted if counted else None,
        "spearman": statistics.fmean(spearmans) if counted else None,
        "kendall": statistics.fmean(kendalls) if counted else None,
        "pairs": pairs,
        "fives": fives,
        "groups": counted,
        "responses": responses,
        "unparsed": unparsed,
    }


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's r; None for fewer than two points, or if one side does not vary."""
    from scipy import stats

    if len(x) != len(y):
        raise ValueError(f"{len(x)} values against {len(y)}; expected the same number")
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(stats.pearsonr(x, y).statistic)


def mean_and_se(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and its standard error (sample standard deviation / sqrt(n)); None for too few values."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def length_stats(lengths: Sequence[int]) -> dict[str, float | int | None]:
    """Number, mean, median, minimum and maximum of lengths in tokens or characters."""
    if not lengths:
        return {"n": 0, "mean": None, "median": None, "min": None, "max": None}
    mean, median = statistics.fmean(lengths), statistics.median(lengths)
    return {"n": len(lengths), "mean": mean, "median": median, "min": min(lengths), "max": max(lengths)}

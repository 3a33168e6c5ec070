import math
import random
import statistics

import pytest

from self_reward.method.metrics import correlation, judge_agreement, length_stats, mean_and_se


def test_agreeing_judge():
    stats = judge_agreement([([5, 3, 1], [0, 1, 2]), ([2, 5], [1, 0])])
    for name in ("pairwise_accuracy", "five_best", "exact_match", "spearman", "kendall"):
        assert stats[name] == pytest.approx(1)
    assert (stats["pairs"], stats["fives"], stats["groups"], stats["responses"], stats["unparsed"]) == (4, 2, 2, 5, 0)


def test_agreement_computed_by_hand():
    # ranks 0 1 2; scores 4 5 1: pair (0,1) wrong, the other two right; the only 5 is not the best; tau (2 - 1) / 3;
    # rho 0.5
    stats = judge_agreement([([4, 5, 1], [0, 1, 2])])
    assert stats["pairwise_accuracy"] == pytest.approx(2 / 3)
    assert stats["exact_match"] == 0 and stats["five_best"] == 0
    assert stats["spearman"] == pytest.approx(0.5) and stats["kendall"] == pytest.approx(1 / 3)


def test_a_tie_of_the_judge_is_not_agreement():
    stats = judge_agreement([([5, 5], [0, 1])])
    assert stats["pairwise_accuracy"] == 0 and stats["tie_rate"] == 1 and stats["exact_match"] == 0
    assert stats["five_best"] == 0.5 and stats["spearman"] == stats["kendall"] == 0


def test_equal_ranks_are_not_a_pair():
    stats = judge_agreement([([3, 1, 2], [0, 1, 1])])
    assert stats["pairs"] == 2 and stats["pairwise_accuracy"] == 1 and stats["exact_match"] == 1
    assert judge_agreement([([3, 1], [1, 1])])["groups"] == 0


def test_b14_unreadable_is_counted_and_left_out():
    stats = judge_agreement([([4, None, 1], [0, 1, 2]), ([None, 5], [0, 1])])
    assert stats["pairs"] == 1 and stats["pairwise_accuracy"] == 1 and stats["unparsed"] == 2 and stats["groups"] == 1
    nothing = judge_agreement([([None], [0])])
    assert nothing["pairwise_accuracy"] is None and nothing["five_best"] is None and nothing["unparsed"] == 1
    with pytest.raises(ValueError):
        judge_agreement([([1.0], [0, 1])])


def mean_ranks(values):
    """Rank of each value, from the lowest; equal values share the mean of their ranks."""
    return [sum(other < value for other in values) + values.count(value) / 2 for value in values]


def tau_b(x, y):
    signs = [(x[i] - x[j], y[i] - y[j]) for i in range(len(x)) for j in range(i)]
    agree = sum((a * b > 0) - (a * b < 0) for a, b in signs)
    return agree / math.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))


def test_correlations_equal_their_formulas():
    rng = random.Random(0)
    for _ in range(50):
        n = rng.randint(3, 8)
        x, y = [rng.randint(0, 3) for _ in range(n)], [rng.randint(0, 5) for _ in range(n)]
        if len(set(x)) > 1 and len(set(y)) > 1:
            assert correlation(x, y) == pytest.approx(statistics.correlation(x, y), abs=1e-12)
            stats = judge_agreement([(x, [-rank for rank in y])])
            expected = statistics.correlation(mean_ranks(x), mean_ranks(y))
            assert stats["spearman"] == pytest.approx(expected, abs=1e-12)
            assert stats["kendall"] == pytest.approx(tau_b(x, y), abs=1e-12)


def test_correlation_of_nothing_is_none():
    assert correlation([], []) is None and correlation([1], [2]) is None and correlation([1, 1], [1, 2]) is None
    assert correlation([0.1] * 3, [1, 2, 3]) is None  # although the mean of three times 0.1 is not 0.1
    with pytest.raises(ValueError):
        correlation([1], [1, 2])


def test_mean_and_standard_error():
    assert mean_and_se([1, 2, 3, 4]) == (2.5, pytest.approx(math.sqrt(5 / 3) / 2))
    assert mean_and_se([3]) == (3.0, None) and mean_and_se([]) == (None, None)


def test_length_stats():
    assert length_stats([1, 2, 9]) == {"n": 3, "mean": 4, "median": 2, "min": 1, "max": 9}
    assert length_stats([])["n"] == 0

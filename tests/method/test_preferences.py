import random
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from self_reward.errors import UserError
from self_reward.method.preferences import Reason, build, pairs, replay_pairs
from self_reward.method.prompts import prompt_id
from self_reward.parameters.settings import PairRules, Scale
from self_reward.repository import jsonl
from self_reward.rows import Preference, Score

PLAIN = PairRules(drop_identical=False)


def rows(*scores, prompt="p", **columns):
    """One response per score; columns: a list with one value per response."""
    return [
        Score(
            **{
                "prompt_id": prompt_id(prompt),
                "response_id": f"{prompt}-{i}",
                "prompt": prompt,
                "completion": f"{prompt} answer {i}",
                "score": score,
                **{name: values[i] for name, values in columns.items()},
            }
        )
        for i, score in enumerate(scores)
    ]


def chosen_and_rejected(responses, **rules):
    made, _ = pairs(responses, PairRules(**{"drop_identical": False, **rules}))
    return [(pair.chosen[-1], pair.rejected[-1]) for pair in made]


def built(responses, counts=None, seed=0, **rules):
    return list(build(responses, PairRules(**rules), seed, Counter() if counts is None else counts))


def test_best_against_worst():
    made, reason = pairs(rows(2.0, 4.5, 1.0, 3.0), PLAIN)
    assert reason is None
    assert made == [
        Preference(
            prompt_id=prompt_id("p"),
            prompt="p",
            chosen="p answer 1",
            rejected="p answer 2",
            score_chosen=4.5,
            score_rejected=1.0,
        )
    ]


def test_ties_are_dropped():
    assert pairs(rows(3, 3, 3), PLAIN) == ([], "tie")
    assert pairs(rows(0.1 + 0.2, 0.3), PLAIN) == ([], "tie")


def test_equal_scores_are_ordered_by_response_id():
    responses = rows(1, 4, 4, 1)
    assert chosen_and_rejected(responses) == chosen_and_rejected(responses[::-1]) == [("1", "0")]
    for row in responses:
        row.response_id = None
    assert chosen_and_rejected(responses) == [("1", "0")]


@pytest.mark.parametrize("unreadable", [None, -1, float("nan"), float("inf")])
def test_b14_unreadable_is_never_paired(unreadable):
    assert chosen_and_rejected(rows(unreadable, 4, 2)) == [("1", "2")]
    assert pairs(rows(unreadable, 4), PLAIN) == ([], "unscored")
    assert pairs(rows(unreadable, unreadable), PLAIN) == ([], "unscored")
    assert pairs([], PLAIN) == ([], "unscored")


def test_scores_must_differ_by_more_than_the_margin():
    assert pairs(rows(4.6, 4.0), PairRules(min_margin=0.6)) == ([], "margin")
    assert chosen_and_rejected(rows(4.7, 4.0), min_margin=0.6) == [("0", "1")]


def test_truncated_responses_can_be_dropped():
    responses = rows(5, 4, 1, finish_reason=["length", "stop", "stop"])
    assert chosen_and_rejected(responses) == [("0", "2")]
    assert chosen_and_rejected(responses, drop_truncated=True) == [("1", "2")]
    two = rows(5, 4, finish_reason=["length", "stop"])
    assert pairs(two, PairRules(drop_truncated=True)) == ([], "truncated")


def test_identical_texts_are_one_response_with_the_mean_score():
    responses = rows(5, 1, 4, 2)
    responses[1].completion = responses[0].completion + "\n"
    assert chosen_and_rejected(responses, drop_identical=True) == [("2", "3")]
    assert pairs(responses[:2], PairRules(drop_identical=True)) == ([], "identical")
    assert pairs(responses[:2], PLAIN) == ([], "identical")  # a text against itself teaches nothing


def test_length_control_is_that_of_meta_rewarding():
    # max 5, min 1, rho 0.25: chosen from >= 4, rejected from <= 2
    responses = rows(5, 4, 3.9, 2.1, 2, 1, tokens=[50, 20, 1, 99, 60, 30])
    assert chosen_and_rejected(responses, length_rho=0.25) == [("1", "4")]
    assert chosen_and_rejected(responses, length_rho=0.0) == [("0", "5")]
    assert chosen_and_rejected(responses, length_rho=0.3) == [("2", "3")]
    responses[3].tokens = None  # no tokens for all: characters
    responses[0].completion = "0"
    responses[5].completion = "long " * 9 + "5"
    assert chosen_and_rejected(responses, length_rho=0.25) == [("0", "5")]


def test_length_ties_are_broken_by_score():
    assert chosen_and_rejected(rows(4.5, 5, 1, 1.5, tokens=[9, 9, 9, 9]), length_rho=0.2) == [("1", "2")]


def test_variance_breaks_ties():
    votes = [[4, 4, 4], [3, 4, 5], [1, 1, 1], [0, 1, 2]]
    responses = rows(4, 4, 1, 1, votes=votes[1::-1] + votes[:1:-1])
    assert chosen_and_rejected(responses) == [("0", "2")]
    assert chosen_and_rejected(responses, tie_break="variance") == [("1", "3")]


def test_several_pairs_per_prompt():
    assert chosen_and_rejected(rows(1, 2, 3, 4, 5), max_pairs=9) == [("4", "0"), ("3", "1")]
    assert chosen_and_rejected(rows(1, 3, 3, 5), max_pairs=2) == [("3", "0")]


scored = st.lists(st.one_of(st.none(), st.sampled_from([-1, 0, 1, 2.5, 4, 5])), max_size=6)


@given(
    scored,
    st.data(),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from(["none", "variance"]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
)
def test_pairs_satisfy_the_rules(scores, data, rho, margin, tie_break, truncated, identical, most):
    n = len(scores)
    responses = rows(
        *scores,
        completion=data.draw(st.lists(st.sampled_from("abcd"), min_size=n, max_size=n)),
        finish_reason=data.draw(st.lists(st.sampled_from(["stop", "length"]), min_size=n, max_size=n)),
        tokens=data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)),
        votes=data.draw(
            st.lists(st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=2), min_size=n, max_size=n)
        ),
    )
    rules = PairRules(
        length_rho=rho,
        min_margin=margin,
        tie_break=tie_break,
        drop_truncated=truncated,
        drop_identical=identical,
        max_pairs=most,
    )
    made, reason = pairs(responses, rules)
    assert (reason is None) == bool(made) and reason in (None, *get_args(Reason))
    assert len(made) <= most
    for pair in made:
        assert pair.chosen != pair.rejected
        assert pair.score_chosen - pair.score_rejected > margin
        assert pair.score_rejected >= 0
        if truncated:
            assert {"stop"} <= {row.finish_reason for row in responses if row.completion == pair.chosen}
    shuffled = list(responses)
    random.Random(0).shuffle(shuffled)
    assert pairs(shuffled, rules) == (made, reason)


def test_build_counts_what_it_sees():
    counts = Counter()
    data = rows(5, 1, prompt="a") + rows(3, 3, prompt="b") + rows(None, 2, prompt="c") + rows(4, None, 0, prompt="d")
    made = built(iter(data), counts)
    assert [pair.prompt for pair in made] == ["a", "d"]
    assert counts == Counter(prompts=4, responses=9, unreadable=2, pairs=2, tie=1, unscored=1)


def test_build_streams():
    def endless():
        number = 0
        while True:
            yield from rows(5, 1, prompt=f"p{number}")
            number += 1

    stream = build(endless(), PairRules(), 0, Counter())
    assert [next(stream).prompt for _ in range(3)] == ["p0", "p1", "p2"]


def test_build_keeps_the_rules():
    data = rows(5, 4, prompt="a")
    assert built(data, min_margin=2) == []


def test_prompt_id_that_returns_later_is_an_error():
    with pytest.raises(UserError, match="must be consecutive"):
        built(rows(5, 1, prompt="a") + rows(5, 1, prompt="b") + rows(5, 1, prompt="a"))
    two = rows(5, 1, prompt="a")
    two[1].prompt = "other"
    with pytest.raises(UserError, match="two prompts"):
        built(two)


def test_rows_of_the_reproduction_are_accepted(tmp_path):
    """They have neither votes nor tokens, one text as reasoning, and -1 for an unreadable score."""
    lines = [
        {"prompt_id": "x", "prompt": "p", "completion": str(score), "score": score, "reasoning": "Score: ..."}
        for score in (3.0, -1.0, 4.0)
    ]
    jsonl.write(tmp_path / "scores.jsonl", lines)
    made = built(jsonl.read(tmp_path / "scores.jsonl", Score))
    assert [(pair.chosen, pair.rejected, pair.prompt_id) for pair in made] == [("4.0", "3.0", "x")]


def test_shuffled_preferences_ignore_the_judge():
    data = [row for i in range(400) for row in rows(5, 4, 1, None, prompt=f"p{i}")]
    made = built(data, shuffle_preferences=True, seed=1)
    assert len(made) == 400
    best = Counter(pair.chosen[-1] for pair in made)
    assert set(best) == {"0", "1", "2"}  # never the unreadable one
    assert all(90 < count < 180 for count in best.values())  # 133 expected, standard deviation 9.4
    assert all(0 <= pair.score_rejected < pair.score_chosen <= 5 for pair in made)
    assert made == built(data, shuffle_preferences=True, seed=1)
    assert made != built(data, shuffle_preferences=True, seed=2)
    by_prompt = {pair.prompt: pair for pair in made}
    alone = built(data[40:44], shuffle_preferences=True, seed=1)
    assert alone == [by_prompt["p10"]]  # a prompt's pair does not depend on the others


def test_replay_pairs_differ_in_score():
    eft = [(f"judge {i}", f"because {i} Score: {i % 3}") for i in range(30)] + [("bad", "no verdict")]
    made = replay_pairs(eft, 40, random.Random(0), Scale())
    own = dict(eft)
    assert len(made) == 40 and len({prompt for prompt, _, _ in made[:30]}) == 30
    for prompt, chosen, rejected in made:
        assert own[prompt] == chosen and chosen[-1] != rejected[-1] and prompt != "bad"
    assert made == replay_pairs(eft, 40, random.Random(0), Scale())
    assert len({rejected for _, _, rejected in made}) > 10
    assert replay_pairs(eft[:1], 0, random.Random(0), Scale()) == []
    with pytest.raises(UserError, match="two scores"):
        replay_pairs([("a", "Score: 4"), ("b", "Score: 4")], 1, random.Random(0), Scale())

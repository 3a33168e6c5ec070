import pytest

from self_reward.errors import UserError
from self_reward.method import stop


def test_readable_judge_continues():
    assert stop.parse_rate(90, 100, min_parse_rate=0.9) is None


def test_a_low_parse_rate_stops_with_samples():
    reason = stop.parse_rate(89, 100, min_parse_rate=0.9, samples=["I think", "x" * 1000, "three", "four"])
    assert "0.890" in reason and "89 of 100" in reason and "0.9" in reason and "'I think'" in reason
    assert "four" not in reason and len(reason) < 1000


def test_no_readable_judgement_is_a_user_error():
    with pytest.raises(UserError, match="none of 7 judgements.*'gibberish'"):
        stop.parse_rate(0, 7, min_parse_rate=0.0, samples=["gibberish"])
    with pytest.raises(UserError, match="no judgement"):
        stop.parse_rate(0, 0, min_parse_rate=0.0)


def test_enough_pairs_continue():
    assert stop.number_of_pairs(5, min_pairs=5, prompts=9, reasons={"tie": 4}) is None
    assert stop.number_of_pairs(1, min_pairs=0, prompts=9, reasons={}) is None


def test_too_few_pairs_stop_with_the_reasons():
    reason = stop.number_of_pairs(
        4, min_pairs=5, prompts=9, reasons={"margin": 1, "tie": 4, "identical": 0}, scores={4.0: 9, 5.0: 2}
    )
    assert "4 pairs from 9 prompts" in reason and "tie 4, margin 1." in reason and "identical" not in reason
    assert "4 x 9, 5 x 2" in reason and "at least 5" in reason


def test_no_pair_is_a_user_error():
    with pytest.raises(UserError, match="tie 9.*4 x 36"):
        stop.number_of_pairs(0, min_pairs=0, prompts=9, reasons={"tie": 9}, scores={4.0: 36})

import math

import pytest

from self_reward.errors import UserError
from self_reward.method import judge, scoring
from self_reward.models import engines as sampler
from tests.support.tiny import make_tiny_model, make_tokenizer

RUBRIC = "judge the response <response> {response} </response> of {prompt} . score : 0 1 2 3 4 5"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    return sampler.load("transformers", folder, batch_size=8), make_tokenizer()


def score(tiny, answers, tmp_path, **changes):
    settings = {
        "rubric": RUBRIC, "votes": 3, "temperature": 1.0, "top_p": 1.0, "max_tokens": 12, "forced": False,
        "low": 0, "high": 5, "seed": 0, "partial": tmp_path,
    }  # fmt: skip
    return scoring.score(*tiny, answers, **{**settings, **changes})


def test_equal_answers_are_judged_once_and_share_their_votes(tiny, tmp_path):
    seen = []
    judged = score(
        tiny, [("ant", "bat"), ("cat", "dog"), ("ant", "bat")], tmp_path, progress=lambda n, total: seen.append(total)
    )
    assert judged[0] is judged[2] and judged[0] != judged[1]
    assert set(seen) == {2}
    assert [len(j.reasoning) for j in judged] == [3, 3, 3]


def test_b12_b14_the_score_is_the_mean_of_the_readable_votes(tiny, tmp_path, monkeypatch):
    said = iter(["score : 4", "nothing", "score : 1"])
    real = judge.parse_score
    monkeypatch.setattr(judge, "parse_score", lambda text, low, high: real(next(said), low, high))
    (judged,) = score(tiny, [("ant", "bat")], tmp_path)
    assert judged.votes == [4.0, None, 1.0] and judged.score == 2.5


def test_a_forced_score_is_the_expected_value_over_the_digits(tiny, tmp_path):
    """Against a forward pass by hand: softmax over the six digits at the position after `score :`."""
    import torch

    from self_reward.models import chat

    judged = score(tiny, [("ant", "bat")], tmp_path, forced=True, votes=2)[0]
    engine, tokenizer = tiny
    digits = tokenizer.convert_tokens_to_ids(list("012345"))
    for vote, text in zip(judged.votes, judged.reasoning, strict=True):
        question = chat.prompt_ids(tokenizer, judge.judge_prompt(RUBRIC, "ant", "bat"))
        ids = question + tokenizer(judge.score_prefix(text), add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = engine.model(torch.tensor([ids])).logits[0, -1, digits]
        expected = (torch.softmax(logits, 0) * torch.arange(6)).sum().item()
        assert math.isclose(vote, expected, abs_tol=1e-4)
    assert judged.score == pytest.approx(sum(judged.votes) / 2)


def bpe(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_digits_are_told_apart_also_where_the_tokenizer_joins_them_with_the_space():
    tokenizer = bpe([f"fine answer. Score: {digit}" for digit in range(6)] * 50)
    before, choices = scoring.forced_choices(tokenizer, "fine answer. Score: ", range(6))
    assert len(set(choices)) == 6
    for digit, choice in enumerate(choices):
        assert tokenizer.decode([*before, choice]) == f"fine answer. Score: {digit}"
    assert tokenizer.decode([choices[0]]) == " 0"  # joined: asking for "0" alone would have been another token


def test_a_tokenizer_that_cannot_tell_the_digits_apart_is_refused():
    with pytest.raises(UserError, match="judge_forced_score"):
        scoring.forced_choices(make_tokenizer(["score", ":"]), "score : ", range(6))

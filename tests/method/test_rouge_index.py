"""The index against ROUGE-L of the rouge-score package over all pairs."""

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from self_reward.method import rouge_index
from self_reward.method.rouge_index import RougeIndex

SCORER = RougeScorer(["rougeL"])


def accepted_by_all_pairs(texts, similarity, kept):
    """What the index should accept after `kept`: the definition, with no index."""
    kept = list(kept)
    answers = []
    for text in texts:
        answers.append(not any(SCORER.score(other, text)["rougeL"].fmeasure >= similarity for other in kept))
        if answers[-1]:
            kept.append(text)
    return answers


def make(rng, vocabulary, count, longest):
    words = [f"w{i}" for i in range(vocabulary)]
    texts: list[str] = []
    for _ in range(count):
        text = rng.choices(words, k=rng.randint(1, longest))
        if texts and rng.random() < 0.4:
            text = rng.choice(texts).split()
            for _ in range(rng.randint(1, 5)):
                change = rng.randrange(3)
                at = rng.randrange(len(text))
                text[at : at + (change != 0)] = [] if change == 1 and len(text) > 1 else [rng.choice(words)]
        texts.append(" ".join(text))
    return texts


@pytest.mark.parametrize(
    ("similarity", "vocabulary", "longest", "counts"),
    [
        *((similarity, words, 12, (100, 1, 110, 130)) for similarity in (0.4, 0.7, 0.9) for words in (30, 2000)),
        (0.7, 60, 40, (30, 30, 30)),  # the reference takes long over long texts
    ],
)
def test_b20_the_index_equals_all_pairs_rouge(monkeypatch, similarity, vocabulary, longest, counts):
    """In small blocks, pieces and runs, so that every way from one to the other is gone."""
    monkeypatch.setattr(rouge_index, "BLOCK", 50)
    monkeypatch.setattr(rouge_index, "PAIRS", 64)
    monkeypatch.setattr(rouge_index, "FIRST_ORDER", 60)
    rng = random.Random(f"{similarity} {vocabulary}")
    there, *batches = [make(rng, vocabulary, count, longest) for count in counts]
    index = RougeIndex(similarity)
    index.add(there)
    texts = [text for batch in batches for text in batch]
    expected = accepted_by_all_pairs(texts, similarity, there)
    assert [answer for batch in batches for answer in index.accept(batch)] == expected
    assert 0 < sum(expected) < len(expected)


def test_very_long_and_empty_texts():
    rng = random.Random(0)
    long = " ".join(rng.choices([f"w{i}" for i in range(400)], k=1500))
    near = " ".join(word if rng.random() < 0.8 else "x" for word in long.split())
    far = " ".join(word if rng.random() < 0.5 else "x" for word in long.split())
    index = RougeIndex(0.7)
    assert index.accept([long, "", "雨", "雨", far, near, ""]) == [True, True, True, True, True, False, True]
    assert index.accept([]) == []
    assert index.accept([near, "w1", "w1"]) == [False, True, False]


def test_refused_texts_are_not_compared_with():
    chain = ["a b c d e f g h i j", "a b c d e f g x y z", "a b c d x y z p q r"]  # each near the next only
    assert RougeIndex(0.7).accept(chain) == [True, False, True]
    index = RougeIndex(0.7)
    assert [index.accept([text])[0] for text in chain] == [True, False, True]


def test_features_newer_than_the_order_are_matched(monkeypatch):
    monkeypatch.setattr(rouge_index, "FIRST_ORDER", 8)
    index = RougeIndex(0.7)
    index.add([f"common word number n{i}" for i in range(9)])
    assert index.accept(["new words never seen", "new words never heard", "quite other things here"]) == [
        True, False, True,
    ]  # fmt: skip

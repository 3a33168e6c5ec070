"""Prompts in the number and with the statistics that a large run has, made from a seed alone.

Like instructions that models write: 3 to 120 words, one of 300 openings that a few share (as "Write a story about"),
words by Zipf's law, and a tenth of them earlier ones with up to a third of the words changed, so that many lie on both
sides of the bound of similarity.
"""

import random

import numpy as np

VOCABULARY = 50_000
OPENINGS = 300
NEAR = 0.1


def make(count: int, seed: int = 0) -> list[str]:
    """`count` prompts."""
    rng = random.Random(seed)
    numbers = np.random.default_rng(seed)
    words = _words(rng)
    often = np.cumsum(1 / (np.arange(VOCABULARY) + 2.7))

    def draw(n: int) -> list[str]:
        return [words[i] for i in np.searchsorted(often, numbers.random(n) * often[-1])]

    openings = [draw(rng.randint(2, 6)) for _ in range(OPENINGS)]
    common = 1 / (np.arange(OPENINGS) + 1)
    opening_of = numbers.choice(OPENINGS, size=count, p=common / common.sum())
    lengths = np.clip(numbers.lognormal(2.6, 0.55, size=count), 3, 120).astype(int)
    drawn = iter(draw(int(lengths.sum())))
    prompts: list[str] = []
    for opening, length in zip(opening_of, lengths, strict=True):
        own = [next(drawn) for _ in range(length)]
        if prompts and rng.random() < NEAR:
            rate = rng.random() / 3
            earlier = prompts[rng.randrange(len(prompts))].split()
            prompts.append(" ".join(rng.choice(own) if rng.random() < rate else word for word in earlier))
        else:
            prompts.append(" ".join([*openings[opening], *own]))
    return prompts


def _words(rng: random.Random) -> list[str]:
    syllables = [
        a + b for a in "b c d f g h k l m n p r s t v w z st tr pl".split() for b in "a e i o u ai ou ee".split()
    ]
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        words["".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3, 3, 4))))] = None
    return list(words)

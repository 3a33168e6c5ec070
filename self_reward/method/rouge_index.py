"""An exact ROUGE-L near-duplicate index, fast enough for a million texts."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

BLOCK = 2048  # texts that are compared at once
PAIRS = 1 << 18  # pairs that are examined at once: arrays of this size stay in the processor's cache
WORKERS = len(os.sched_getaffinity(0))
FIRST_ORDER = 4096  # texts after which features are first ordered by frequency
_HAIR = 1e-6  # so that no match is lost if rounding puts a bound just above a whole number

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class _Postings:
    """A run of texts by the rarest features of each. All arrays but `start` have one entry per posting, grouped by
    feature: those of feature f are at start[f] to start[f + 1]."""

    start: NDArray[np.int64]
    texts: Ints
    sizes: Ints
    signatures: NDArray[np.uint64]
    slack: NDArray[np.float32]


@dataclass(frozen=True)
class _Run:
    """A run of the index's texts: the features of all texts, concatenated; their number per text; the postings."""

    features: Ints
    sizes: Ints
    postings: _Postings


@dataclass(frozen=True)
class _Block:
    """Texts as arrays, one entry per text; `features` holds the rarest features of all texts, concatenated."""

    sizes: Ints  # tokens
    signatures: NDArray[np.uint64]  # one bit of 64 set for each feature
    slack: NDArray[np.float32]  # (1 - similarity) * size
    kept: Ints  # how many of `features` belong to this text
    features: Ints


class RougeIndex:
    """Finds whether a text has a ROUGE-L F-measure of at least `similarity` with one that is in the index.

    F = 2 L / (m + n) for the longest common subsequence L of m and n tokens (a-z and 0-9, as in the rouge-score
    package), so near texts have at least s m / (2 - s) of m tokens in common. They therefore share a token among the
    rarest m - ceil(s m / (2 - s)) + 1 of each, in one fixed order (prefix filter, Chaudhuri et al. 2006): only those
    are indexed. Signatures rule out most of the resulting pairs: each bit that is set in only one of them stands for a
    token that the other text lacks, and near texts may have m + n - 2 L of those. The rest is computed.

    Repeated tokens count as distinct features (the#1, the#2). Their order is that of their counts when the index last
    doubled.
    """

    def __init__(self, similarity: float):
        self._similarity = similarity
        self._texts: list[str] = []  # each token as one character, which rapidfuzz compares fastest
        self._tokens: dict[str, int] = {}
        self._features: dict[tuple[int, int], int] = {}  # (token, its occurrences before) -> number
        self._runs: list[_Run] = []
        self._order = np.zeros(0, np.int64)
        self._next_order = FIRST_ORDER
        self._pool = ThreadPoolExecutor(WORKERS)  # numpy lets other threads run

    def add(self, texts: Sequence[str]) -> None:
        """Put `texts` into the index without comparing them."""
        for start in range(0, len(texts), BLOCK):
            encoded, features, sizes = self._encode(texts[start : start + BLOCK])
            self._append(encoded, features, sizes)

    def accept(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is near none in the index and none accepted before it; accepted texts are added. A text
        without tokens is near none."""
        blocks = [texts[start : start + BLOCK] for start in range(0, len(texts), BLOCK)]
        return [accepted for block in blocks for accepted in self._accept_block(block)]

    def _accept_block(self, texts: Sequence[str]) -> list[bool]:
        encoded, features, sizes = self._encode(texts)
        block = self._block(features, sizes)
        near = np.zeros(len(texts), bool)
        for run in self._runs:
            for row, _ in self._pairs(encoded, block, run.postings, self._texts, lambda row, other: ~near[row]):
                near[row] = True
        inside = self._pairs(
            encoded, block, self._post(0, block), encoded, lambda row, other: (other < row) & ~near[row] & ~near[other]
        )
        earlier = [pair for row, other in inside for pair in zip(row.tolist(), other.tolist(), strict=True)]
        for i, j in sorted(earlier):
            near[i] |= not near[j]  # in order, so it is known whether j < i is accepted
        kept = np.flatnonzero(~near)
        self._append([encoded[i] for i in kept], features[np.repeat(~near, sizes)], sizes[kept])
        return (~near).tolist()

    def _encode(self, texts: Sequence[str]) -> tuple[list[str], Ints, Ints]:
        """For each text its tokens as characters; the features of all texts, concatenated; their number per text."""
        tokens, features = self._tokens, self._features
        encoded, flat = [], []
        for text in texts:
            seen: dict[int, int] = {}
            characters = []
            for token in re.findall("[a-z0-9]+", text.lower()):
                number = tokens.setdefault(token, len(tokens) + 1)
                before = seen.get(number, 0)
                seen[number] = before + 1
                flat.append(features.setdefault((number, before), len(features)))
                # past the surrogates; chr() ends at 0x10FFFF, and a collision there would only cost exactness
                characters.append(chr((number if number < 0xD800 else number + 0x800) % 0x110000))
            encoded.append("".join(characters))
        return encoded, np.array(flat, np.int32), np.array([len(text) for text in encoded], np.int32)

    def _block(self, features: Ints, sizes: Ints) -> _Block:
        new = np.arange(len(self._order), len(self._features))
        self._order = np.concatenate([self._order, -1 - new])  # new, so the rarest; the others keep their order
        rows = np.repeat(np.arange(len(sizes)), sizes)
        by_order = np.lexsort((self._order[features], rows))
        common = np.ceil(self._similarity * sizes / (2 - self._similarity) - _HAIR).astype(np.int32)
        kept = np.minimum(sizes, sizes - common + 1)
        position = np.arange(len(features)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        bits = features.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(58)
        signatures = np.zeros(len(sizes), np.uint64)
        np.bitwise_or.at(signatures, rows, np.uint64(1) << bits)
        return _Block(
            sizes=sizes,
            signatures=signatures,
            slack=(sizes * ((1 - self._similarity) * (1 + _HAIR)) + _HAIR).astype(np.float32),
            kept=kept,
            features=features[by_order][position < np.repeat(kept, sizes)],
        )

    def _post(self, first: int, block: _Block) -> _Postings:
        by_feature = np.argsort(block.features, kind="stable")
        texts = np.repeat(np.arange(len(block.sizes), dtype=np.int32), block.kept)[by_feature]
        counts = np.bincount(block.features, minlength=len(self._features))
        return _Postings(
            start=np.concatenate([[0], np.cumsum(counts)]),
            texts=first + texts,
            sizes=block.sizes[texts],
            signatures=block.signatures[texts],
            slack=block.slack[texts],
        )

    def _pairs(
        self,
        encoded: list[str],
        block: _Block,
        postings: _Postings,
        texts: list[str],
        wanted: Callable[[Ints, Ints], NDArray[np.bool_]],
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The similar pairs (row of `block`, index in `texts`) among those that are still `wanted`, piece by piece."""
        rows = np.repeat(np.arange(len(block.sizes), dtype=np.int32), block.kept)
        known = block.features < len(postings.start) - 1
        rows, features = rows[known], block.features[known]
        start, counts = postings.start[features], np.diff(postings.start)[features]
        # each piece has as many runs of postings as make PAIRS pairs, or one long run
        pieces = np.flatnonzero(np.diff(np.cumsum(counts) // PAIRS, prepend=-1))
        bounds = [*pieces.tolist(), len(rows)]
        for first in range(0, len(pieces), WORKERS):
            some = bounds[first : first + WORKERS + 1]
            possible = self._pool.map(
                lambda i, j: _possible(block, postings, rows[i:j], start[i:j], counts[i:j]), some[:-1], some[1:]
            )
            row, other = np.concatenate(list(possible), axis=1)
            keep = wanted(row, other)
            pairs = np.unique(row[keep].astype(np.int64) << 32 | other[keep])  # one pair often shares many features
            row, other = pairs >> 32, pairs & 0xFFFFFFFF
            similar = self._similar([encoded[i] for i in row], [texts[i] for i in other])
            yield row[similar], other[similar]

    def _similar(self, left: list[str], right: list[str]) -> NDArray[np.bool_]:
        common = process.cpdist(left, right, scorer=LCSseq.similarity, dtype=np.int32, workers=-1).astype(float)
        precision = common / np.fromiter(map(len, left), float, len(left))
        recall = common / np.fromiter(map(len, right), float, len(right))
        # rouge-score's own arithmetic, so that a value at the bound falls on the same side
        both = np.where(common > 0, precision + recall, 1)
        return 2 * precision * recall / both >= self._similarity

    def _append(self, encoded: list[str], features: Ints, sizes: Ints) -> None:
        """Append a run. Runs at least double in size towards the first, so they are few and texts seldom move."""
        self._texts += encoded
        reorder = len(self._texts) >= self._next_order
        while self._runs and (reorder or len(self._runs[-1].sizes) < 2 * len(sizes)):
            last = self._runs.pop()
            features, sizes = np.concatenate([last.features, features]), np.concatenate([last.sizes, sizes])
        if reorder:
            self._next_order = 2 * len(self._texts)
            self._order = np.empty(len(self._features), np.int64)
            counts = np.bincount(features, minlength=len(self._features))
            self._order[np.argsort(counts, kind="stable")] = np.arange(len(counts))
        postings = self._post(len(self._texts) - len(sizes), self._block(features, sizes))
        self._runs.append(_Run(features, sizes, postings))


def _possible(
    block: _Block, postings: _Postings, rows: Ints, start: NDArray[np.int64], counts: NDArray[np.int64]
) -> Ints:
    """The pairs of rows[i] and the texts at postings start[i] to start[i] + counts[i] that the signatures allow."""
    ends = np.cumsum(counts)
    at = np.repeat(start - ends + counts, counts) + np.arange(ends[-1])
    different = np.bitwise_count(np.repeat(block.signatures[rows], counts) ^ postings.signatures[at])
    near = np.flatnonzero(different <= np.repeat(block.slack[rows], counts) + postings.slack[at])
    row, at = rows[np.searchsorted(ends, near, side="right")], at[near]
    # the same bound for each text alone is tighter if the sizes differ, and costs more
    left, right = block.signatures[row], postings.signatures[at]
    allowed = (block.slack[row] + postings.slack[at]) / 2
    size, other = block.sizes[row], postings.sizes[at]
    half = (size - other) / 2
    possible = (np.bitwise_count(left & ~right) - half <= allowed) & (np.bitwise_count(right & ~left) + half <= allowed)
    return np.stack([row[possible], postings.texts[at[possible]]])

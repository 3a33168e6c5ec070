"""Deduplication of a million prompts: time, memory, and recall against ROUGE-L over all pairs.

Every prompt goes through the filter of 01_gen_prompts. Then `--sample` of them are compared by brute force with every
prompt that was accepted before them. Run: make bench-data
"""

import argparse
import random
import re
import resource
import sys
import time

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq
from tqdm import tqdm

from bench import prompts, table
from self_reward.method.prompts import PromptFilter
from self_reward.parameters.settings import PromptRules

SIMILARITY = 0.7
BATCH = 20_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    made = prompts.make(options.prompts, options.seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    keep = PromptFilter([], PromptRules(similarity=SIMILARITY, min_words=1, max_words=1000, keywords=[]))
    reasons = []
    begun, cpu = time.perf_counter(), time.process_time()
    for start in tqdm(range(0, len(made), BATCH), desc="filter", unit_scale=BATCH, mininterval=5):
        reasons += keep.take(made[start : start + BATCH])
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    sample = sorted(random.Random(options.seed).sample(range(len(made)), min(options.sample, len(made))))
    expected = refused_by_all_pairs(made, reasons, sample)
    found = np.array([reasons[i] is not None for i in sample])
    table.show(
        f"Dedupe of {len(made):,} prompts (ROUGE-L {SIMILARITY})",
        {
            "seconds": f"{seconds:.0f}",
            "CPU seconds": f"{cpu:.0f}",
            "peak memory": f"{peak / 1e6:.2f} GB (of it {before / 1e6:.2f} before, with the prompts)",
            "refused": f"{sum(reason is not None for reason in reasons):,}",
            f"of a sample of {len(sample):,}, refused by all pairs": f"{expected.sum():,}",
            "recall": f"{(found & expected).sum() / max(expected.sum(), 1):.4f}",
            "precision": f"{(found & expected).sum() / max(found.sum(), 1):.4f}",
        },
    )
    return 0


def refused_by_all_pairs(made: list[str], reasons: list[str | None], sample: list[int]) -> np.ndarray:
    """Whether each prompt of `sample` is near one accepted before it, by its ROUGE-L with all of them."""
    accepted = [i for i, reason in enumerate(reasons) if reason is None]
    characters: dict[str, str] = {}

    def encode(text: str) -> str:
        tokens = re.findall("[a-z0-9]+", text.lower())
        return "".join(characters.setdefault(token, chr(0xE000 + len(characters))) for token in tokens)

    texts = [encode(made[i]) for i in accepted]
    sizes = np.array([len(text) for text in texts], float)
    refused = np.zeros(len(sample), bool)
    for start in tqdm(range(0, len(sample), 16), desc="all pairs", unit_scale=16, mininterval=5):
        rows = sample[start : start + 16]
        asked = [encode(made[i]) for i in rows]
        until = int(np.searchsorted(accepted, rows[-1]))
        common = process.cdist(asked, texts[:until], scorer=LCSseq.similarity, dtype=np.uint16, workers=-1)
        for k, i in enumerate(rows):
            before = int(np.searchsorted(accepted, i))
            precision, recall = common[k, :before] / len(asked[k]), common[k, :before] / sizes[:before]
            both = np.where(precision > 0, precision + recall, 1)
            refused[start + k] = bool((2 * precision * recall / both >= SIMILARITY).any())
    return refused


if __name__ == "__main__":
    sys.exit(main())

"""04_gen_preferences: of each prompt's responses, the best scored is chosen and the worst rejected.

Reads   M{k}/generated/scores.jsonl
Writes  M{k}/generated/preferences.jsonl
Run     python stages/04_gen_preferences.py --data_repo DIR --iteration 0
"""

import sys
from collections import Counter

from self_reward import artifacts, stage


def work(p, run):
    from self_reward import jsonl, preferences, stop

    reasons: Counter[str] = Counter()
    pairs = preferences.build(
        jsonl.read(run.input("scores"), artifacts.SCORE_COLUMNS),
        reasons,
        length_rho=p.length_rho,
        min_margin=p.min_margin,
        tie_break=p.tie_break,
        drop_truncated=p.drop_truncated,
        drop_identical=p.drop_identical,
        max_pairs=p.max_pairs,
        shuffle=p.shuffle_preferences,
        seed=p.seed,
    )
    run.counts["pairs"] = jsonl.write(run.output("preferences"), pairs)
    run.counts.update(reasons)
    run.stop(stop.number_of_pairs(run.counts["pairs"], min_pairs=p.min_pairs, reasons=reasons))


if __name__ == "__main__":
    sys.exit(stage.main("04_gen_preferences", work, __doc__))

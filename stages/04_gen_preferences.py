"""04_gen_preferences: of each prompt's responses, the best scored is chosen and the worst rejected.

Reads   M{k}/generated/scores.jsonl
Writes  M{k}/generated/preferences.jsonl
Run     python stages/04_gen_preferences.py --data_repo DIR --iteration 0
"""

import sys
from collections import Counter

from self_reward.repository import artifacts
from self_reward.run import stage


def work(p, run):
    from self_reward.method import preferences
    from self_reward.repository import jsonl
    from self_reward.run import loading

    counts: Counter[str] = Counter()
    scores: Counter[float] = Counter()

    def rows():
        for row in loading.rows(run, p, "scores", artifacts.SCORE_COLUMNS, artifacts.score_row_problem):
            if row["score"] is not None:
                scores[round(row["score"], 1)] += 1
            yield row

    pairs = preferences.build(
        rows(),
        counts,
        length_rho=p.length_rho,
        min_margin=p.min_margin,
        tie_break=p.tie_break,
        drop_truncated=p.drop_truncated,
        drop_identical=p.drop_identical,
        max_pairs=p.max_pairs,
        shuffle_preferences=p.shuffle_preferences,
        seed=p.seed,
        path=run.input("scores"),
    )
    jsonl.write(run.output("preferences"), pairs)
    without = {reason: n for reason, n in counts.items() if reason not in preferences.TOTALS}
    run.counts.update({total: counts[total] for total in preferences.TOTALS} | without)
    run.details["without_a_pair"] = without
    run.details["scores"] = sorted(scores.items())


def stop_rule(p, counts, details):
    from self_reward.method import stop

    return stop.number_of_pairs(
        counts["pairs"],
        min_pairs=p.min_pairs,
        prompts=counts["prompts"],
        reasons=details["without_a_pair"],
        scores=dict(details["scores"]),
    )


if __name__ == "__main__":
    sys.exit(stage.main("04_gen_preferences", work, __doc__, stop_rule))

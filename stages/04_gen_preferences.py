"""04_gen_preferences: of each prompt's responses, the best scored is chosen and the worst rejected.

Reads   M{k}/generated/scores.jsonl
Writes  M{k}/generated/preferences.jsonl
Run     python stages/04_gen_preferences.py --data_repo DIR --iteration 0
"""

from collections import Counter
from collections.abc import Iterator

from self_reward.parameters.stages import GenPreferences
from self_reward.rows import Score
from self_reward.run import stage
from self_reward.run.context import Run
from self_reward.types import Json


def work(p: GenPreferences, run: Run) -> None:
    from self_reward.method import preferences
    from self_reward.repository import jsonl

    # 1. a stream from file to file: a million prompts with their responses do not fit into memory
    counts: Counter[str] = Counter()
    scores: Counter[float] = Counter()

    def rows() -> Iterator[Score]:
        for row in run.rows("scores", Score, p.max_bad_rows):
            if row.score is not None:
                scores[round(row.score, 1)] += 1
            yield row

    pairs = preferences.build(rows(), p.pair_rules, p.seed, counts, run.input("scores"))
    jsonl.write(run.output("preferences"), pairs)

    # 2. how many there are, and why other prompts have none
    without = {reason: n for reason, n in counts.items() if reason not in preferences.TOTALS}
    run.counts |= {total: counts[total] for total in preferences.TOTALS} | without
    run.details["without_a_pair"] = without
    run.details["scores"] = sorted(scores.items())


def stop_rule(p: GenPreferences, counts: Json, details: Json) -> str | None:
    from self_reward.method import stop

    return stop.number_of_pairs(
        counts["pairs"],
        min_pairs=p.min_pairs,
        prompts=counts["prompts"],
        reasons=details["without_a_pair"],
        scores=dict(details["scores"]),
    )


if __name__ == "__main__":
    stage.main("04_gen_preferences", GenPreferences, work, __doc__, stop_rule=stop_rule)

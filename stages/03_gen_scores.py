"""03_gen_scores: the policy judges each response `judge_votes` times by the rubric; the votes are averaged.

Reads   M{k}/generated/responses.jsonl, the policy
Writes  M{k}/generated/scores.jsonl; with --shard i/n a part of it, for stages/merge.py
Run     python stages/03_gen_scores.py --data_repo DIR --base_model MODEL --iteration 0
"""

import sys

from self_reward.errors import all_of
from self_reward.repository import artifacts
from self_reward.run import stage


def work(p, run):
    from self_reward.method import scoring
    from self_reward.repository import jsonl
    from self_reward.run import loading, shards

    rubric, responses = all_of(
        lambda: loading.rubric(run, p),
        lambda: list(loading.rows(run, p, "responses", artifacts.RESPONSE_COLUMNS)),
    )
    folder = loading.model_folder(run, p, "policy")
    tokenizer = loading.tokenizer(folder, trust_remote_code=p.trust_remote_code)
    sampler = loading.sampler(p, folder, run.seed + run.shard[0])
    run.details["sampler"] = sampler.engine
    judgements = scoring.score(
        sampler,
        tokenizer,
        [(row["prompt"], row["completion"]) for row in responses],
        rubric=rubric,
        votes=p.judge_votes,
        temperature=p.judge_temperature,
        top_p=p.judge_top_p,
        max_tokens=p.judge_max_tokens,
        forced=p.judge_forced_score,
        low=p.score_min,
        high=p.score_max,
        seed=run.seed,
        partial=run.partial,
        shard=run.shard,
        progress=run.progress,
    )
    rows = [
        {
            **row,
            "score": judged.score,
            "votes": judged.votes,
            "reasoning": judged.reasoning,
            **({shards.POSITION: position} if p.shard else {}),
        }
        for position, (row, judged) in enumerate(zip(responses, judgements, strict=True))
        if judged.votes
    ]
    jsonl.write(run.output("scores"), rows)
    run.counts |= shards.score_counts(rows)
    run.details["unreadable_samples"] = shards.unreadable_samples(rows)


def stop_rule(p, counts, details):
    from self_reward.method import stop

    return stop.parse_rate(
        counts["votes"] - counts["unreadable_votes"],
        counts["votes"],
        min_parse_rate=p.min_parse_rate,
        samples=details["unreadable_samples"],
    )


if __name__ == "__main__":
    sys.exit(stage.main("03_gen_scores", work, __doc__, stop_rule))

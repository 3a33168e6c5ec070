"""03_gen_scores: the policy judges each response `judge_votes` times by the rubric; the votes are averaged.

Reads   M{k}/generated/responses.jsonl, the policy
Writes  M{k}/generated/scores.jsonl
Run     python stages/03_gen_scores.py --data_repo DIR --base_model MODEL --iteration 0
"""

import sys

from self_reward import artifacts, stage
from self_reward.errors import all_of


def work(p, run):
    from self_reward import jsonl, loading, scoring

    rubric, responses = all_of(
        lambda: loading.rubric(run, p),
        lambda: list(loading.rows(run, p, "responses", artifacts.RESPONSE_COLUMNS)),
    )
    folder = loading.model_folder(run, p, "policy")
    tokenizer = loading.tokenizer(folder, trust_remote_code=p.trust_remote_code)
    sampler = loading.sampler(p, folder, run.seed)
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
        progress=run.progress,
    )
    run.counts["responses"] = jsonl.write(
        run.output("scores"),
        (
            {**row, "score": judged.score, "votes": judged.votes, "reasoning": judged.reasoning}
            for row, judged in zip(responses, judgements, strict=True)
        ),
    )
    votes = [pair for judged in judgements for pair in zip(judged.votes, judged.reasoning, strict=True)]
    unreadable = [text for vote, text in votes if vote is None]
    run.counts["votes"] = len(votes)
    run.counts["unreadable_votes"] = len(unreadable)
    run.counts["unscored_responses"] = sum(judged.score is None for judged in judgements)
    run.details["unreadable_samples"] = list(dict.fromkeys(unreadable))[:3]


def stop_rule(p, counts, details):
    from self_reward import stop

    return stop.parse_rate(
        counts["votes"] - counts["unreadable_votes"],
        counts["votes"],
        min_parse_rate=p.min_parse_rate,
        samples=details["unreadable_samples"],
    )


if __name__ == "__main__":
    sys.exit(stage.main("03_gen_scores", work, __doc__, stop_rule))

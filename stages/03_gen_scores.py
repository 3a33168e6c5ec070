"""03_gen_scores: the policy judges each response `judge_votes` times by the rubric; the score is the mean of the votes.

Reads   M{k}/generated/responses.jsonl, the policy
Writes  M{k}/generated/scores.jsonl; with --shard i/n part i of it; with --merge the n parts joined
Run     python stages/03_gen_scores.py --data_repo DIR --base_model MODEL --iteration 0
"""

from self_reward.errors import all_of
from self_reward.parameters.stages import GenScores
from self_reward.rows import Response, Score
from self_reward.run import shards, stage
from self_reward.run.context import Run
from self_reward.types import Json


def work(p: GenScores, run: Run) -> None:
    from self_reward.method import scoring
    from self_reward.run import models, user_data

    # 1. read everything before a model is loaded: a bad file costs seconds
    rubric, responses = all_of(
        lambda: user_data.rubric(run, p.rubric),
        lambda: list(run.rows("responses", Response, p.max_bad_rows)),
    )

    # 2. ask the policy; its judgements survive a kill, and a shard judges only part of the responses
    policy = models.policy(run, p)
    answers = [(row.prompt, row.completion) for row in responses]
    judgements = scoring.score(policy, answers, rubric, p.scale, p.judging, votes=p.judge_votes)

    # 3. write one row per response
    rows = [
        Score.of(row, judged.score, judged.votes, judged.reasoning, position if p.shard else None)
        for position, (row, judged) in enumerate(zip(responses, judgements, strict=True))
        if judged.votes
    ]
    record(run, rows)


def join(p: GenScores, run: Run, parts: list[list[Score]]) -> None:
    ids = [row.prompt_id for row in run.rows("responses", Response, p.max_bad_rows)]
    record(run, shards.join(parts, ids, 1))


def record(run: Run, rows: list[Score]) -> None:
    from self_reward.method import scoring
    from self_reward.repository import jsonl

    jsonl.write(run.output("scores"), rows)
    run.counts |= scoring.counts(rows)
    run.details["unreadable_samples"] = scoring.unreadable_samples(rows)


def stop_rule(p: GenScores, counts: Json, details: Json) -> str | None:
    from self_reward.method import stop

    return stop.parse_rate(
        counts["votes"] - counts["unreadable_votes"],
        counts["votes"],
        min_parse_rate=p.min_parse_rate,
        samples=details["unreadable_samples"],
    )


if __name__ == "__main__":
    stage.main("03_gen_scores", GenScores, work, __doc__, stop_rule=stop_rule, join=join)

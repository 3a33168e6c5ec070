"""02_gen_responses: the policy answers each new prompt `responses_per_prompt` times.

Reads   M{k}/generated/prompts.jsonl, the policy
Writes  M{k}/generated/responses.jsonl; with --shard i/n part i of it; with --merge the n parts joined
Run     python stages/02_gen_responses.py --data_repo DIR --base_model MODEL --iteration 0
"""

from self_reward.parameters.stages import GenResponses
from self_reward.rows import Prompt, Response, response_counts
from self_reward.run import shards, stage
from self_reward.run.context import Run


def work(p: GenResponses, run: Run) -> None:
    from self_reward.run import models

    # 1. ask the policy; its answers survive a kill, and a shard answers only part of the prompts
    prompts = list(run.rows("prompts", Prompt, p.max_bad_rows))
    policy = models.policy(run, p)
    sampling = p.answers.at(p.response_temperature)
    answers = policy.ask([row.prompt for row in prompts], sampling, n=p.responses_per_prompt)

    # 2. write one row per response
    rows = [
        Response(
            prompt_id=row.prompt_id,
            response_id=f"{row.prompt_id}-{i}",
            prompt=row.prompt,
            completion=sample.text,
            finish_reason=sample.finish_reason,
            tokens=len(sample.token_ids),
            position=position if p.shard else None,
        )
        for position, (row, samples) in enumerate(zip(prompts, answers, strict=True))
        for i, sample in enumerate(samples)
    ]
    record(run, rows, prompts=sum(map(bool, answers)))


def join(p: GenResponses, run: Run, parts: list[list[Response]]) -> None:
    ids = [row.prompt_id for row in run.rows("prompts", Prompt, p.max_bad_rows)]
    record(run, shards.join(parts, ids, p.responses_per_prompt), prompts=len(ids))


def record(run: Run, rows: list[Response], prompts: int) -> None:
    from self_reward.repository import jsonl

    jsonl.write(run.output("responses"), rows)
    run.counts["prompts"] = prompts
    run.counts |= response_counts(rows)


if __name__ == "__main__":
    stage.main("02_gen_responses", GenResponses, work, __doc__, join=join)

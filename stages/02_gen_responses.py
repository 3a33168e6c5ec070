"""02_gen_responses: the policy answers each new prompt `responses_per_prompt` times.

Reads   M{k}/generated/prompts.jsonl, the policy
Writes  M{k}/generated/responses.jsonl; with --shard i/n a part of it, for stages/merge.py
Run     python stages/02_gen_responses.py --data_repo DIR --base_model MODEL --iteration 0
"""

import sys

from self_reward.repository import artifacts
from self_reward.run import stage


def work(p, run):
    from self_reward.models import chat, generation
    from self_reward.repository import jsonl
    from self_reward.run import loading, shards

    prompts = list(loading.rows(run, p, "prompts", artifacts.PROMPT_COLUMNS))
    folder = loading.model_folder(run, p, "policy")
    tokenizer = loading.tokenizer(folder, trust_remote_code=p.trust_remote_code)
    sampler = loading.sampler(p, folder, run.seed + run.shard[0])
    run.details["sampler"] = sampler.engine
    answers = generation.generate(
        sampler,
        [chat.prompt_ids(tokenizer, row["prompt"]) for row in prompts],
        n=p.responses_per_prompt,
        temperature=p.response_temperature,
        top_p=p.response_top_p,
        max_tokens=p.response_max_tokens,
        stop_token_ids=chat.stop_token_ids(tokenizer),
        seed=run.seed,
        partial=run.partial,
        shard=run.shard,
        progress=run.progress,
    )
    rows = [
        {
            "prompt_id": row["prompt_id"],
            "response_id": f"{row['prompt_id']}-{i}",
            "prompt": row["prompt"],
            "completion": sample.text,
            "finish_reason": sample.finish_reason,
            "tokens": len(sample.token_ids),
            **({shards.POSITION: position} if p.shard else {}),
        }
        for position, (row, samples) in enumerate(zip(prompts, answers, strict=True))
        for i, sample in enumerate(samples)
    ]
    jsonl.write(run.output("responses"), rows)
    run.counts["prompts"] = sum(map(bool, answers))
    run.counts |= shards.response_counts(rows)


if __name__ == "__main__":
    sys.exit(stage.main("02_gen_responses", work, __doc__))

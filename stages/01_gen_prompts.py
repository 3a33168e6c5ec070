"""01_gen_prompts: new prompts, written few-shot by `prompt_model` and filtered.

Reads   M{k}/train/ift.jsonl (the seeds), earlier iterations' prompts, M0/eval (never to be repeated), the model
Writes  M{k}/generated/prompts.jsonl
Run     python stages/01_gen_prompts.py --data_repo DIR --base_model MODEL --iteration 0
"""

import sys

from self_reward.errors import all_of
from self_reward.repository import artifacts
from self_reward.run import stage


def work(p, run):
    from self_reward.method import new_prompts, prompts
    from self_reward.models import chat, generation
    from self_reward.repository import jsonl
    from self_reward.run import loading

    (seeds, known, held_out), template = all_of(lambda: loading.seeds(run, p), lambda: loading.prompt_template(run, p))
    earlier = [
        row["prompt"]
        for i in range(p.iteration)
        if run.has(f"prompts:M{i}")
        for row in loading.rows(run, p, f"prompts:M{i}", artifacts.PROMPT_COLUMNS)
    ]
    existing = [*known, *earlier, *sorted(held_out)]
    run.log.info("new prompts are compared with %d that are there", len(existing))  # a million take a minute
    accept = prompts.PromptFilter(
        existing,
        similarity=p.prompt_similarity,
        min_words=p.prompt_min_words,
        max_words=p.prompt_max_words,
        keywords=p.prompt_keywords,
        pattern=p.prompt_pattern,
    )
    folder = loading.model_folder(run, p, "policy")
    tokenizer = loading.tokenizer(folder, trust_remote_code=p.trust_remote_code)
    sampler = loading.sampler(p, folder, run.seed)
    run.details["sampler"] = sampler.engine

    def ask(number: int, requests: list[str]) -> list[tuple[str, str]]:
        samples = generation.generate(
            sampler,
            [chat.prompt_ids(tokenizer, request) for request in requests],
            n=1,
            temperature=p.prompt_temperature,
            top_p=p.prompt_top_p,
            max_tokens=p.prompt_max_tokens,
            stop_token_ids=chat.stop_token_ids(tokenizer),
            seed=run.seed + number,
            partial=run.partial / f"round-{number}",
            progress=run.progress,
        )
        return [(sample.text, sample.finish_reason) for (sample,) in samples]

    written = new_prompts.write(
        ask,
        seeds,
        accept,
        template=template,
        count=p.num_prompts,
        seed_shots=p.prompt_seed_shots,
        generated_shots=p.prompt_generated_shots,
        max_requests=round(p.num_prompts * p.prompt_max_requests),
        min_yield=p.min_prompt_yield,
        seed=run.seed,
    )
    rows = [{"prompt_id": prompts.prompt_id(text), "prompt": text, "source": "generated"} for text in written.prompts]
    run.counts["prompts"] = jsonl.write(run.output("prompts"), rows)
    run.counts["requests"] = written.requests
    run.counts["candidates"] = written.candidates
    run.counts.update({f"rejected_{reason}": n for reason, n in written.reasons.most_common()})
    run.details["rejected_samples"] = written.rejected


if __name__ == "__main__":
    sys.exit(stage.main("01_gen_prompts", work, __doc__))

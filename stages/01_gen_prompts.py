"""01_gen_prompts: new prompts, written few-shot by `prompt_model` and filtered.

Reads   M{k}/train/ift.jsonl (the seeds), earlier iterations' prompts, M0/eval (never to be repeated), the model
Writes  M{k}/generated/prompts.jsonl
Run     python stages/01_gen_prompts.py --data_repo DIR --base_model MODEL --iteration 0
"""

from self_reward.errors import all_of
from self_reward.parameters.stages import GenPrompts
from self_reward.rows import Prompt
from self_reward.run import stage
from self_reward.run.context import Run


def work(p: GenPrompts, run: Run) -> None:
    from self_reward.method import new_prompts, prompts
    from self_reward.repository import jsonl
    from self_reward.run import models, user_data

    # 1. what new prompts are modelled on, and what they must not repeat
    (seeds, known, of_evaluation), template = all_of(
        lambda: user_data.seed_prompts(run, p.eval_fraction), lambda: user_data.prompt_template(run, p.prompt_template)
    )
    earlier = [
        row.prompt
        for i in range(p.iteration)
        if run.has(f"prompts:M{i}")
        for row in run.rows(f"prompts:M{i}", Prompt, p.max_bad_rows)
    ]
    existing = [*known, *earlier, *sorted(of_evaluation)]
    run.log.info("new prompts are compared with %d existing ones", len(existing))  # a million take a minute
    accept = prompts.PromptFilter(existing, p.prompt_rules)

    # 2. ask in rounds until there are enough
    policy = models.policy(run, p)

    def ask(number: int, requests: list[str]) -> list[tuple[str, str]]:
        answers = policy.ask(requests, p.prompt_sampling, part=f"round-{number}", seed_offset=number)
        return [(sample.text, sample.finish_reason) for (sample,) in answers]

    written = new_prompts.write(ask, seeds, accept, template, p.writing, run.job.seed)

    # 3. write one row per prompt
    rows = [Prompt(prompts.prompt_id(text), text, source="generated") for text in written.prompts]
    run.counts["prompts"] = jsonl.write(run.output("prompts"), rows)
    run.counts["requests"] = written.requests
    run.counts["candidates"] = written.candidates
    run.counts |= {f"rejected_{reason}": n for reason, n in written.reasons.most_common()}
    run.details["rejected_samples"] = written.rejected


if __name__ == "__main__":
    stage.main("01_gen_prompts", GenPrompts, work, __doc__)

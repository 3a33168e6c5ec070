"""06_evaluate: the new checkpoint's answers by a verifier, and its judge against held-out ranks and the verifier.

Iteration 0 measures M0/sft too. For measuring only: nothing here is seen in training.
Reads   M0/eval/prompts.jsonl, M0/eval/eft.jsonl (or what eval_fraction held out of the data), the checkpoints
Writes  M{k}/eval/dpo.json, in iteration 0 also M{k}/eval/sft.json
Run     python stages/06_evaluate.py --data_repo DIR --base_model MODEL --iteration 0 --verifier module:function
"""

import json
from functools import partial

from self_reward.parameters.stages import Evaluate
from self_reward.run import stage
from self_reward.run.context import Run


def work(p: Evaluate, run: Run) -> None:
    from self_reward.method import evaluation, scoring
    from self_reward.repository import held_out
    from self_reward.run import models, user_data

    # 1. what is held out
    rubric = user_data.rubric(run, p.rubric)
    verifier = evaluation.load_verifier(p.verifier) if p.verifier else None
    prompts, groups = held_out.evaluation_data(
        run.optional("eval_prompts"), run.optional("eval_eft"), run.optional("train"), p.eval_fraction, rubric, p.scale
    )
    prompts, groups = prompts[: p.eval_prompts], groups[: p.eval_judge_groups]
    run.counts["prompts"] = len(prompts)
    run.counts["judged_groups"] = len(groups)

    # 2. each checkpoint answers and judges
    for name, output in (("M0/sft", "eval_of_sft"), (f"M{p.iteration}/dpo", "eval_of_dpo")):
        if output not in run.inputs.outputs:
            continue
        policy = models.checkpoint_policy(run, p, name)
        measured = evaluation.measure(
            policy,
            prompts,
            groups,
            answering=p.answers.at(p.eval_temperature),
            judge=partial(
                scoring.score,
                policy,
                rubric=rubric,
                scale=p.scale,
                judging=p.judging,
                votes=p.eval_judge_votes,
                part="judgements",
            ),
            verifier=verifier,
            perfect=p.scale.max,
        )
        policy.close()  # makes room for the next checkpoint
        text = json.dumps({"checkpoint": name, **measured}, indent=2, ensure_ascii=False)
        run.output(output).write_text(text + "\n", encoding="utf-8")
        if "reward" in measured["verifier"]:
            run.counts[f"reward_{name}"] = round(measured["verifier"]["reward"]["mean"], 3)


if __name__ == "__main__":
    stage.main("06_evaluate", Evaluate, work, __doc__)

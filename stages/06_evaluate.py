"""06_evaluate: the new checkpoint's answers by a verifier, and its judge against held-out ranks and the verifier.

Iteration 0 measures M0/sft too. For measuring only: nothing here is seen in training.
Reads   M0/eval/prompts.jsonl, M0/eval/eft.jsonl (or what eval_fraction held out of the data), the checkpoints
Writes  M{k}/eval/dpo.json, in iteration 0 also M{k}/eval/sft.json
Run     python stages/06_evaluate.py --data_repo DIR --base_model MODEL --iteration 0 --verifier module:function
"""

import sys

from self_reward.run import stage


def work(p, run):
    from self_reward.method import evaluation
    from self_reward.repository import held_out
    from self_reward.run import loading

    rubric = loading.rubric(run, p)
    verifier = evaluation.load_verifier(p.verifier) if p.verifier else None
    prompts, groups = held_out.read(
        run.input("eval_prompts") if run.has("eval_prompts") else None,
        run.input("eval_eft") if run.has("eval_eft") else None,
        run.input("train") if run.has("train") else None,
        fraction=p.eval_fraction,
        rubric=rubric,
        score_max=p.score_max,
    )
    prompts, groups = prompts[: p.eval_prompts], groups[: p.eval_judge_groups]
    run.counts["prompts"] = len(prompts)
    run.counts["judged_groups"] = len(groups)
    for name, output in (("M0/sft", "eval_of_sft"), (f"M{p.iteration}/dpo", "eval_of_dpo")):
        if output not in run.inputs.outputs:
            continue
        folder = loading.model_folder(run, p, name)
        sampler = loading.sampler(p, folder, p.seed)
        measured = evaluation.measure(
            sampler,
            loading.tokenizer(folder, trust_remote_code=p.trust_remote_code),
            prompts=prompts,
            groups=groups,
            verifier=verifier,
            temperature=p.eval_temperature,
            max_tokens=p.response_max_tokens,
            top_p=p.response_top_p,
            judge={
                "rubric": rubric,
                "votes": p.eval_judge_votes,
                "temperature": p.judge_temperature,
                "top_p": p.judge_top_p,
                "max_tokens": p.judge_max_tokens,
                "forced": p.judge_forced_score,
                "low": p.score_min,
                "high": p.score_max,
            },
            seed=p.seed,
            partial=run.partial / name.replace("/", "-"),
            progress=run.progress,
        )
        sampler.close()  # makes room for the next checkpoint
        evaluation.write(run.output(output), {"checkpoint": name, **measured})
        if "reward" in measured["verifier"]:
            run.counts[f"reward_{name}"] = round(measured["verifier"]["reward"]["mean"], 3)


if __name__ == "__main__":
    sys.exit(stage.main("06_evaluate", work, __doc__))

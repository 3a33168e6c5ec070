"""05_dpo: direct preference optimisation of the policy; its reference is the policy that it starts from.

Reads   M{k}/generated/preferences.jsonl, the policy; M{k}/train if eft_replay is above 0
Writes  M{k}/models/dpo/final_checkpoint, which is the start model of iteration k+1
Run     python stages/05_dpo.py --data_repo DIR --base_model MODEL --iteration 0
"""

from dataclasses import replace

from self_reward.parameters.stages import Dpo
from self_reward.rows import Preference
from self_reward.run import stage
from self_reward.run.context import Run


def work(p: Dpo, run: Run) -> None:
    from self_reward.models import chat
    from self_reward.models.train_group import Call
    from self_reward.run import models, user_data

    # 1. the pairs, as text
    rows = run.rows("preferences", Preference, p.max_bad_rows)
    pairs = [(row.prompt, row.chosen, row.rejected) for row in rows]
    run.counts["pairs"] = len(pairs)
    if p.eft_replay > 0:  # so that the model does not forget how to judge
        examples, _ = user_data.training_examples(run, p.rubric, p.eval_fraction)
        count = round(len(pairs) * p.eft_replay / (1 - p.eft_replay))
        replay = user_data.replay_pairs(examples, count, p.scale, run.job.seed)
        run.counts["replay_pairs"] = len(replay)
        pairs += replay

    # 2. as token ids: the same tokens that sampling used
    model = models.load(run, p, "policy")
    ids = [chat.pair_ids(model.tokenizer, *pair) for pair in pairs]

    # 3. train; torch is imported here, after everything that can be wrong with the data
    from self_reward.models import training

    job, loss = replace(run.job, seed=p.seed), p.preference_loss
    metrics = training.train(Call(model, ids, run.output("dpo"), p.dpo_training, p.lora, p.hardware, job, loss))
    models.record_training(run, "dpo", "policy", p.dpo_training.finetune, metrics)


if __name__ == "__main__":
    stage.main("05_dpo", Dpo, work, __doc__)

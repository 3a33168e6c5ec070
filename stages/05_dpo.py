"""05_dpo: direct preference optimisation of the policy; its reference is the policy that it starts from.

Reads   M{k}/generated/preferences.jsonl, the policy; M{k}/train where eft_replay is above 0
Writes  M{k}/models/dpo/final_checkpoint, which is the start model of iteration k+1
Run     python stages/05_dpo.py --data_repo DIR --base_model MODEL --iteration 0
"""

import sys

from self_reward.repository import artifacts
from self_reward.run import stage


def work(p, run):
    from self_reward.models import chat
    from self_reward.run import loading

    rows = loading.rows(run, p, "preferences", artifacts.PREFERENCE_COLUMNS)
    pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    run.counts["pairs"] = len(pairs)
    if p.eft_replay > 0:
        replay = loading.replay_pairs(run, p, round(len(pairs) * p.eft_replay / (1 - p.eft_replay)))
        run.counts["replay_pairs"] = len(replay)
        pairs += replay
    folder = loading.model_folder(run, p, "policy")
    tokenizer = loading.tokenizer(folder, trust_remote_code=p.trust_remote_code)
    from self_reward.models import checkpoints, training

    metrics = training.train_dpo(
        folder,
        [chat.pair_ids(tokenizer, *pair) for pair in pairs],
        run.output("dpo"),
        chat_template=tokenizer.chat_template,
        finetune=p.dpo_finetune,
        loss=p.dpo_loss,
        beta=p.beta,
        nll_weight=p.nll_weight,
        label_smoothing=p.label_smoothing,
        epochs=p.dpo_epochs,
        max_steps=p.dpo_max_steps,
        learning_rate=p.dpo_learning_rate,
        min_learning_rate=p.dpo_min_learning_rate,
        warmup_ratio=p.dpo_warmup_ratio,
        batch_size=p.dpo_batch_size,
        micro_batch_size=p.dpo_micro_batch_size,
        max_length=p.dpo_max_length,
        weight_decay=p.dpo_weight_decay,
        dropout=p.dpo_dropout,
        lora_rank=p.lora_rank,
        lora_alpha=p.lora_alpha,
        lora_target_modules=p.lora_target_modules,
        checkpoint_steps=p.checkpoint_steps,
        checkpoint_dir=run.partial,
        seed=p.seed,
        dtype=p.dtype,
        gradient_checkpointing=p.gradient_checkpointing,
        trust_remote_code=p.trust_remote_code,
        processes=p.train_gpus or 1,
        progress=run.progress,
    )
    checkpoints.save_checkpoint_metadata(
        run.output("dpo"), finetune=p.dpo_finetune, parent=loading.parent(run, "policy"), base_model=run.base_id
    )
    run.counts["steps"] = metrics["steps"]
    run.details["metrics"] = metrics


if __name__ == "__main__":
    sys.exit(stage.main("05_dpo", work, __doc__))

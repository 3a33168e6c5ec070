"""00_sft: supervised fine-tuning on instructions (IFT) and judgements (EFT), loss on the responses only.

Reads   M{k}/train/ift+eft.jsonl, the start model (the base model, or M{k-1}/dpo)
Writes  M{k}/models/sft/final_checkpoint
Run     python stages/00_sft.py --data_repo DIR --base_model MODEL --iteration 0
"""

import sys

from self_reward.run import stage


def work(p, run):
    from self_reward.models import chat
    from self_reward.run import loading

    rows, counts = loading.training_examples(run, p)
    run.counts.update(counts)
    template = loading.text(run, "chat_template", p.chat_template)
    folder = loading.model_folder(run, p, "start")
    tokenizer = loading.tokenizer(folder, template, p.trust_remote_code)
    from self_reward.models import checkpoints, training

    metrics = training.train_sft(
        folder,
        [chat.example_ids(tokenizer, row.prompt, row.response) for row in rows],
        run.output("sft"),
        chat_template=tokenizer.chat_template,
        finetune=p.sft_finetune,
        epochs=p.sft_epochs,
        max_steps=p.sft_max_steps,
        learning_rate=p.sft_learning_rate,
        min_learning_rate=p.sft_min_learning_rate,
        warmup_ratio=p.sft_warmup_ratio,
        batch_size=p.sft_batch_size,
        micro_batch_size=p.sft_micro_batch_size,
        max_length=p.sft_max_length,
        weight_decay=p.sft_weight_decay,
        adam_beta2=p.sft_adam_beta2,
        dropout=p.sft_dropout,
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
        run.output("sft"), finetune=p.sft_finetune, parent=loading.parent(run, "start"), base_model=run.base_id
    )
    run.counts["steps"] = metrics["steps"]
    run.details["metrics"] = metrics


if __name__ == "__main__":
    sys.exit(stage.main("00_sft", work, __doc__))

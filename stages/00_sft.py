"""00_sft: supervised fine-tuning on instructions (IFT) and judgements (EFT), loss on the responses only.

Reads   M{k}/train/ift+eft.jsonl, the start model (the base model, or M{k-1}/dpo)
Writes  M{k}/models/sft/final_checkpoint
Run     python stages/00_sft.py --data_repo DIR --base_model MODEL --iteration 0
"""

from dataclasses import replace

from self_reward.parameters.stages import Sft
from self_reward.run import stage
from self_reward.run.context import Run


def work(p: Sft, run: Run) -> None:
    from self_reward.models import chat
    from self_reward.models.train_group import Call
    from self_reward.run import models, user_data

    # 1. the examples, as text
    rows, counts = user_data.training_examples(run, p.rubric, p.eval_fraction)
    run.counts |= counts
    template = run.text("chat_template", p.chat_template)

    # 2. as token ids: the same tokens that sampling will use
    model = models.load(run, p, "start", template)
    examples = [chat.example_ids(model.tokenizer, row.prompt, row.response) for row in rows]

    # 3. train; torch is imported here, after everything that can be wrong with the data
    from self_reward.models import training

    job = replace(run.job, seed=p.seed)
    metrics = training.train(Call(model, examples, run.output("sft"), p.sft_training, p.lora, p.hardware, job))
    models.record_training(run, "sft", "start", p.sft_training.finetune, metrics)


if __name__ == "__main__":
    stage.main("00_sft", Sft, work, __doc__)

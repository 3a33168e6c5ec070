"""Which training examples SFT sees."""

from collections import Counter

from self_reward import judge, prompts
from self_reward.errors import UserError
from self_reward.examples import Example


def select(
    examples: list[Example], *, rubric: str, held_out: set[str], held_out_fraction: float
) -> tuple[list[Example], dict[str, int]]:
    """The examples to train on, and how many were found, kept and held out, by source.

    A held-out prompt is left out also where it stands inside a judgement. Raises UserError when judging examples do
    not have the form of the rubric: the judge would be taught one question and asked another.
    """
    counts: Counter[str] = Counter()
    kept, wrong = [], []
    for example in examples:
        judged = example.prompt
        if example.source == "eft":
            parts = judge.split_judge_prompt(rubric, example.prompt)
            if parts is None:
                wrong.append(example.prompt)
                continue
            judged = parts[0]
        if judged in held_out or prompts.held_out(judged, held_out_fraction):
            counts["held_out"] += 1
            continue
        counts[example.source] += 1
        kept.append(example)
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(examples)} examples have source eft but not the form of the rubric, so the judge "
            "would be asked something else than it was taught. Put the rubric of these prompts into the data "
            "repository, with {prompt} and {response} in their places, and name its path with --rubric. "
            f"The first such prompt begins: {wrong[0][:200]!r}"
        )
    if not kept:
        raise UserError(f"all {len(examples)} training examples are held out; give M0/eval, or a lower eval_fraction")
    return kept, dict(counts)

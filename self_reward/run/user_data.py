"""What stages read from the user's files: rubric, prompt template, training examples, seeds, held-out prompts."""

import random
from collections.abc import Callable

from self_reward.errors import UserError, all_of
from self_reward.method import judge, preferences, prompts
from self_reward.parameters.settings import Scale
from self_reward.parameters.stages import Plan
from self_reward.repository import examples, held_out
from self_reward.repository.held_out import KeptOut
from self_reward.rows import Example
from self_reward.run.checkout import Checkout


def rubric(checkout: Checkout, value: str) -> str:
    """The text of the rubric `value`. Raises UserError unless it holds {prompt} and {response} once each."""
    return checkout.text("rubric", value, lambda text: judge.judge_prompt(text, "", ""))


def prompt_template(checkout: Checkout, value: str) -> str:
    """The text that asks for new prompts. Raises UserError unless it holds {examples} once."""
    return checkout.text("prompt_template", value, lambda text: prompts.few_shot_prompt(text, []))


def kept_out(checkout: Checkout, eval_fraction: float) -> KeptOut:
    """What is kept out of training: the prompts of M0/eval, or else a share of all prompts, chosen by hash."""
    return held_out.kept_out(checkout.optional("eval_prompts"), checkout.optional("eval_eft"), eval_fraction)


def training_examples(
    checkout: Checkout, rubric_value: str, eval_fraction: float, name: str = "train"
) -> tuple[list[Example], dict[str, int]]:
    """The examples of M{k}/train that may be trained on, and how many of each kind. Raises UserError with the problems
    of the train file (the input `name`), the held-out files and the rubric together."""
    held, rows, text = all_of(
        lambda: kept_out(checkout, eval_fraction),
        lambda: examples.read(checkout.input(name)),
        lambda: rubric(checkout, rubric_value),
    )
    return examples.select(rows, text, held, checkout.input(name))


def replay_pairs(rows: list[Example], count: int, scale: Scale, seed: int) -> list[tuple[str, str, str]]:
    """`count` pairs of the judging examples among `rows`, for eft_replay. Raises UserError if their scores make no
    pair."""
    eft = [(row.prompt, row.response) for row in rows if row.source == "eft"]
    return preferences.replay_pairs(eft, count, random.Random(seed), scale)


def seed_prompts(
    checkout: Checkout, eval_fraction: float, name: str = "seeds"
) -> tuple[list[str], list[str], frozenset[str]]:
    """(prompts to show as examples, all prompts of the seed data, prompts of M0/eval). Held-out prompts are not shown.
    Raises UserError with the problems of all these files together, or if no prompt is left."""
    held, rows = all_of(lambda: kept_out(checkout, eval_fraction), lambda: examples.read(checkout.input(name)))
    known = list(dict.fromkeys(row.prompt for _, row in rows if row.source != "eft"))
    shown = [prompt for prompt in known if prompt not in held]
    if not shown:
        raise UserError(
            f"{checkout.input(name)}: none of {len(rows)} rows is a prompt to show as an example ({len(known)} have "
            f"another source than eft, of which {len(known) - len(shown)} are held out); put more prompts there"
        )
    return shown, known, held.prompts


def check(checkout: Checkout, p: Plan) -> None:
    """Read all of the user's files that a run will read; raises UserError with the problems of all of them."""

    def check_train(name: str) -> None:
        rows, _ = training_examples(checkout, p.rubric, p.eval_fraction, name)
        if p.eft_replay > 0:
            replay_pairs(rows, 1, p.scale, seed=0)

    steps: list[Callable[[], object]] = [
        lambda: rubric(checkout, p.rubric),
        lambda: prompt_template(checkout, p.prompt_template),
    ]
    for name in checkout.inputs.paths:
        if name.startswith("train:"):
            steps.append(lambda name=name: check_train(name))  # type: ignore[misc]
        elif name.startswith("seeds:"):
            steps.append(lambda name=name: seed_prompts(checkout, p.eval_fraction, name))  # type: ignore[misc]
    steps.append(lambda: kept_out(checkout, p.eval_fraction))
    all_of(*steps)

"""The held-out prompts and ranked responses: M0/eval where it is, else what `eval_fraction` kept out of the data."""

from pathlib import Path

from self_reward.errors import all_of
from self_reward.method import judge, prompts
from self_reward.repository import examples
from self_reward.repository.examples import Ranked


def read_files(eval_prompts: Path | None, eval_eft: Path | None) -> tuple[list[str], Ranked]:
    """The prompts and the ranked responses of M0/eval; raises UserError with the problems of both files together."""
    texts, ranked = all_of(
        lambda: examples.read_prompts(eval_prompts) if eval_prompts is not None else [],
        lambda: examples.read_ranked(eval_eft) if eval_eft is not None else [],
    )
    return texts, ranked


def read(
    eval_prompts: Path | None,
    eval_eft: Path | None,
    train: Path | None,
    *,
    fraction: float,
    rubric: str,
    score_max: int,
) -> tuple[list[str], Ranked]:
    """(prompts to answer, groups of ranked responses to judge). Without M0/eval, held-out judgements of the training
    data are grouped by prompt, each response ranked by the score that its judgement gives."""
    if eval_prompts is not None or eval_eft is not None:
        texts, ranked = read_files(eval_prompts, eval_eft)
        return texts or [prompt for prompt, _ in ranked], ranked
    own: dict[str, None] = {}
    groups: dict[str, list[tuple[str, float]]] = {}
    for row in examples.read(train) if train is not None else []:
        if row.source != "eft":
            if prompts.held_out(row.prompt, fraction):
                own[row.prompt] = None
            continue
        parts = judge.split_judge_prompt(rubric, row.prompt)
        score = judge.parse_score(row.response, 0, score_max)
        if parts is not None and score is not None and prompts.held_out(parts[0], fraction):
            groups.setdefault(parts[0], []).append((parts[1], score_max - score))
    return list(own), [(prompt, answers) for prompt, answers in groups.items() if len(answers) > 1]

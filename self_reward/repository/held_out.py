"""Held-out data: what training never sees, and what evaluation asks and judges.

It is what M0/eval holds, or without that folder the share `eval_fraction` of the prompts in the training data.
"""

from dataclasses import dataclass
from pathlib import Path

from self_reward.errors import UserError, all_of
from self_reward.method import judge, prompts
from self_reward.parameters.settings import Scale
from self_reward.repository import examples, jsonl
from self_reward.rows import HeldOutPrompt, Ranked, RankedResponse


@dataclass(frozen=True)
class KeptOut:
    """What no training data may hold (`prompt in kept_out`): certain prompts, and a share of all, chosen by a hash."""

    prompts: frozenset[str]
    fraction: float

    def __contains__(self, prompt: object) -> bool:
        return prompt in self.prompts or prompts.is_held_out(str(prompt), self.fraction)


def kept_out(eval_prompts: Path | None, eval_eft: Path | None, fraction: float) -> KeptOut:
    """The prompts of the files of M0/eval, or if there is neither, the share `fraction` of all prompts."""
    asked, ranked = read_files(eval_prompts, eval_eft)
    if eval_prompts is not None or eval_eft is not None:
        return KeptOut(frozenset([*asked, *(group.prompt for group in ranked)]), 0.0)
    return KeptOut(frozenset(), fraction)


def evaluation_data(
    eval_prompts: Path | None, eval_eft: Path | None, train: Path | None, fraction: float, rubric: str, scale: Scale
) -> tuple[list[str], list[Ranked]]:
    """(prompts to answer, ranked responses to judge). Without M0/eval, held-out judgements of the training data are
    grouped by prompt, each response ranked by the score that its judgement gives."""
    if eval_prompts is not None or eval_eft is not None:
        asked, ranked = read_files(eval_prompts, eval_eft)
        return asked or [group.prompt for group in ranked], ranked
    own: dict[str, None] = {}
    groups: dict[str, list[RankedResponse]] = {}
    for _, row in examples.read(train) if train is not None else []:
        if row.source != "eft":
            if prompts.is_held_out(row.prompt, fraction):
                own[row.prompt] = None
            continue
        parts = judge.split_judge_prompt(rubric, row.prompt)
        score = judge.parse_score(row.response, 0, scale.max)
        if parts is not None and score is not None and prompts.is_held_out(parts[0], fraction):
            groups.setdefault(parts[0], []).append(RankedResponse(parts[1], scale.max - score))
    return list(own), [Ranked(prompt, answers) for prompt, answers in groups.items() if len(answers) > 1]


def read_files(eval_prompts: Path | None, eval_eft: Path | None) -> tuple[list[str], list[Ranked]]:
    """The prompts and the ranked responses of M0/eval; raises UserError with the problems of both files together."""
    asked, ranked = all_of(
        lambda: read_prompts(eval_prompts) if eval_prompts is not None else [],
        lambda: read_ranked(eval_eft) if eval_eft is not None else [],
    )
    return asked, ranked


def read_prompts(path: Path) -> list[str]:
    """The prompts of M0/eval/prompts.jsonl. Raises UserError with every bad row, or when there is no row."""
    asked = [row.prompt for row in jsonl.read(path, HeldOutPrompt)]
    if not asked:
        raise UserError(f"{path} has no rows; put held-out prompts there, one JSON object per line, or remove the file")
    return asked


def read_ranked(path: Path) -> list[Ranked]:
    """The rows of M0/eval/eft.jsonl. Raises UserError with every bad row, or when there is no row."""
    ranked = list(jsonl.read(path, Ranked))
    if not ranked:
        raise UserError(f"{path} has no rows; put ranked responses there, one JSON object per line, or remove the file")
    return ranked

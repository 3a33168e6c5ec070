"""Few-shot writing of new prompts: ask, parse, filter, and ask again until enough are accepted (paper section 2.2)."""

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from self_reward.errors import UserError
from self_reward.method import prompts
from self_reward.parameters.settings import Writing

FIRST_YIELD = 0.5  # usable prompts per request, assumed until the first round has shown how many


@dataclass
class Written:
    """The accepted prompts, and counts of the others by reason."""

    prompts: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    candidates: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (reason, text): the first few


def write(
    ask: Callable[[int, list[str]], list[tuple[str, str]]],
    seeds: list[str],
    accept: prompts.PromptFilter,
    template: str,
    writing: Writing,
    seed: int,
) -> Written:
    """Up to `writing.num_prompts` new prompts. `ask(round, requests)` gives the model's answer to each request and its
    finish_reason.

    Only the answers are parsed, never the shots (B2). `prompt_max_requests` bounds the loop (B20). Raises UserError,
    with counts by reason and samples, if less than `min_prompt_yield` of what the model writes is usable.
    """
    written = Written()
    number = 0
    count, max_requests = writing.num_prompts, round(writing.num_prompts * writing.prompt_max_requests)
    while len(written.prompts) < count and written.requests < max_requests:
        rate = max(len(written.prompts) / written.requests, 0.05) if written.requests else FIRST_YIELD
        wanted = min(math.ceil((count - len(written.prompts)) / rate * 1.1), max_requests - written.requests)
        rng = random.Random(f"{seed} {number}")
        shots = [
            prompts.choose_shots(rng, seeds, written.prompts, writing.prompt_seed_shots, writing.prompt_generated_shots)
            for _ in range(wanted)
        ]
        answers = ask(number, [prompts.few_shot_prompt(template, examples) for examples in shots])
        written.requests += wanted
        number += 1
        _take(answers, accept, written, count)
        if len(written.prompts) < writing.min_prompt_yield * max(written.candidates, 1):
            raise UserError(_unusable(written))
    if not written.prompts:
        raise UserError(_unusable(written))
    return written


def _take(answers: list[tuple[str, str]], accept: prompts.PromptFilter, written: Written, count: int) -> None:
    candidates = []
    for text, finish_reason in answers:
        parsed = prompts.parse_prompts(text, finish_reason)
        candidates += parsed
        if not parsed:
            _reject(written, "nothing_parsed", text)
    for candidate, reason in zip(candidates, accept.take(candidates), strict=True):
        if len(written.prompts) >= count:
            return
        if reason is not None:
            _reject(written, reason, candidate)
        else:
            written.candidates += 1
            written.prompts.append(candidate)


def _reject(written: Written, reason: str, text: str) -> None:
    written.candidates += 1
    written.reasons[reason] += 1
    if sum(kept == reason for kept, _ in written.rejected) < 3:
        written.rejected.append((reason, text[:200]))


def _unusable(written: Written) -> str:
    reasons = ", ".join(f"{reason} {n}" for reason, n in written.reasons.most_common())
    samples = "; ".join(f"{reason}: {text!r}" for reason, text in written.rejected[:3])
    return (
        f"the model cannot write prompts: {len(written.prompts)} of {written.candidates} are usable ({reasons}). "
        f"Samples: {samples}. Set prompt_model to a model that can (base, M0/sft), or fix prompt_template, "
        "prompt_pattern or the length bounds"
    )

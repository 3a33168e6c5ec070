"""A language model as the method sees it: texts in, samples out. models/policy.py implements it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from self_reward.parameters.settings import Sampling


@dataclass(frozen=True)
class Sample:
    """One answer. `token_ids` are the generated tokens without the stop token; `text` is exactly their decoding,
    without special tokens (nothing is cut or stripped: B4). `finish_reason`: "stop" when a stop token ended it,
    "length" when it was cut by `max_tokens` or by the model's length."""

    text: str
    token_ids: list[int]
    finish_reason: str


class Policy(Protocol):
    """A model that answers, judges and writes prompts."""

    def ask(
        self, texts: Sequence[str], sampling: Sampling, *, n: int = 1, part: str = "", seed_offset: int = 0
    ) -> list[list[Sample]]:
        """n samples of the answer to each text, in order; none for texts that another shard answers."""

    def choice_logprobs(self, begun: Sequence[tuple[str, str]], choices: Sequence[str]) -> list[list[float] | None]:
        """For each (question, beginning of its answer): the log-probabilities (nats) of `choices` as the next word of
        the answer, renormalised over them; None if the model's length leaves no room for it."""

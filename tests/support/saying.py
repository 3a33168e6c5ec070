"""A policy without a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from self_reward.method.asking import Sample
from self_reward.parameters.settings import Sampling


@dataclass(frozen=True)
class Asked:
    """What a policy was asked once."""

    texts: list[str]
    sampling: Sampling
    n: int
    part: str


class Saying:
    """A policy that says `answer(text, i)` in its i-th sample, one token per word, and remembers what it was asked. It
    answers nothing where `answer` gives None, as a shard does. `logprobs(question, begun)` ranks the choices."""

    def __init__(
        self,
        answer: Callable[[str, int], str | None],
        logprobs: Callable[[str, str], list[float] | None] = lambda question, begun: None,
    ):
        self.answer, self.logprobs = answer, logprobs
        self.asked: list[Asked] = []

    def ask(
        self, texts: Sequence[str], sampling: Sampling, *, n: int = 1, part: str = "", seed_offset: int = 0
    ) -> list[list[Sample]]:
        self.asked.append(Asked(list(texts), sampling, n, part))
        said = [[self.answer(text, i) for i in range(n)] for text in texts]
        return [
            [Sample(text, list(range(len(text.split()))), "stop") for text in row if text is not None] for row in said
        ]

    def choice_logprobs(self, begun: Sequence[tuple[str, str]], choices: Sequence[str]) -> list[list[float] | None]:
        return [self.logprobs(question, answer) for question, answer in begun]

"""The rows of the data repository's .jsonl files: one class per file, one field per column.

The reader and the writer (repository/jsonl.py) and docs/files.md follow these classes. Columns are written in the order
of the fields. Every row must have the columns whose fields have no default; the others may be missing or null, as some
are in older files and in those of the community reproduction. Columns that a class does not name are allowed.

The classes neither read nor write files, so they stand below method/, which computes with rows, and below repository/,
which keeps them in files.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec


class Row(msgspec.Struct, omit_defaults=True):
    """One line of a file. Fields with their default are not written."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {}
    """Columns that a row may only lack if it has another one with their values: column -> the other one."""

    @property
    def extra(self) -> dict[str, Any]:
        """Columns that the class does not name, if they are carried along; see Answer."""
        return {}

    def problem(self) -> str | None:
        """What is wrong with the values, apart from their types."""
        return None


def _prompt_problem(prompt: str) -> str | None:
    return "the prompt is empty" if not prompt or prompt.isspace() else None


def _generated_problem(prompt_id: str, prompt: str) -> str | None:
    return _prompt_problem(prompt) if prompt_id else "prompt_id is empty"


# ---- what the user provides


class Example(Row):
    """Training data: an instruction and its answer, or a question to the judge and its judgement."""

    OTHER_NAMES = {"response": "completion"}

    prompt: str
    """The instruction, or the rubric filled in with an instruction and a response."""
    response: str = ""
    """The answer, or the judgement. Missing only if `completion` has it."""
    source: str = "ift"
    """`ift` (instruction fine-tuning; the default) or `eft` (evaluation fine-tuning: a judgement)."""
    completion: str = ""
    """What the reproduction calls `response`."""

    def __post_init__(self) -> None:
        self.response = self.response or self.completion
        self.completion = ""
        self.source = self.source.lower() or "ift"

    def problem(self) -> str | None:
        return "the response is empty" if not self.response.strip() else _prompt_problem(self.prompt)


class HeldOutPrompt(Row):
    """A prompt that is never trained on, and answered in evaluation."""

    prompt: str
    """The instruction."""

    def problem(self) -> str | None:
        return _prompt_problem(self.prompt)


class RankedResponse(msgspec.Struct):
    """A response and its rank among those to the same prompt."""

    text: str
    rank: float


class Ranked(Row):
    """A prompt with ranked responses. It is never trained on; in evaluation the judge's scores are compared with the
    ranks."""

    prompt: str
    """The instruction."""
    responses: list[RankedResponse]
    """Two or more; rank 0 is the best."""

    def problem(self) -> str | None:
        if len(self.responses) < 2:
            return f"{len(self.responses)} responses; expected two or more of {{text, rank}}"
        return _prompt_problem(self.prompt)


# ---- what the stages write


class Prompt(Row):
    """A new prompt."""

    prompt_id: str
    """16 hex digits of the SHA-256 of the prompt."""
    prompt: str
    """The instruction."""
    source: str | None = None
    """`generated`."""

    def problem(self) -> str | None:
        return _generated_problem(self.prompt_id, self.prompt)


class Answer(Row, kw_only=True, dict=True, forbid_unknown_fields=True):
    """What Response and Score have in common. Their unknown columns are carried along, in __dict__: they are forbidden
    to msgspec, so that the reader comes to see them."""

    prompt_id: str
    """That of the prompt."""
    response_id: str | None = None
    """prompt_id, a hyphen, and the number of the response to this prompt, from 0."""
    prompt: str
    """The instruction."""
    completion: str
    """The response."""
    finish_reason: str | None = None
    """`stop`, or `length` if the response was cut off by response_max_tokens."""
    tokens: int | None = None
    """Length of the response in tokens."""

    @property
    def extra(self) -> dict[str, Any]:
        return self.__dict__

    def problem(self) -> str | None:
        return _generated_problem(self.prompt_id, self.prompt)


class Response(Answer, kw_only=True):
    """A response of the policy to a new prompt."""

    position: int | None = None
    """Only in a shard's file: the index of the row's prompt in the input, from 0."""


class Score(Answer, kw_only=True):
    """A response and what the judge gave it."""

    score: float | None
    """Mean of the readable votes; null: none is readable (-1 in the reproduction's files)."""
    votes: list[float | None] | None = None
    """The judge's votes; null: unreadable."""
    reasoning: list[str] | str | None = None
    """The judgements from which the votes were read (one text in the reproduction's files)."""
    position: int | None = None
    """Only in a shard's file: the index of the row in the input, from 0."""

    @classmethod
    def of(
        cls,
        response: Response,
        score: float | None,
        votes: list[float | None],
        reasoning: list[str],
        position: int | None,
    ) -> "Score":
        """The row of a judged response, with all columns of the response, known or not."""
        columns = {name: getattr(response, name) for name in Answer.__struct_fields__}
        row = cls(**columns, score=score, votes=votes, reasoning=reasoning, position=position)
        row.extra.update(response.extra)
        return row

    def problem(self) -> str | None:
        if self.score is not None and not -1 <= self.score <= 9:
            return f"the score is {self.score:g}; expected a number on the rubric's scale, within 0 to 9, or null"
        return _generated_problem(self.prompt_id, self.prompt)


class Preference(Row):
    """A pair for DPO."""

    prompt_id: str
    """That of the prompt."""
    prompt: str
    """The instruction."""
    chosen: str
    """The better response."""
    rejected: str
    """The worse response."""
    score_chosen: float | None = None
    """Score of the better response."""
    score_rejected: float | None = None
    """Score of the worse response."""

    def problem(self) -> str | None:
        return _generated_problem(self.prompt_id, self.prompt)


def response_counts(rows: Sequence[Response]) -> dict[str, int]:
    """What 02_gen_responses reports of the rows that it writes."""
    return {
        "responses": len(rows),
        "truncated": sum(row.finish_reason == "length" for row in rows),
        "tokens": sum(row.tokens or 0 for row in rows),
    }

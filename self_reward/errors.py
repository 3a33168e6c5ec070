"""The two kinds of failure that a stage tells apart by its exit code."""

from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """The user must change something (exit code 2). Holds every problem found, not only the first."""

    def __init__(self, problems: list[str] | str):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class TryAgain(Exception):
    """The same command may succeed later: network, lock, disk, memory (exit code 75)."""


def all_of(*steps: Callable[[], Any]) -> list[Any]:
    """The results of `steps`, called in order. All are called: where some raise UserError, one with the problems of
    all of them is raised, so that several bad files need one run to be found, not several."""
    results, problems = [], []
    for step in steps:
        try:
            results.append(step())
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    return results

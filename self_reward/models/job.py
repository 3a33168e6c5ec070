"""A piece of a model's work that survives a kill."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int, str], None]  # units done, units in all, a word on what or how


def no_progress(done: int, total: int, what: str = "") -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Job:
    """`folder`: partial results and training checkpoints, from which the next try resumes; it belongs to this job
    alone. `seed` seeds sampling or training. `shard` (i, n): this process does part i of n of the work."""

    folder: Path
    seed: int
    progress: Progress = no_progress
    shard: tuple[int, int] = (0, 1)

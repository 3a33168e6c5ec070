"""What a check of the cluster finds, and how its texts list things."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Findings:
    """Problems that keep a run from working, and notes that are worth reading though the run may start."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: "Findings") -> None:
        self.problems += other.problems
        self.notes += other.notes


def listed(texts: Iterable[str], most: int = 8) -> str:
    """The first `most` texts, joined by commas, and how many more there are."""
    every = list(texts)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")

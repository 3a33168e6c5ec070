"""What the pods of a run need, compared with what the cluster has.

A pod that needs something missing waits forever without an error, or fails hours later. check.py asks the API server
by way of api.py; the other modules are pure functions of objects as Kubernetes gives them in JSON. What the service
account may not read is reported as a note and not as a problem.
"""

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

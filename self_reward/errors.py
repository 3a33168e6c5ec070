"""The two kinds of failure that a stage tells apart by its exit code."""


class UserError(Exception):
    """The user must change something (exit code 2). Holds every problem found, not only the first."""

    def __init__(self, problems: list[str] | str):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class TryAgain(Exception):
    """The same command may succeed later: network, lock, disk, memory (exit code 75)."""

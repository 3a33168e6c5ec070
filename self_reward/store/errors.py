"""What can go wrong in a data repository, each also a UserError (exit code 2) or a TryAgain (75)."""

from self_reward.errors import TryAgain, UserError


class NotFound(UserError):
    """The repository, branch, commit or file does not exist."""


class Conflict(UserError):
    """The branch has somebody else's commit, or a file that this stage must not replace."""


class Auth(UserError):
    """The server refuses the token, or the token may not do this."""


class Corrupt(UserError):
    """Content differs from what was recorded, or is missing from the repository."""


class NoChanges(UserError):
    """There is nothing to commit."""


class Network(TryAgain):
    """The server cannot be reached or does not answer properly. `passes`: whether trying again may help."""

    def __init__(self, text: str, *, passes: bool = True):
        super().__init__(text)
        self.passes = passes


class ServerError(TryAgain):
    """The server answers, but with an error on its side: overloaded, restarting, its disk full.

    `passes`: whether trying again within seconds may help; `after`: seconds that the server asks to wait.
    """

    def __init__(self, text: str, *, passes: bool = True, after: float = 0.0):
        super().__init__(text)
        self.passes, self.after = passes, after


TYPES: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (UserError, TryAgain, NotFound, Conflict, Corrupt, NoChanges)
}


def from_oxen(text: str) -> UserError | TryAgain | None:
    """The typed error for a message of oxenai 0.65.1 about a local repository; they differ only in their text.
    None: not known."""
    first = text.strip().splitlines()[0] if text.strip() else ""
    if "LOCK: Resource temporarily unavailable" in text:
        return TryAgain("another program has the data repository open (an `oxen` command?): close it and run again")
    if "Permission denied" in text:
        return UserError(f"Oxen may not write to the data repository: {first}")
    if "PathDoesNotExist" in text or "Failed to read config" in text:
        return Corrupt(
            f"the data repository's own files in .oxen are damaged, bring them back from a copy. Oxen: {first}"
        )
    if "No changes to commit" in text:
        return NoChanges("Oxen found nothing to commit")
    if "Revision not found" in text or "does not exist" in text:
        return NotFound(f"Oxen: {first}")
    return None

"""One Oxen operation in one process: request on fd 0, answer on fd 1, both JSON.

Run     python -m self_reward.store.local.child

Why in a separate process: Oxen holds a database lock until the process that opened a repository exits, holds the GIL
for the whole of a call (no signal handler runs), prints to fd 1 past sys.stdout, and raises panics that are not
Exceptions. The parent (store.py) holds the repository's lock and hands its file descriptor down, so the lock lives as
long as either of them. A kill at any moment is survived (journal.py).
"""

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from self_reward import disk
from self_reward.errors import TryAgain, UserError
from self_reward.store.errors import from_oxen
from self_reward.store.local import operations
from self_reward.types import Json

OPERATIONS: dict[str, Callable[..., object]] = {
    "init": operations.init,
    "resolve": operations.resolve,
    "push": operations.push,
    "put": operations.put,
    "accept": operations.accept,
}


def main() -> None:
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Oxen prints there
    request = json.load(sys.stdin)
    root = Path(request["repo"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(math.ceil(request.pop("timeout")) + 5)  # ends this process even inside Oxen, and without a parent
    try:
        with disk.explained(root):
            result: dict[str, object] = {"value": OPERATIONS[request.pop("operation")](**request)}
    except BaseException as error:  # Oxen's panics are not Exceptions
        result = {"error": _error(error, root)}
    with open(answer, "w", encoding="utf-8") as file:
        json.dump(result, file)


def _error(error: BaseException, root: Path) -> Json:
    """What the parent raises again."""
    if isinstance(error, PermissionError):
        error = UserError(f"{error.filename or root}: {error.strerror}")
    if not isinstance(error, (UserError, TryAgain, OSError)):
        error = from_oxen(str(error)) or error
        if not isinstance(error, (UserError, TryAgain)) and disk.nearly_full(root):
            # LMDB says "Input/output error" when it could write only a part
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            error = TryAgain(f"{disk.in_words(root)} (Oxen: {first})")
    if isinstance(error, (UserError, TryAgain)):
        problems = error.problems if isinstance(error, UserError) else [str(error)]
        return {"type": type(error).__name__, "problems": problems}
    import traceback

    return {
        "type": type(error).__name__,
        "problems": ["".join(traceback.format_exception(error))],
        "errno": getattr(error, "errno", None),
    }


if __name__ == "__main__":
    main()
    os._exit(0)  # not through Oxen's destructors

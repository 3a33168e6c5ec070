"""A stage's progress: a bar on a terminal, a line every ten seconds elsewhere."""

import contextlib
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

PROGRESS_SECONDS = 10.0

log = logging.getLogger("self_reward")


class Progress:
    """A bar on a terminal, else a line every ten seconds at most; `N/M` in $ARGO_PROGRESS_FILE where it is set."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._begun = (0.0, 0, 0)  # time, units done and total units when the current work began
        self._last = 0
        self._shown = 0.0

    def __call__(self, done: int, total: int, what: str = "") -> None:
        if total != self._begun[2] or done < self._last:
            self._begun = (time.monotonic(), done, total)
            if self._bar is not None:
                self._bar.close()
                self._bar = None
        self._last = done
        if sys.stderr.isatty():
            self._draw(done, total, what)
            if done < total and time.monotonic() - self._shown < 1:
                return
        elif time.monotonic() - self._shown < PROGRESS_SECONDS and not (done == total and self._shown):
            return
        else:
            log.info("%s%d/%d%s", f"{what} " if what else "", done, total, self._left(done, total))
        self._shown = time.monotonic()
        if file := os.environ.get("ARGO_PROGRESS_FILE"):
            with contextlib.suppress(OSError):  # a full disk, which is no reason to end a stage
                Path(file).write_text(f"{done}/{total}")

    def _draw(self, done: int, total: int, what: str) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, file=sys.stderr, initial=done)
        self._bar.set_description(what, refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()

    def _left(self, done: int, total: int) -> str:
        begun, first, _ = self._begun
        if done <= first or done >= total:
            return ""
        seconds = (time.monotonic() - begun) * (total - done) / (done - first)
        return f", about {seconds:.0f} s left"

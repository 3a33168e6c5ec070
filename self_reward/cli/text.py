"""How sizes, times and tables are written, and lines printed."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator

from self_reward.store import Commit


def human(size: int) -> str:
    """A number of bytes with a unit: 512 B, 1.2 MB."""
    if size < 1000:
        return f"{size} B"
    value, unit = size / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value >= 999.5:
            value, unit = value / 1000, larger
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def when(commit: Commit) -> str:
    """A commit's time to the minute, in UTC."""
    return commit.time[:16].replace("T", " ")


def plain(line: str) -> str:
    """`line` with control characters escaped: other people's names and messages must not control the terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def aligned(rows: Iterable[tuple[str, ...]], right: int = 0) -> list[str]:
    """Rows with equal numbers of cells as lines with equally wide columns; the first `right` are flushed right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if i < right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


@contextlib.contextmanager
def to_a_reader_that_may_leave() -> Iterator[None]:
    """Writing to standard output whose reader may end early, as in `| head`: that is not an error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""A table of measurements, with the machine that they were made on."""

import os
import platform

from rich.console import Console
from rich.table import Table


def show(title: str, rows: dict[str, str]) -> None:
    """Print `rows`, one figure per row."""
    machine = f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}"
    shown = Table(title=title, caption=machine, show_header=False, title_justify="left", caption_justify="left")
    for name, value in rows.items():
        shown.add_row(name, value)
    Console(width=110).print(shown)

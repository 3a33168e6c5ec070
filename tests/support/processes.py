"""The processes that a test started, also those that left its process group."""

import time
from pathlib import Path

MARK = "SELF_REWARD_TEST_PROCESSES"  # in the environment of everything that a test starts


def marked(value: str) -> list[int]:
    """The living processes that were started with MARK=value."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={value}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            pass
    return found


def gone(value: str, seconds: float) -> bool:
    """Whether all of them end within `seconds`."""
    end = time.monotonic() + seconds
    while left := marked(value):
        if time.monotonic() > end:
            print("left:", left)
            return False
        time.sleep(0.1)
    return True

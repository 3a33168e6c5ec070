"""Several transfers at a time, which all end with the first error, and a report of their bytes."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from self_reward.store import Progress
from self_reward.store.remote.server import Server

THREADS = 4
LONG = 100 << 20  # bytes; less takes a second and needs no progress bar

T = TypeVar("T")
Item = TypeVar("Item")


def each(server: Server, work: Callable[[str], None], paths: list[str]) -> None:
    """Call `work` with every path, THREADS at a time; the first error ends it."""
    with threads_of(server) as threads:
        results(threads, work, paths)


def results(threads: ThreadPoolExecutor, work: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
    """What `work` returns for each item. The first error, of whichever item, is raised at once, and no item is
    started after it."""
    futures = [threads.submit(work, item) for item in items]
    try:
        for future in as_completed(futures):
            future.result()
    finally:
        for future in futures:
            future.cancel()
    return [future.result() for future in futures]


@contextlib.contextmanager
def threads_of(server: Server) -> Iterator[ThreadPoolExecutor]:
    """THREADS threads, which end after an error, Ctrl-C included, instead of trying until the time is over."""
    with ThreadPoolExecutor(THREADS) as threads:
        try:
            yield threads
        except BaseException:
            server.stop()
            raise


def counter(progress: Progress | None, unit: str, total: int) -> Callable[[int], None]:
    """A function that adds bytes, from any thread, and shows them as MB of `total` bytes."""
    if progress is None or total < LONG:
        return lambda count: None
    lock = threading.Lock()
    done, shown = 0, time.monotonic()

    def add(count: int) -> None:
        nonlocal done, shown
        with lock:
            done += count
            if time.monotonic() - shown > 0.5 or done >= total:
                shown = time.monotonic()
                progress(min(done, total) // 1_000_000, total // 1_000_000, unit)

    return add

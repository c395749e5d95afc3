"""Many devices at once: bounded threads, results as they come, tries until a deadline."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from fedctl.core.errors import FedctlError, UnreachableError

Item = TypeVar("Item")
Result = TypeVar("Result")

PARALLEL = 64  # devices worked on at the same time
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0


def sweep(
    items: Iterable[Item], work: Callable[[Item], Result], *, parallel: int = PARALLEL
) -> Iterator[tuple[Item, Result | FedctlError]]:
    """Run `work` for every item in threads and yield (item, result or error) as they finish.

    One device's `FedctlError` is a value and stops nobody; any other exception is a defect and is
    raised here. When the caller stops early or is interrupted, no further item is started and the
    running ones are left to end with the process.

    Args:
        items: What to work on; read completely before the first result.
        work: Called in a thread of its own, at most once an item.
        parallel: At most so many at the same time.
    """
    waiting = queue.SimpleQueue[Item]()
    finished = queue.SimpleQueue[tuple[Item, Result | BaseException]]()
    total = 0
    for item in items:
        waiting.put(item)
        total += 1

    def worker() -> None:
        while True:
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                finished.put((item, work(item)))
            except BaseException as error:  # noqa: BLE001 - raised again where the results are read
                finished.put((item, error))

    # Daemon threads: an executor's would keep an interrupted command alive until the last deadline.
    for _ in range(min(parallel, total)):
        threading.Thread(target=worker, daemon=True).start()
    try:
        for _ in range(total):
            item, outcome = finished.get()
            if isinstance(outcome, BaseException) and not isinstance(outcome, FedctlError):
                raise outcome
            yield item, outcome
    finally:
        with suppress(queue.Empty):
            while True:
                waiting.get_nowait()


def retrying(
    work: Callable[[], Result],
    *,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
    jitter: Callable[[], float] = random.random,
) -> Result:
    """Call `work` again after each `UnreachableError`, with growing random pauses, until `deadline`.

    Args:
        work: What to try; it must be idempotent, as every call of an agent is.
        deadline: Instant of `clock` after which the last error is raised instead of another try.
        clock: Seconds, monotonic.
        sleep: Waits so many seconds, e.g. an event's `wait`.
        jitter: A number in [0, 1).

    Raises:
        UnreachableError: The last one, when the deadline would pass during the pause.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return work()
        except UnreachableError:
            wait_s = pause_s * (0.5 + jitter() / 2)
            if clock() + wait_s >= deadline:
                raise
            sleep(wait_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

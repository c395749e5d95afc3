"""Progress of a job, seldom enough not to matter: at each step that counts and twice a second between."""

from __future__ import annotations

import time
from collections.abc import Callable

from fedctl_wire.messages import Progress

INTERVAL_S = 0.5


class Reporter:
    """Numbers progress lines and drops those that come too soon after the last.

    Args:
        write: Where a line goes.
        epochs: Local epochs in all; 0 for jobs without.
        clock: Seconds, monotonic; decides only what is reported.
    """

    def __init__(
        self,
        write: Callable[[Progress], None],
        *,
        epochs: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._epochs = epochs
        self._clock = clock
        self._seq = 0
        self._last = clock()

    def report(self, *, epoch: int = 0, examples: int, loss: float | None = None, always: bool) -> None:
        """Write a line now if `always`, else when the last one is half a second old."""
        now = self._clock()
        if not always and now - self._last < INTERVAL_S:
            return
        self._last = now
        self._seq += 1
        self._write(Progress(self._seq, epoch, self._epochs, examples, loss))

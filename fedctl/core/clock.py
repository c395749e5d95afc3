"""Time as something that is passed in, so that whatever waits or stamps can be tested without waiting."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> datetime:
        """The wall clock, with time zone UTC; may jump."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary point; never goes back. For durations and deadlines in one process."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """The wall clock in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds of CLOCK_MONOTONIC."""
        return time.monotonic()


SYSTEM_CLOCK = SystemClock()


def rfc3339(moment: datetime) -> str:
    """Write a moment as RFC 3339 in UTC with milliseconds, e.g. `2026-07-04T12:00:00.000Z`.

    Texts of this form sort like the moments themselves.

    Raises:
        ValueError: When `moment` has no time zone: it could be anybody's local time.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""Time stamps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from fedctl.core.clock import SYSTEM_CLOCK, rfc3339


def test_time_stamps_are_utc_with_milliseconds() -> None:
    noon = datetime(2026, 7, 4, 14, 0, 0, 1999, tzinfo=timezone(timedelta(hours=2)))
    assert rfc3339(noon) == "2026-07-04T12:00:00.001Z"
    assert datetime.fromisoformat(rfc3339(noon)) == noon.replace(microsecond=1000)
    with pytest.raises(ValueError, match="time zone"):
        rfc3339(datetime(2026, 7, 4))  # noqa: DTZ001 - what is tested


def test_the_system_clock() -> None:
    assert SYSTEM_CLOCK.now().tzinfo is UTC
    assert SYSTEM_CLOCK.monotonic() <= SYSTEM_CLOCK.monotonic()

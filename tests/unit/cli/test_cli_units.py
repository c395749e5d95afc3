"""Quantities for people."""

from __future__ import annotations

import pytest

from fedctl.cli.options import integers, seconds_of
from fedctl.cli.units import byte_count, duration, fixed
from fedctl.core.errors import UsageError


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1736, "1.7 kB"),
        (9_949, "9.9 kB"),
        (9_960, "10 kB"),
        (14_000, "14 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (5_000_000_000_000_000, "5000 TB"),
    ],
)
def test_bytes_have_two_to_four_digits(count: int, text: str) -> None:
    assert byte_count(count) == text


def test_shares_have_no_leading_zero() -> None:
    assert fixed(0.8712, 3) == ".871"
    assert fixed(-0.011, 3) == "-.011"
    assert fixed(1.5, 3) == "1.500"
    assert fixed(10.04, 1) == "10.0"
    assert fixed(None, 3) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.31, ".31 s"),
        (1.42, "1.4 s"),
        (12.4, "12 s"),
        (598, "9 min 58 s"),
        (3661, "1 h 1 min"),
        (None, None),
    ],
)
def test_durations(seconds: float | None, text: str | None) -> None:
    assert duration(seconds) == text


def test_durations_are_read() -> None:
    assert [seconds_of(text, option="--deadline") for text in ("90", "90s", "10m", "1.5h")] == [
        90,
        90,
        600,
        5400,
    ]
    for bad in ("", "m", "ten", "5d", "--"):
        with pytest.raises(UsageError, match="--deadline"):
            seconds_of(bad, option="--deadline")


def test_lists_of_numbers_are_read() -> None:
    assert integers(["64,32", "16"], option="--hidden") == (64, 32, 16)
    for bad in ("", "0", "-1", "a", "1,,2", "1.5", "²"):
        with pytest.raises(UsageError, match="--hidden"):
            integers([bad], option="--hidden")

"""The gate's arithmetic, and figures that no data can have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedctl.core.gate import judge, plausible, total
from fedctl_wire.messages import Evaluation

GOOD = Evaluation(
    examples=4,
    loss_sum=2.0,
    correct=3,
    histogram=((10, 1, 0), (700, 1, 2)),
    classes=((0, 2, 1, 1), (1, 2, 3, 2)),
)


def test_devices_are_weighted_by_their_examples() -> None:
    small, large = Evaluation(1, 1.0, 0), Evaluation(9, 0.9, 9)
    measured = total([small, large])
    assert (measured.examples, measured.loss, measured.accuracy) == (10, pytest.approx(0.19), 0.9)
    assert measured.histogram is None


def test_histograms_are_added_bin_by_bin() -> None:
    other = replace(GOOD, histogram=((0, 3, 0), (700, 0, 1)))
    assert total([GOOD, other]).histogram == ((0, 3, 0), (10, 1, 0), (700, 1, 3))


def test_counts_by_class_are_added_and_missing_where_one_device_has_none() -> None:
    other = replace(GOOD, classes=((1, 3, 1, 1), (4, 1, 3, 1)))
    assert total([GOOD, other]).classes == ((0, 2, 1, 1), (1, 5, 4, 3), (4, 1, 3, 1))
    assert total([GOOD, replace(GOOD, classes=None)]).classes is None


def test_one_device_without_a_histogram_leaves_none() -> None:
    assert total([GOOD, replace(GOOD, histogram=None)]).histogram is None


def test_a_candidate_within_the_tolerance_passes() -> None:
    better = replace(GOOD, loss_sum=2.0 * 1.05)
    assert judge({"a": (GOOD, better)}, tolerance=0.05).passed
    verdict = judge({"a": (GOOD, replace(GOOD, loss_sum=2.2))}, tolerance=0.05)
    assert not verdict.passed
    assert verdict.reason == "loss rose from 0.500 to 0.550, more than 5%"


def test_with_nobody_to_evaluate_it_passes_and_says_so() -> None:
    verdict = judge({}, tolerance=0.0)
    assert (verdict.passed, verdict.base, verdict.candidate) == (True, None, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"examples": 0},
        {"examples": -4},
        {"correct": 5},
        {"correct": -1},
        {"loss_sum": -0.1},
        {"histogram": ((10, 1, 0),)},
        {"histogram": ((10, 1), (700, 1, 2))},
        {"histogram": ((10, -1, 2), (700, 1, 2))},
        {"histogram": ((700, 1, 2), (10, 1, 0))},
        {"histogram": ((10, 1, 0), (10, 1, 2))},
        {"classes": ((0, 2, 1), (1, 2, 3))},
        {"classes": ((0, 2, 1, -1), (1, 2, 3, 4))},
        {"classes": ((1, 2, 3, 2), (0, 2, 1, 1))},
        {"classes": ((0, 1, 1, 1), (1, 2, 3, 2))},
        {"classes": ((0, 2, 0, 0), (1, 2, 3, 2))},
        {"classes": ((0, 2, 1, 1), (1, 2, 3, 1))},
        {"classes": ((0, 1, 2, 2), (1, 3, 2, 1))},
    ],
)
def test_figures_that_no_data_can_have_are_not_plausible(wrong: dict[str, object]) -> None:
    assert plausible(GOOD)
    assert not plausible(replace(GOOD, **wrong))  # type: ignore[arg-type]

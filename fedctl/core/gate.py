"""The gate: may a candidate version be published? Pure arithmetic over the devices' sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from fedctl_wire.messages import Evaluation

_HISTOGRAM_ROW = 3  # bin, count of class 0, count of class 1
_CLASS_ROW = 4  # class, its examples, how many were taken for it, how many of those rightly

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """One version measured over several devices, weighted by examples."""

    examples: int
    loss: float
    accuracy: float
    histogram: Rows | None = None  # (bin, class 0, class 1), summed; two classes only
    classes: Rows | None = None  # (class, its examples, taken for it, rightly), summed


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found; `base` and `candidate` are None when nobody answered for both."""

    passed: bool
    base: Measured | None
    candidate: Measured | None
    reason: str | None = None


def judge(pairs: Mapping[str, tuple[Evaluation, Evaluation]], *, tolerance: float) -> Verdict:
    """Compare candidate and base over the devices that measured both.

    The candidate passes when its loss is at most `base loss * (1 + tolerance)`. With no pairs there
    is nothing to hold against it: it passes, and the caller says so.

    Args:
        pairs: (base, candidate) by device name.
        tolerance: Relative, not negative.
    """
    if not pairs:
        return Verdict(passed=True, base=None, candidate=None)
    base = total([pair[0] for _, pair in sorted(pairs.items())])
    candidate = total([pair[1] for _, pair in sorted(pairs.items())])
    if candidate.loss <= base.loss * (1 + tolerance):
        return Verdict(passed=True, base=base, candidate=candidate)
    reason = f"loss rose from {base.loss:.3f} to {candidate.loss:.3f}, more than {tolerance:.0%}"
    return Verdict(passed=False, base=base, candidate=candidate, reason=reason)


def plausible(evaluation: Evaluation) -> bool:
    """Whether the figures can be those of any data: a device may claim what it likes."""
    if not (
        0 <= evaluation.correct <= evaluation.examples and evaluation.examples > 0 <= evaluation.loss_sum
    ):
        return False
    return _plausible_histogram(evaluation) and _plausible_classes(evaluation)


def _plausible_histogram(evaluation: Evaluation) -> bool:
    rows = evaluation.histogram
    if rows is None:
        return True
    return _in_order(rows, _HISTOGRAM_ROW) and sum(row[1] + row[2] for row in rows) == evaluation.examples


def _plausible_classes(evaluation: Evaluation) -> bool:
    rows = evaluation.classes
    if rows is None:
        return True
    if not _in_order(rows, _CLASS_ROW) or any(row[3] > min(row[1], row[2]) for row in rows):
        return False
    sums = [sum(row[column] for row in rows) for column in range(1, _CLASS_ROW)]
    return sums == [evaluation.examples, evaluation.examples, evaluation.correct]


def _in_order(rows: Rows, length: int) -> bool:
    """Whether rows have that many counts each, and what they are about rises."""
    if any(len(row) != length or min(row) < 0 for row in rows):
        return False
    places = [row[0] for row in rows]
    return places == sorted(set(places))


def total(evaluations: list[Evaluation]) -> Measured:
    """Add up what devices measured of one version.

    Args:
        evaluations: At least one, each with at least one example, in a fixed order.
    """
    examples = sum(e.examples for e in evaluations)
    return Measured(
        examples=examples,
        loss=sum(e.loss_sum for e in evaluations) / examples,
        accuracy=sum(e.correct for e in evaluations) / examples,
        histogram=_add([e.histogram for e in evaluations]),
        classes=_add([e.classes for e in evaluations]),
    )


def _add(tables: list[Rows | None]) -> Rows | None:
    """The rows' counts added by what they are about; None when a device gave none."""
    given = [table for table in tables if table is not None]
    if len(given) < len(tables):
        return None
    counts: dict[int, list[int]] = {}
    for place, *row in chain.from_iterable(given):
        sums = counts.setdefault(place, [0] * len(row))
        for column, count in enumerate(row):
            sums[column] += count
    return tuple((place, *sums) for place, sums in sorted(counts.items()))

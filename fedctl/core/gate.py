"""The gate: may a candidate version be published? Pure arithmetic over the devices' sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from fedctl_wire.messages import Evaluation

_ROW = 3  # of a histogram: bin, count of class 0, count of class 1


@dataclass(frozen=True, slots=True)
class Measured:
    """One version measured over several devices, weighted by examples."""

    examples: int
    loss: float
    accuracy: float
    histogram: tuple[tuple[int, ...], ...] | None = None  # (bin, class 0, class 1), summed; two classes only


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
    rows = evaluation.histogram
    if not (
        0 <= evaluation.correct <= evaluation.examples and evaluation.examples > 0 <= evaluation.loss_sum
    ):
        return False
    if rows is None:
        return True
    if any(len(row) != _ROW or min(row) < 0 for row in rows):
        return False
    bins = [row[0] for row in rows]
    return sum(row[1] + row[2] for row in rows) == evaluation.examples and bins == sorted(set(bins))


def total(evaluations: list[Evaluation]) -> Measured:
    """Add up what devices measured of one version.

    Args:
        evaluations: At least one, each with at least one example, in a fixed order.
    """
    examples = sum(e.examples for e in evaluations)
    histograms = [e.histogram for e in evaluations if e.histogram is not None]
    return Measured(
        examples=examples,
        loss=sum(e.loss_sum for e in evaluations) / examples,
        accuracy=sum(e.correct for e in evaluations) / examples,
        histogram=_add(histograms) if len(histograms) == len(evaluations) else None,
    )


def _add(histograms: list[tuple[tuple[int, ...], ...]]) -> tuple[tuple[int, ...], ...]:
    counts: dict[int, list[int]] = {}
    for place, negatives, positives in chain.from_iterable(histograms):
        sums = counts.setdefault(place, [0, 0])
        sums[0] += negatives
        sums[1] += positives
    return tuple((place, *sums) for place, sums in sorted(counts.items()))

"""Figures computed from what devices send, without NumPy: any command may need them."""

from __future__ import annotations

from collections.abc import Sequence


def auroc(histogram: Sequence[Sequence[int]]) -> float | None:
    """Area under the ROC curve, from counts of scores.

    The chance that a random example of class 1 scores above a random one of class 0; scores in the
    same bin count as equal, one half (the Mann-Whitney statistic).

    Args:
        histogram: Rows (bin, count of class 0, count of class 1), bins rising with the score.

    Returns:
        The area in [0, 1], None when one class has no example.
    """
    total = sum(row[1] for row in histogram) * sum(row[2] for row in histogram)
    if not total:
        return None
    below = 0
    twice = 0  # twice the pairs that are ordered right: an integer, so exact
    for _, negative, positive in histogram:
        twice += positive * (2 * below + negative)
        below += negative
    return twice / (2 * total)


def macro_f1(classes: Sequence[Sequence[int]]) -> float | None:
    """Mean F1 of the classes, each counting the same however rare it is.

    F1 is the harmonic mean of precision and recall, 2 * rightly / (examples + taken). A class that no
    example has and none was taken for is left out.

    Args:
        classes: Rows (class, its examples, how many were taken for it, how many of those rightly).

    Returns:
        A number in [0, 1], None when there is no example at all.
    """
    scores = [2 * rightly / (own + taken) for _, own, taken, rightly in classes if own + taken]
    return sum(scores) / len(scores) if scores else None

"""From sums of features to the scaling of a model: one rule, wherever the sums come from."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fedctl_wire.manifest import Preprocessing

_STD_FLOOR = 1e-6


def scaling_of(counts: Iterable[float], totals: Iterable[float], squares: Iterable[float]) -> Preprocessing:
    """Mean and standard deviation of each feature, from its cells' count, sum and sum of squares.

    A feature that has no cell anywhere gets mean 0 and deviation 1, one that never varies the deviation
    1e-6. The sums are finite, and no count is negative.
    """
    moments = [_moments(*sums) for sums in zip(counts, totals, squares, strict=True)]
    return Preprocessing(mean=tuple(mean for mean, _ in moments), std=tuple(std for _, std in moments))


def _moments(count: float, total: float, squares: float) -> tuple[float, float]:
    if not count:
        return 0.0, 1.0
    mean = total / count
    variance = max(squares / count - mean * mean, 0.0)  # rounding may bring it below 0
    return mean, max(math.sqrt(variance), _STD_FLOOR)

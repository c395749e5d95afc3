"""What is measured of a model on data: sums and counts, so that a fleet's can be added."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedctl_graph.errors import GraphError
from fedctl_graph.operator_types import Array

HISTOGRAM_BINS = 1024
MARGIN_SCALE = 4.0  # bins are even in sigmoid(margin / 4): fine near 0, and rare classes still spread


def score_histogram(margin: Array, y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count scores by class, from which an AUROC can be computed without the scores.

    Args:
        margin: Logit of class 1 minus logit of class 0, finite, shape (n,).
        y: Labels 0 or 1, shape (n,).

    Returns:
        Counts of shape (2, 1024); bins rise with the margin. Scores in one bin count as equal.
    """
    rank = 0.5 + 0.5 * np.tanh(margin.astype(np.float64) / (2 * MARGIN_SCALE))  # sigmoid, no overflow
    bins = np.minimum((rank * HISTOGRAM_BINS).astype(np.int64), HISTOGRAM_BINS - 1)
    counts = np.bincount(y * HISTOGRAM_BINS + bins, minlength=2 * HISTOGRAM_BINS)
    return counts.reshape(2, HISTOGRAM_BINS)


@dataclass(slots=True)
class Tally:
    """One model's figures over the batches seen so far; memory does not grow with them."""

    classes: int
    examples: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    _histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, HISTOGRAM_BINS), np.int64))
    _classes: NDArray[np.int64] = field(init=False)  # (3, classes): examples, taken for it, rightly so

    def __post_init__(self) -> None:
        self._classes = np.zeros((3, self.classes), np.int64)

    def add(self, loss: float, logits: Array, y: NDArray[np.int64]) -> None:
        """Count one batch.

        Args:
            loss: Mean loss of the batch.
            logits: Shape (n, classes).
            y: Labels in [0, classes), shape (n,).

        Raises:
            GraphError: When the loss or a logit is not finite, or the logits have another shape.
        """
        if logits.shape != (len(y), self.classes):
            raise GraphError(f"the logits have shape {list(logits.shape)}, not [N, {self.classes}]")
        if not (math.isfinite(loss) and np.isfinite(logits).all()):
            raise NonFiniteError("its loss or a logit is not finite")
        self.examples += len(y)
        self.loss_sum += loss * len(y)
        predicted = logits.argmax(axis=1)
        hits = y[predicted == y]
        self.correct += len(hits)
        self._classes += [np.bincount(labels, minlength=self.classes) for labels in (y, predicted, hits)]
        if self.classes == 2:
            self._histogram += score_histogram(logits[:, 1] - logits[:, 0], y)

    @property
    def histogram(self) -> tuple[tuple[int, ...], ...] | None:
        """Rows (bin, count of class 0, count of class 1) of the bins that hold a score, bins rising.

        None unless there are two classes. A device has few scores, so this is much less than all bins.
        """
        if self.classes != 2:
            return None
        bins = np.flatnonzero(self._histogram.any(axis=0))
        return tuple(map(tuple, np.column_stack((bins, self._histogram[:, bins].T)).tolist()))

    @property
    def class_counts(self) -> tuple[tuple[int, ...], ...]:
        """Rows (class, its examples, how many were taken for it, rightly) of the classes that occur."""
        present = np.flatnonzero(self._classes.any(axis=0))
        return tuple(map(tuple, np.column_stack((present, self._classes[:, present].T)).tolist()))


class NonFiniteError(GraphError):
    """A model gave a NaN or an infinity."""

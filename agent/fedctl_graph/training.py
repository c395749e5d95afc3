"""Scaling, local training and evaluation over arrays in memory: what a device does, without a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedctl_graph.errors import GraphError
from fedctl_graph.interpreter import Graph, Parameters
from fedctl_graph.metrics import NonFiniteError, Tally
from fedctl_graph.operator_types import Array
from fedctl_graph.optimisers import Optimiser

# Bounds of the memory that scaling and evaluation take; their results are the same.
BLOCK_EXAMPLES = 1024
_BLOCK_VALUES = 64 * 1024  # of the features; a convolution keeps several times as many


@dataclass(frozen=True, slots=True)
class Scaling:
    """`clip((x - mean) / std, -clip, clip)` per feature; what is missing becomes 0, the mean.

    A feature is an entry of a flat example, or a channel of a window.
    """

    mean: NDArray[np.float32]  # (features,)
    std: NDArray[np.float32]  # (features,), positive
    clip: float

    def apply(self, x: NDArray[np.float32]) -> None:
        """Scale examples, (n, features) or (n, channels, samples), in place; a missing cell is NaN."""
        per_feature = (-1, *[1] * (x.ndim - 2))
        mean, std = self.mean.reshape(per_feature), self.std.reshape(per_feature)
        for rows in _blocks(x):
            with np.errstate(over="ignore"):  # a large value by a tiny std: clipped below
                np.subtract(rows, mean, out=rows)
                np.divide(rows, std, out=rows)
            rows[np.isnan(rows)] = 0
            np.clip(rows, -self.clip, self.clip, out=rows)


def prepare(x: NDArray[np.float32], scaling: Scaling | None) -> None:
    """Make features ready for a graph, in place: scaled where the model says how, nothing missing."""
    if scaling is not None:
        scaling.apply(x)
        return
    for rows in _blocks(x):
        rows[np.isnan(rows)] = 0


def _blocks(x: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    rows = block_rows(x)
    for start in range(0, len(x), rows):
        yield x[start : start + rows]


def block_rows(x: NDArray[np.float32]) -> int:
    """How many examples are worked on at once where all are gone through."""
    return max(1, min(BLOCK_EXAMPLES, _BLOCK_VALUES // max(1, math.prod(x.shape[1:]))))


def class_weights(
    y: NDArray[np.int64], classes: int, *, fixed: Sequence[float] | None, balanced: bool
) -> NDArray[np.float32] | None:
    """The weights of the classes in the loss, shape (classes,); None where the plan asks for none.

    Args:
        y: The labels at hand, for weights that balance them: examples / (classes present * its examples).
            A class that is absent gets 1.
        classes: Number of classes.
        fixed: As the plan lists them.
        balanced: Whether the plan asks for balance instead.

    Raises:
        GraphError: When the plan lists another number of them, one that is not positive, or both.
    """
    if fixed is None and not balanced:
        return None
    if fixed is None:
        counts = np.bincount(y, minlength=classes)
        weights = np.ones(classes, np.float32)
        present = counts > 0
        weights[present] = len(y) / (present.sum() * counts[present])
        return weights
    if balanced or len(fixed) != classes or not all(0 < weight < math.inf for weight in fixed):
        raise GraphError(f"the plan's class weights are not {classes} positive numbers")
    return np.array(fixed, np.float32)


@dataclass(frozen=True, slots=True)
class BatchDone:
    """How far local training is."""

    epoch: int  # from 1
    examples: int  # seen in this epoch
    loss: float  # mean of this epoch so far


def fit(
    graph: Graph,
    parameters: dict[str, Array],
    data: tuple[NDArray[np.float32], NDArray[np.int64]],
    *,
    optimiser: Optimiser,
    epochs: int,
    batch_size: int,
    seed: int,
    on_batch: Callable[[BatchDone], None] | None = None,
) -> float | None:
    """Train the parameters in place over shuffled batches, the last and smaller one of an epoch included.

    Args:
        graph: In the parameters' real type.
        parameters: Changed in place.
        data: x, scaled, shape (n, *input_shape), and labels, shape (n,).
        optimiser: Keeps its state over all epochs.
        epochs: Passes over the data; 0 changes nothing.
        batch_size: Examples a step.
        seed: Of the shuffles, by PCG64; the same seed and data give the same bytes.
        on_batch: Called after every step.

    Returns:
        Mean loss of the last epoch, each batch's taken before its step; None without an epoch.

    Raises:
        GraphError: When epochs or batch size are out of range, or the graph does not fit the data.
        NonFiniteError: When the loss is not finite.
    """
    x, y = data
    if epochs < 0 or batch_size < 1 or not len(y):
        raise GraphError(f"{epochs} epochs with batches of {batch_size} over {len(y)} examples")
    shuffle = np.random.Generator(np.random.PCG64(seed))
    mean: float | None = None
    for epoch in range(1, epochs + 1):
        order = shuffle.permutation(len(y))
        total, seen = 0.0, 0
        for start in range(0, len(y), batch_size):
            rows = order[start : start + batch_size]
            loss, _, gradients = graph.loss_and_gradients(parameters, x[rows], y[rows])
            optimiser.step(parameters, gradients)
            total += loss * len(rows)
            seen += len(rows)
            if on_batch is not None:
                on_batch(BatchDone(epoch, seen, total / seen))
        mean = total / seen
        if not np.isfinite(mean):
            raise NonFiniteError(f"the loss is not finite in epoch {epoch}")
    return mean


@dataclass(frozen=True, slots=True)
class Measured:
    """A model version to evaluate: its graph, parameters and scaling."""

    graph: Graph
    parameters: Parameters
    scaling: Scaling | None


def evaluate(
    models: Sequence[Measured],
    data: tuple[NDArray[np.float32], NDArray[np.int64]],
    *,
    classes: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[Tally]:
    """Measure models side by side in one pass over the data, which is left as it is.

    Args:
        models: Each scales the examples by its own rule.
        data: x, not scaled, shape (n, *input_shape), and labels, shape (n,).
        classes: Number of classes of all the models.
        on_batch: Called after every batch with the number of examples seen.

    Raises:
        GraphError: When a graph does not fit the data.
        NonFiniteError: When a loss or logit is not finite.
    """
    x, y = data
    tallies = [Tally(classes) for _ in models]
    rows = block_rows(x)
    for start in range(0, len(y), rows):
        labels = y[start : start + rows]
        for model, tally in zip(models, tallies, strict=True):
            examples = x[start : start + rows].copy()
            prepare(examples, model.scaling)
            tally.add(*model.graph.loss_and_logits(model.parameters, examples, labels), labels)
        if on_batch is not None:
            on_batch(start + len(labels))
    return tallies

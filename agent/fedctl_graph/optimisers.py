"""Optimisers: what turns gradients into new parameters, in place, the same for every runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedctl_graph.errors import GraphError
from fedctl_graph.operator_types import Array


class Sgd:
    """Stochastic gradient descent with momentum: `v = momentum * v + g; p -= lr * v`.

    The momentum starts at zero and is kept for the life of the object, one array a parameter.

    Raises:
        GraphError: When `lr` is negative or infinite, or `momentum` outside [0, 1).
    """

    def __init__(self, lr: float, momentum: float = 0.0) -> None:
        if not 0 <= lr < math.inf:
            raise GraphError(f"the learning rate is {lr}")
        if not 0 <= momentum < 1:
            raise GraphError(f"the momentum is {momentum}, not in [0, 1)")
        self._lr = lr
        self._momentum = momentum
        self._velocity: dict[str, Array] = {}

    def step(self, parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
        """Move the parameters that have a gradient, in place.

        Raises:
            GraphError: When a gradient has another shape than its parameter.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # whoever reads the parameters checks them
            for name, gradient in gradients.items():
                parameter = parameters[name]
                if gradient.shape != parameter.shape:  # or NumPy would broadcast it
                    raise GraphError(f"the gradient of {name!r} has shape {list(gradient.shape)}")
                parameter -= self._lr * self._direction(name, gradient)

    def _direction(self, name: str, gradient: Array) -> Array:
        if not self._momentum:
            return gradient
        if name not in self._velocity:
            self._velocity[name] = gradient.copy()
        else:
            velocity = self._velocity[name]
            velocity *= self._momentum
            velocity += gradient
        return self._velocity[name]


def make(name: str, *, lr: float, momentum: float) -> Sgd:
    """The optimiser that a plan names.

    Raises:
        GraphError: When there is none of that name, or its numbers are out of range.
    """
    if name != "sgd":
        raise GraphError(f"there is no optimizer {name[:80]!r}")
    return Sgd(lr, momentum)

"""Optimisers: what turns gradients into new parameters, in place, the same for every runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from fedctl_graph.errors import GraphError
from fedctl_graph.operator_types import Array

_DECAYS = (0.9, 0.999)  # Adam's, of the means of gradients and of their squares
_EPSILON = 1e-8

Arrays = Mapping[str, Array]


class Optimiser(Protocol):
    """Moves parameters by their gradients; what it remembers lives as long as the object."""

    def step(self, parameters: Arrays, gradients: Arrays) -> None:
        """Move the parameters that have a gradient, in place; gradients stay as they are.

        Raises:
            GraphError: When a gradient has another shape than its parameter.
        """


class Sgd:
    """Stochastic gradient descent with momentum: `v = momentum * v + g; p -= lr * v`.

    The momentum starts at zero and is kept for the life of the object, one array a parameter.

    Raises:
        GraphError: When `lr` is negative or infinite, or `momentum` outside [0, 1).
    """

    def __init__(self, lr: float, momentum: float = 0.0) -> None:
        if not 0 <= momentum < 1:
            raise GraphError(f"the momentum is {momentum}, not in [0, 1)")
        self._lr = _rate(lr)
        self._momentum = momentum
        self._velocity: dict[str, Array] = {}

    def step(self, parameters: Arrays, gradients: Arrays) -> None:
        """See `Optimiser`."""
        with np.errstate(over="ignore", invalid="ignore"):  # whoever reads the parameters checks them
            for name, gradient in gradients.items():
                parameter = _fitting(parameters, name, gradient)
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


class Adam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1), with its usual constants.

    Raises:
        GraphError: When `lr` is negative or infinite.
    """

    def __init__(self, lr: float) -> None:
        self._lr = _rate(lr)
        self._steps = 0
        self._means: dict[str, tuple[Array, Array]] = {}  # of the gradient, of its square

    def step(self, parameters: Arrays, gradients: Arrays) -> None:
        """See `Optimiser`."""
        self._steps += 1
        with np.errstate(over="ignore", invalid="ignore"):  # whoever reads the parameters checks them
            for name, gradient in gradients.items():
                parameter = _fitting(parameters, name, gradient)
                parameter -= self._lr * self._direction(name, gradient)

    def _direction(self, name: str, gradient: Array) -> Array:
        if name not in self._means:
            self._means[name] = np.zeros_like(gradient), np.zeros_like(gradient)
        mean, square = self._means[name]
        for average, decay, new in ((mean, _DECAYS[0], gradient), (square, _DECAYS[1], np.square(gradient))):
            np.multiply(average, decay, out=average)
            np.add(average, (1 - decay) * new, out=average)
        # What zeros at the start are to be made up for, as two numbers rather than two arrays.
        missing_mean, missing_square = (1 - decay**self._steps for decay in _DECAYS)
        root = np.sqrt(square / missing_square)
        root += _EPSILON
        result: Array = mean / missing_mean / root
        return result


class Corrected:
    """Changes the gradients on their way to an optimiser.

    In this order: the proximal term of FedProx (Li et al. 2020, arXiv:1812.06127, equation 2), `mu *
    (p - base)`, is part of the loss, so it comes first; then the gradients of all parameters together are
    shortened to an L2 norm of `max_norm`; weight decay, `weight_decay * p`, is added last and not
    shortened.

    Raises:
        GraphError: When a number is out of range.
    """

    def __init__(
        self,
        inner: Optimiser,
        *,
        weight_decay: float = 0.0,
        proximal_mu: float = 0.0,
        max_norm: float | None = None,
        base: Arrays | None = None,
    ) -> None:
        if not (0 <= weight_decay < math.inf and 0 <= proximal_mu < math.inf):
            raise GraphError(f"weight decay is {weight_decay} and the proximal mu {proximal_mu}")
        if max_norm is not None and not 0 < max_norm < math.inf:
            raise GraphError(f"gradients are to be shortened to {max_norm}")
        if proximal_mu and base is None:
            raise GraphError("a proximal term needs the parameters to stay near to")
        self._inner = inner
        self._decay = weight_decay
        self._mu = proximal_mu
        self._max_norm = max_norm
        self._base: Arrays = base or {}

    def step(self, parameters: Arrays, gradients: Arrays) -> None:
        """See `Optimiser`."""
        changed = dict(gradients)
        with np.errstate(over="ignore", invalid="ignore"):
            for name, gradient in gradients.items():
                parameter = _fitting(parameters, name, gradient)
                if self._mu:
                    changed[name] = gradient + self._mu * (parameter - self._base[name])
            factor = self._factor(changed)
            for name, gradient in changed.items():
                if factor < 1:
                    changed[name] = gradient * gradient.dtype.type(factor)
                if self._decay:
                    changed[name] = changed[name] + self._decay * parameters[name]
        self._inner.step(parameters, changed)

    def _factor(self, gradients: Arrays) -> float:
        if self._max_norm is None:
            return 1.0
        # In float64: the square of a gradient that is to be shortened may be beyond float32.
        squares = (np.square(gradient, dtype=np.float64).sum() for gradient in gradients.values())
        norm = math.sqrt(sum(map(float, squares)))
        return self._max_norm / norm if norm > self._max_norm else 1.0


def make(
    name: str,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    proximal_mu: float = 0.0,
    max_gradient_norm: float | None = None,
    base: Arrays | None = None,
) -> Optimiser:
    """The optimiser that a plan names, with the corrections that it asks for.

    Args:
        name: `sgd` or `adam`.
        lr: Learning rate.
        momentum: Of `sgd`; `adam` has its own.
        weight_decay: See `Corrected`, as for what follows.
        proximal_mu: 0 for none.
        max_gradient_norm: None for any.
        base: What the proximal term pulls to, an array a trainable parameter.

    Raises:
        GraphError: When there is none of that name, or its numbers are out of range.
    """
    inner: Optimiser
    if name == "sgd":
        inner = Sgd(lr, momentum)
    elif name == "adam":
        if momentum:
            raise GraphError("adam takes no momentum")
        inner = Adam(lr)
    else:
        raise GraphError(f"there is no optimizer {name[:80]!r}")
    corrected = Corrected(
        inner, weight_decay=weight_decay, proximal_mu=proximal_mu, max_norm=max_gradient_norm, base=base
    )
    return corrected if weight_decay or proximal_mu or max_gradient_norm is not None else inner


def _rate(lr: float) -> float:
    if not 0 <= lr < math.inf:
        raise GraphError(f"the learning rate is {lr}")
    return lr


def _fitting(parameters: Arrays, name: str, gradient: Array) -> Array:
    parameter = parameters[name]
    if gradient.shape != parameter.shape:  # or NumPy would broadcast it
        raise GraphError(f"the gradient of {name!r} has shape {list(gradient.shape)}")
    return parameter

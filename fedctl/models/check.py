"""Proof that a graph's backward part is the gradient of its loss, and the golden batch that travels.

The proof is numerical, in float64: along random directions through each parameter, the slope of the
loss by central differences must be the gradient's. A wrong entry anywhere in a gradient shows in a
random direction with certainty for all practical purposes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedctl.core.errors import FedctlError
from fedctl_wire.codec import Json
from fedctl_wire.limits import LIMITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedctl_graph.interpreter import Graph

    Arrays = dict[str, NDArray[Any]]

STEP = 1e-6  # of central differences; their rounding error is then about 1e-10
SLOPE_TOLERANCE = 1e-6  # relative to the gradient's norm
FLOAT32_TOLERANCE = 1e-5  # relative: a tenth of what a device may be off
DIRECTIONS = 3  # one that agrees is enough: a step across a ReLU's kink makes another disagree


def golden_batch(
    program: Json, weights: Arrays, *, classes: int, examples: int, rng: np.random.Generator
) -> Arrays:
    """Check a graph on a random batch and return batch and answers, to be run again on every device.

    Args:
        program: The graph as in `train.json`.
        weights: float32, fixed for the golden batch; not the model's own.
        classes: Labels go round them.
        examples: Size of the batch.
        rng: Of the examples and directions.

    Returns:
        `param:NAME`, `x`, `loss`, `logits`, `grad:NAME` in float32, `y` in int64; the answers are
        computed in float64.

    Raises:
        FedctlError: When a gradient is wrong, or float32 is too far from float64.
    """
    import numpy as np

    from fedctl_graph.interpreter import Graph
    from fedctl_graph.program import Program

    checked = Program.from_json(program, max_nodes=LIMITS.graph_nodes)
    x = rng.standard_normal((examples, *checked.input_shape), np.float32)
    y = np.arange(examples, dtype=np.int64) % classes
    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    graph = Graph(checked, np.float64)
    check_gradients(graph, exact, x.astype(np.float64), y, rng)
    loss, logits, gradients = graph.loss_and_gradients(exact, x.astype(np.float64), y)
    answers: Arrays = {"loss": np.array(loss), "logits": logits}
    answers |= {f"grad:{name}": value for name, value in gradients.items()}
    _check_float32(Graph(checked), weights, x, y, answers)
    given: Arrays = {f"param:{name}": value for name, value in weights.items()}
    return {**given, "x": x, "y": y, **{name: v.astype(np.float32) for name, v in answers.items()}}


def check_gradients(
    graph: Graph, parameters: Arrays, x: NDArray[Any], y: NDArray[np.int64], rng: np.random.Generator
) -> None:
    """Compare each gradient with the slope of the loss along random directions, in float64.

    Raises:
        FedctlError: Naming the parameter whose gradient is wrong.
    """
    import numpy as np

    _, _, gradients = graph.loss_and_gradients(parameters, x, y)
    for name, gradient in gradients.items():
        if gradient.shape != parameters[name].shape:
            raise FedctlError(f"the gradient of {name!r} has shape {list(gradient.shape)}", subject=name)
        if not np.isfinite(gradient).all():
            raise FedctlError(f"the gradient of {name!r} is not finite", subject=name)
        allowed = SLOPE_TOLERANCE * max(1.0, float(np.linalg.norm(gradient)))
        errors = []
        for _ in range(DIRECTIONS):
            direction = rng.standard_normal(gradient.shape)
            direction /= np.linalg.norm(direction)
            slope = _slope(graph, parameters, x, y, name=name, direction=direction)
            errors.append(abs(slope - float((gradient * direction).sum())))
        if not min(errors) <= allowed:
            raise FedctlError(f"the graph's gradient of {name!r} is wrong by {min(errors):.2g}", subject=name)


def _slope(
    graph: Graph,
    parameters: Arrays,
    x: NDArray[Any],
    y: NDArray[np.int64],
    *,
    name: str,
    direction: NDArray[Any],
) -> float:
    ahead, _ = graph.loss_and_logits({**parameters, name: parameters[name] + STEP * direction}, x, y)
    behind, _ = graph.loss_and_logits({**parameters, name: parameters[name] - STEP * direction}, x, y)
    return (ahead - behind) / (2 * STEP)


def _check_float32(
    graph: Graph, weights: Arrays, x: NDArray[Any], y: NDArray[np.int64], answers: Arrays
) -> None:
    import numpy as np

    loss, logits, gradients = graph.loss_and_gradients(weights, x, y)
    found: Arrays = {"loss": np.array(loss), "logits": logits}
    found |= {f"grad:{name}": value for name, value in gradients.items()}
    for name, value in answers.items():
        difference = float(np.linalg.norm(found[name] - value))
        if not difference <= FLOAT32_TOLERANCE * max(float(np.linalg.norm(value)), 1e-3):
            raise FedctlError(f"{name} is off by {difference:.2g} in float32", subject=name)

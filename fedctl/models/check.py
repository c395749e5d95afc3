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
_SMALLEST_NORM = 1e-3  # near zero "relative" means nothing
FLOAT32_TOLERANCE = 1e-5  # relative: a tenth of what a device may be off
DIRECTIONS = 5  # one that agrees is enough: a step across a kink, of a ReLU or maximum, makes one disagree
DRAWS = 30  # of a batch that is far enough from kinks
NOISE = 4e-6  # relative; several times what float32 rounds
STEADY = 5e-5  # relative: half of what a device may be off
_NOISY_RUNS = 3


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
    y = np.arange(examples, dtype=np.int64) % classes
    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    graph = Graph(checked, np.float64)
    x = _draw(graph, exact, y, rng)
    check_gradients(graph, exact, x.astype(np.float64), y, rng)
    loss, logits, gradients = graph.loss_and_gradients(exact, x.astype(np.float64), y)
    answers: Arrays = {"loss": np.array(loss), "logits": logits}
    answers |= {f"grad:{name}": value for name, value in gradients.items()}
    _check_float32(Graph(checked), weights, x, y, answers)
    given: Arrays = {f"param:{name}": value for name, value in weights.items()}
    return {**given, "x": x, "y": y, **{name: v.astype(np.float32) for name, v in answers.items()}}


def _draw(graph: Graph, parameters: Arrays, y: NDArray[np.int64], rng: np.random.Generator) -> NDArray[Any]:
    """Examples whose gradients stay when everything moves by more than float32's rounding.

    A device rounds in another order than this machine. Where two neighbours are nearly the largest, or a
    sum is nearly 0, that decides which way a gradient goes, though both ways are right.
    """
    import numpy as np

    x = np.empty(0, np.float32)
    for _ in range(DRAWS):
        x = rng.standard_normal((len(y), *graph.program.input_shape), np.float32)
        if _is_steady(graph, parameters, x.astype(np.float64), y):
            break
    return x  # where none is steady, the last: whether float32 is near enough is checked anyway


def _is_steady(graph: Graph, parameters: Arrays, x: NDArray[Any], y: NDArray[np.int64]) -> bool:
    import numpy as np

    noise = np.random.default_rng(0)

    def moved(array: NDArray[Any]) -> NDArray[Any]:
        result: NDArray[Any] = array * (1 + NOISE * noise.uniform(-1, 1, array.shape))
        return result

    _, _, gradients = graph.loss_and_gradients(parameters, x, y)
    for _ in range(_NOISY_RUNS):
        noisy = {name: moved(value) for name, value in parameters.items()}
        _, _, others = graph.loss_and_gradients(noisy, moved(x), y)
        for name, gradient in gradients.items():
            allowed = STEADY * max(float(np.linalg.norm(gradient)), _SMALLEST_NORM)
            with np.errstate(all="ignore"):  # of what is not finite, `check_gradients` tells
                if float(np.linalg.norm(others[name] - gradient)) > allowed:
                    return False
    return True


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
        errors: list[float] = []
        while len(errors) < DIRECTIONS and not (errors and errors[-1] <= allowed):
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
        if not difference <= FLOAT32_TOLERANCE * max(float(np.linalg.norm(value)), _SMALLEST_NORM):
            raise FedctlError(f"{name} is off by {difference:.2g} in float32", subject=name)

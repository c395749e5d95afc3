"""Runs a program: compiled once into a list of closures, only what the wanted outputs need.

No automatic differentiation and no threads. A value is dropped after its last use, so the peak is
what the program itself keeps alive, e.g. the activations its backward part reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedctl_graph.errors import GraphError
from fedctl_graph.operator_types import Array, Kernel, Real
from fedctl_graph.operators import OPERATORS
from fedctl_graph.program import Node, Program

Parameters = Mapping[str, Array]
Values = list[Any]  # one slot a value of the program; None where it is not alive
Step = Callable[[Values], None]


@dataclass(frozen=True, slots=True)
class _Routine:
    """The steps that lead to some outputs, over slots whose first ones are x, y and the parameters."""

    steps: tuple[tuple[Step, tuple[int, ...]], ...]  # and the slots that are dead after each
    nodes: tuple[Node, ...]  # one a step, to name the one that fails
    constants: tuple[Array | None, ...]  # initial value of the slots after x, y and the parameters
    outputs: tuple[int, ...]

    def run(self, parameters: Sequence[Array], x: Array, y: Array | None) -> list[Any]:
        values: Values = [x, y, *parameters, *self.constants]
        done = 0
        with np.errstate(all="ignore"):  # whoever reads the outputs checks that they are finite
            try:
                for step, dead in self.steps:
                    step(values)
                    for slot in dead:
                        values[slot] = None
                    done += 1
            except (ValueError, TypeError, IndexError, ArithmeticError) as error:
                node = self.nodes[done]
                raise GraphError(f"{node.op} that makes {node.output!r} failed: {error}") from error
        return [values[slot] for slot in self.outputs]

    def alive_bytes(self, parameters: Sequence[Array], x: Array, y: Array) -> list[int]:
        """Bytes of the computed values that are alive during each step; several views count once."""
        values: Values = [x, y, *parameters, *self.constants]
        first = len(values) - len(self.nodes)
        given = {id(_owner(value)) for value in values[:first] if value is not None}
        found = []
        for step, dead in self.steps:
            step(values)
            owners = {id(owner): owner.nbytes for owner in map(_owner, filter(_is_array, values[first:]))}
            found.append(sum(size for owner, size in owners.items() if owner not in given))
            for slot in dead:
                values[slot] = None
        return found


def _is_array(value: Any) -> bool:
    return value is not None


def _owner(array: Array) -> Array:
    """The array whose memory a view shows."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class Graph:
    """A program ready to run. Every call is a pure function of its arguments.

    Args:
        program: The checked program.
        real: What FLOAT stands for; all arrays given must be of it. float64 checks gradients.
    """

    def __init__(self, program: Program, real: Real = np.float32) -> None:
        self.program = program
        self.real = real
        self._gradients = tuple(program.gradients)
        wanted = tuple(program.gradients[name] for name in self._gradients)
        self._train = _compile(program, (program.loss, program.logits, *wanted), real)
        self._test = _compile(program, (program.loss, program.logits), real)
        self._infer = _compile(program, (program.logits,), real, inputs=("x",))

    def loss_and_gradients(
        self, parameters: Parameters, x: Array, y: NDArray[np.int64]
    ) -> tuple[float, Array, dict[str, Array]]:
        """Mean loss of a batch, its logits and the gradient of the loss by each trainable parameter.

        Args:
            parameters: Arrays of the real type by name, all that the program lists.
            x: Of the real type, shape (n, *input_shape).
            y: Labels, shape (n,).

        Raises:
            GraphError: When a parameter is missing or an operator's shapes do not fit.
        """
        loss, logits, *gradients = self._train.run(self._ordered(parameters), x, y)
        return _scalar(loss), logits, dict(zip(self._gradients, gradients, strict=True))

    def loss_and_logits(self, parameters: Parameters, x: Array, y: NDArray[np.int64]) -> tuple[float, Array]:
        """Mean loss and logits of a batch, without the backward part; see `loss_and_gradients`."""
        loss, logits = self._test.run(self._ordered(parameters), x, y)
        return _scalar(loss), logits

    def logits(self, parameters: Parameters, x: Array) -> Array:
        """Logits of a batch, for which no labels are needed; see `loss_and_gradients`."""
        (logits,) = self._infer.run(self._ordered(parameters), x, None)
        result: Array = logits
        return result

    def training_bytes(self, parameters: Parameters, x: Array, y: NDArray[np.int64]) -> list[int]:
        """Bytes of what a step of training on a batch has alive, gradients included, node by node.

        For an estimate of memory; what a NumPy function takes inside itself is not seen.
        """
        with np.errstate(all="ignore"):
            return self._train.alive_bytes(self._ordered(parameters), x, y)

    def _ordered(self, parameters: Parameters) -> list[Array]:
        try:
            return [parameters[name] for name in self.program.parameters]
        except KeyError as error:
            raise GraphError(f"there is no parameter {error.args[0]!r}") from error


def _scalar(loss: Array) -> float:
    if np.shape(loss) != ():
        raise GraphError(f"the loss has shape {list(loss.shape)}, not one number")
    return float(loss)


def _compile(
    program: Program, wanted: tuple[str, ...], real: Real, inputs: tuple[str, ...] = ("x", "y")
) -> _Routine:
    nodes = _needed(program, wanted)
    given = ("x", "y", *program.parameters, *program.constants, *(node.output for node in nodes))
    slots = {name: slot for slot, name in enumerate(given)}
    last_use = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    steps: list[tuple[Step, tuple[int, ...]]] = []
    for index, node in enumerate(nodes):
        if "y" in node.inputs and "y" not in inputs:
            raise GraphError("the logits depend on the labels")
        ends = {name for name in (*node.inputs, node.output) if last_use.get(name, index) == index}
        dead = tuple(slots[name] for name in sorted(ends - set(wanted)))
        steps.append((_step(program, node, slots, real), dead))
    constants = tuple(constant.array(real) for constant in program.constants.values())
    return _Routine(
        tuple(steps), nodes, (*constants, *(None for _ in nodes)), tuple(slots[name] for name in wanted)
    )


def _needed(program: Program, wanted: tuple[str, ...]) -> tuple[Node, ...]:
    """The nodes that the wanted values depend on, in program order."""
    alive = set(wanted)
    kept: list[Node] = []
    for node in reversed(program.nodes):
        if node.output in alive:
            alive.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))


def _step(program: Program, node: Node, slots: Mapping[str, int], real: Real) -> Step:
    operator = OPERATORS[node.op]
    constants = tuple(program.constants.get(name) for name in node.inputs)
    kernel = operator.bind(node.attributes, constants)(real)
    read = [slots[name] for i, name in enumerate(node.inputs) if i not in operator.constant_inputs]
    if len(read) > 2:
        return _variadic(kernel, slots[node.output], read)
    return (_unary if len(read) == 1 else _binary)(kernel, slots[node.output], *read)


def _unary(kernel: Kernel, out: int, a: int) -> Step:
    def step(values: Values) -> None:
        values[out] = kernel(values[a])

    return step


def _binary(kernel: Kernel, out: int, a: int, b: int) -> Step:
    def step(values: Values) -> None:
        values[out] = kernel(values[a], values[b])

    return step


def _variadic(kernel: Kernel, out: int, read: Sequence[int]) -> Step:
    def step(values: Values) -> None:
        values[out] = kernel(*[values[slot] for slot in read])

    return step

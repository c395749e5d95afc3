"""The ONNX operators that a program may use, in NumPy: arity, attributes and meaning of each.

Meaning is that of ONNX opset 18, with fewer freedoms: what the built-in models do not need is
refused, not guessed; arithmetic is on FLOAT only. FLOAT stands for the interpreter's real type,
normally float32, so that the same program runs in float64 when its gradients are checked.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedctl_graph.errors import GraphError

OPSET = 18
MAX_ONE_HOT_DEPTH = 1000  # classes; a table of its square is kept
_FLOAT = 1  # onnx.TensorProto.FLOAT

Array = NDArray[Any]
Real = type[np.floating[Any]]
Attributes = Mapping[str, Any]
Kernel = Callable[..., Array]


class Kind(Enum):
    """Element type of a value; the words are those of `train.json`."""

    FLOAT = "float32"
    INT64 = "int64"
    BOOL = "bool"


@dataclass(frozen=True, slots=True)
class Constant:
    """A small tensor that is part of the program."""

    kind: Kind  # FLOAT or INT64
    shape: tuple[int, ...]
    data: tuple[float, ...]  # row by row

    def array(self, real: Real) -> Array:
        """The constant as an array, float32 becoming `real`."""
        return np.array(self.data, real if self.kind is Kind.FLOAT else np.int64).reshape(self.shape)


Bind = Callable[[Attributes, tuple[Constant | None, ...]], Callable[[Real], Kernel]]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator: what it takes and how it is bound to its attributes and constant inputs.

    `bind` is called once to check a node, and again to make its kernel: a function of the node's
    inputs, without those that are constant by `constant_inputs`.
    """

    bind: Bind
    min_inputs: int
    max_inputs: int
    attributes: frozenset[str] = frozenset()
    constant_inputs: tuple[int, ...] = ()
    takes: Kind | None = Kind.FLOAT  # of the other inputs; None: any
    gives: Kind = Kind.FLOAT


def _plain(
    kernel: Kernel, inputs: int, *, takes: Kind | None = Kind.FLOAT, gives: Kind = Kind.FLOAT
) -> Operator:
    def bind(_attributes: Attributes, _constants: tuple[Constant | None, ...]) -> Callable[[Real], Kernel]:
        return lambda _real: kernel

    return Operator(bind, inputs, inputs, takes=takes, gives=gives)


def _relu(_attributes: Attributes, _constants: tuple[Constant | None, ...]) -> Callable[[Real], Kernel]:
    def make(real: Real) -> Kernel:
        zero = real(0)
        return lambda x: np.maximum(x, zero)

    return make


def _cast(attributes: Attributes, _constants: tuple[Constant | None, ...]) -> Callable[[Real], Kernel]:
    if _integer(attributes, "to", "Cast") != _FLOAT:
        raise GraphError("Cast goes only to FLOAT")
    return lambda real: lambda x: x.astype(real)


def _transpose(attributes: Attributes, _constants: tuple[Constant | None, ...]) -> Callable[[Real], Kernel]:
    order = attributes.get("perm")
    if order is None:
        return lambda _real: np.transpose
    if not isinstance(order, list) or any(type(axis) is not int for axis in order):
        raise GraphError("Transpose: perm is not a list of integers")
    axes = tuple(order)
    if sorted(axes) != list(range(len(axes))):
        raise GraphError("Transpose: perm is not a permutation")
    return lambda _real: lambda x: np.transpose(x, axes)


def _reduce(op: str, *, mean: bool) -> Operator:
    def bind(attributes: Attributes, constants: tuple[Constant | None, ...]) -> Callable[[Real], Kernel]:
        keepdims = _integer(attributes, "keepdims", op, default=1)
        if keepdims not in {0, 1}:
            raise GraphError(f"{op}: keepdims is {keepdims}")
        axes, keep = _axes(constants, op), keepdims == 1
        add: Kernel = np.add.reduce  # np.sum takes three times as long on a small batch

        def make(real: Real) -> Kernel:
            def total(x: Array) -> Array:
                return add(x, axis=axes, keepdims=keep)

            def average(x: Array) -> Array:
                result = total(x)
                return np.divide(result, real(x.size // result.size))

            return average if mean else total

        return make

    return Operator(bind, 1, 2, frozenset({"keepdims"}), constant_inputs=(1,))


def _axes(constants: tuple[Constant | None, ...], op: str) -> tuple[int, ...] | None:
    if len(constants) == 1:
        return None  # all of them
    axes = constants[1]
    if axes is None or axes.kind is not Kind.INT64 or len(axes.shape) != 1:
        raise GraphError(f"{op}: its axes are not a list of integers")
    return tuple(int(axis) for axis in axes.data)


def _log_softmax(attributes: Attributes, _constants: tuple[Constant | None, ...]) -> Callable[[Real], Kernel]:
    axis = _integer(attributes, "axis", "LogSoftmax", default=-1)

    def kernel(x: Array) -> Array:
        shifted: Array = x - np.maximum.reduce(x, axis=axis, keepdims=True)
        shifted -= np.log(np.add.reduce(np.exp(shifted), axis=axis, keepdims=True))
        return shifted

    return lambda _real: kernel


def _one_hot(attributes: Attributes, constants: tuple[Constant | None, ...]) -> Callable[[Real], Kernel]:
    _, depth, values = constants
    if _integer(attributes, "axis", "OneHot", default=-1) != -1:
        raise GraphError("OneHot is only along the last axis")
    if depth is None or depth.kind is not Kind.INT64 or depth.shape not in {(), (1,)}:
        raise GraphError("OneHot: its depth is not an integer")
    if values is None or values.kind is not Kind.FLOAT or values.shape != (2,):
        raise GraphError("OneHot: its values are not two numbers, off and on")
    columns = int(depth.data[0])
    if not 0 < columns <= MAX_ONE_HOT_DEPTH:
        raise GraphError(f"OneHot: its depth is {columns}")
    off, on = values.data

    def make(real: Real) -> Kernel:
        table = np.full((columns, columns), off, real)
        np.fill_diagonal(table, on)
        # Rows from the end by negative index, as in ONNX; out of range, where ONNX has a row of
        # off, is an error here: a label that is no class must not pass for one.
        return lambda indices: table[indices]

    return make


def _shape_of(x: Array) -> Array:
    return np.array(x.shape, np.int64)


def _integer(attributes: Attributes, key: str, op: str, *, default: int | None = None) -> int:
    value = attributes.get(key, default)
    if type(value) is not int:
        raise GraphError(f"{op}: {key} is not an integer")
    return value


_AXIS = frozenset({"axis"})

OPERATORS: Mapping[str, Operator] = {
    "Add": _plain(np.add, 2),
    "Cast": Operator(_cast, 1, 1, frozenset({"to"}), takes=None),
    "Div": _plain(np.divide, 2),
    "Exp": _plain(np.exp, 1),
    "Greater": _plain(np.greater, 2, gives=Kind.BOOL),
    "LogSoftmax": Operator(_log_softmax, 1, 1, _AXIS),
    "MatMul": _plain(np.matmul, 2),
    "Mul": _plain(np.multiply, 2),
    "Neg": _plain(np.negative, 1),
    "OneHot": Operator(_one_hot, 3, 3, _AXIS, constant_inputs=(1, 2), takes=Kind.INT64),
    "ReduceMean": _reduce("ReduceMean", mean=True),
    "ReduceSum": _reduce("ReduceSum", mean=False),
    "Relu": Operator(_relu, 1, 1),
    "Shape": _plain(_shape_of, 1, takes=None, gives=Kind.INT64),
    "Sub": _plain(np.subtract, 2),
    "Transpose": Operator(_transpose, 1, 1, frozenset({"perm"})),
}

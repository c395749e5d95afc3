"""The ONNX operators that a program may use, in NumPy: arity, attributes and meaning of each.

Meaning is that of ONNX opset 18, with fewer freedoms: what the built-in models do not need is
refused, not guessed; arithmetic is on FLOAT only. FLOAT stands for the interpreter's real type,
normally float32, so that the same program runs in float64 when its gradients are checked.

Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fedctl_graph.errors import GraphError
from fedctl_graph.layout_operators import LAYOUT_OPERATORS
from fedctl_graph.operator_types import (
    Array,
    Attributes,
    Constants,
    Kernel,
    Kind,
    Operator,
    Real,
    integer,
    integers,
)

OPSET = 18
MAX_ONE_HOT_DEPTH = 1000  # classes; a table of its square is kept
MAX_FOLD = 256  # inputs of Max and Sum
_FLOAT = 1  # onnx.TensorProto.FLOAT


def _plain(
    kernel: Kernel, inputs: int, *, takes: Kind | None = Kind.FLOAT, gives: Kind = Kind.FLOAT
) -> Operator:
    def bind(_attributes: Attributes, _constants: Constants) -> Callable[[Real], Kernel]:
        return lambda _real: kernel

    return Operator(bind, inputs, inputs, takes=takes, gives=gives)


def _relu(_attributes: Attributes, _constants: Constants) -> Callable[[Real], Kernel]:
    def make(real: Real) -> Kernel:
        zero = real(0)
        return lambda x: np.maximum(x, zero)

    return make


def _cast(attributes: Attributes, _constants: Constants) -> Callable[[Real], Kernel]:
    if integer(attributes, "to", "Cast") != _FLOAT:
        raise GraphError("Cast goes only to FLOAT")
    return lambda real: lambda x: x.astype(real)


def _reduce(op: str, *, mean: bool) -> Operator:
    def bind(attributes: Attributes, constants: Constants) -> Callable[[Real], Kernel]:
        keepdims = integer(attributes, "keepdims", op, default=1)
        if keepdims not in {0, 1}:
            raise GraphError(f"{op}: keepdims is {keepdims}")
        axes = integers(constants, 1, "axes", op) if len(constants) > 1 else None  # None: all of them
        keep = keepdims == 1
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


def _fold(ufunc: Kernel) -> Operator:
    """Of one value or more; in NumPy, along a short axis, this is four times as fast as a reduction."""

    def fold(first: Array, *others: Array) -> Array:
        result = first
        for other in others:
            result = ufunc(result, other)
        return result

    def bind(_attributes: Attributes, _constants: Constants) -> Callable[[Real], Kernel]:
        return lambda _real: fold

    return Operator(bind, 1, MAX_FOLD)


def _log_softmax(attributes: Attributes, _constants: Constants) -> Callable[[Real], Kernel]:
    axis = integer(attributes, "axis", "LogSoftmax", default=-1)

    def kernel(x: Array) -> Array:
        shifted: Array = x - np.maximum.reduce(x, axis=axis, keepdims=True)
        shifted -= np.log(np.add.reduce(np.exp(shifted), axis=axis, keepdims=True))
        return shifted

    return lambda _real: kernel


def _one_hot(attributes: Attributes, constants: Constants) -> Callable[[Real], Kernel]:
    _, depth, values = constants
    if integer(attributes, "axis", "OneHot", default=-1) != -1:
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


_AXIS = frozenset({"axis"})

OPERATORS: Mapping[str, Operator] = {
    **LAYOUT_OPERATORS,
    "Add": _plain(np.add, 2),
    "Cast": Operator(_cast, 1, 1, frozenset({"to"}), takes=None),
    "Div": _plain(np.divide, 2),
    "Equal": _plain(np.equal, 2, gives=Kind.BOOL),
    "Exp": _plain(np.exp, 1),
    "Greater": _plain(np.greater, 2, gives=Kind.BOOL),
    "LogSoftmax": Operator(_log_softmax, 1, 1, _AXIS),
    "MatMul": _plain(np.matmul, 2),
    "Max": _fold(np.maximum),
    "Mul": _plain(np.multiply, 2),
    "Neg": _plain(np.negative, 1),
    "OneHot": Operator(_one_hot, 3, 3, _AXIS, constant_inputs=(1, 2), takes=Kind.INT64),
    "ReduceMean": _reduce("ReduceMean", mean=True),
    "ReduceSum": _reduce("ReduceSum", mean=False),
    "Relu": Operator(_relu, 1, 1),
    "Shape": _plain(_shape_of, 1, takes=None, gives=Kind.INT64),
    "Sub": _plain(np.subtract, 2),
    "Sum": _fold(np.add),
}

"""The ONNX operators that move values and compute none: Concat, Pad, Reshape, Slice, Transpose.

Where NumPy can, they give views; nothing in a program writes to a value. Opset 18, with fewer freedoms:
positions, shapes and paddings are constants, Pad only adds zeros, Reshape takes 0 for "as it is".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedctl_graph.errors import GraphError
from fedctl_graph.operator_types import (
    Array,
    Attributes,
    Constants,
    Kernel,
    Operator,
    Real,
    integer,
    integers,
)

MAX_CONCAT = 256  # inputs
MAX_PAD = 4096  # zeros at one end of an axis


def _transpose(attributes: Attributes, _constants: Constants) -> Callable[[Real], Kernel]:
    order = attributes.get("perm")
    if order is None:
        return lambda _real: np.transpose
    if not isinstance(order, list) or any(type(axis) is not int for axis in order):
        raise GraphError("Transpose: perm is not a list of integers")
    axes = tuple(order)
    if sorted(axes) != list(range(len(axes))):
        raise GraphError("Transpose: perm is not a permutation")
    return lambda _real: lambda x: x.transpose(axes)


def _reshape(_attributes: Attributes, constants: Constants) -> Callable[[Real], Kernel]:
    shape = integers(constants, 1, "dimensions", "Reshape")
    if min(shape, default=0) < -1 or shape.count(-1) > 1:
        raise GraphError("Reshape: its dimensions are not counts, 0, and at most one -1")
    if 0 not in shape:
        return lambda _real: lambda x: x.reshape(shape)

    def reshape(x: Array) -> Array:
        return x.reshape([n or x.shape[axis] for axis, n in enumerate(shape)])

    return lambda _real: reshape


def _slice(_attributes: Attributes, constants: Constants) -> Callable[[Real], Kernel]:
    """ONNX counts negative positions from the end and cuts off what lies outside, as Python does."""
    starts, ends = (integers(constants, 1 + i, what, "Slice") for i, what in enumerate(("starts", "ends")))
    axes = integers(constants, 3, "axes", "Slice") if len(constants) > 3 else tuple(range(len(starts)))
    steps = integers(constants, 4, "steps", "Slice") if len(constants) > 4 else (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) > 0:
        raise GraphError("Slice: its starts, ends, axes and steps differ in number")
    if len(set(axes)) != len(axes) or min(axes) < 0 or 0 in steps:
        raise GraphError("Slice: an axis is negative or named twice, or a step is 0")
    cuts = [slice(None)] * (max(axes) + 1)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cuts[axis] = slice(start, end, step)
    where = tuple(cuts)
    return lambda _real: lambda x: x[where]


def _pad(attributes: Attributes, constants: Constants) -> Callable[[Real], Kernel]:
    if attributes.get("mode", "constant") != "constant":
        raise GraphError("Pad: its mode is not 'constant'")
    pads = integers(constants, 1, "pads", "Pad")
    if not pads or len(pads) % 2 or not 0 <= min(pads) <= max(pads) <= MAX_PAD:
        raise GraphError(f"Pad: its pads are not pairs of counts up to {MAX_PAD}")
    rank = len(pads) // 2
    ends = tuple(zip(pads[:rank], pads[rank:], strict=True))

    def make(real: Real) -> Kernel:
        def pad(x: Array) -> Array:  # np.pad takes ten times as long on a small batch
            if x.ndim != rank:
                raise ValueError(f"{rank} axes are padded, there are {x.ndim}")
            room = zip(ends, x.shape, strict=True)
            result = np.zeros([before + n + after for (before, after), n in room], real)
            inner = zip(ends, x.shape, strict=True)
            result[tuple(slice(before, before + n) for (before, _), n in inner)] = x
            return result

        return pad

    return make


def _concat(attributes: Attributes, _constants: Constants) -> Callable[[Real], Kernel]:
    axis = integer(attributes, "axis", "Concat")

    def concat(*parts: Array) -> Array:
        return np.concatenate(parts, axis)

    return lambda _real: concat


LAYOUT_OPERATORS = {
    "Concat": Operator(_concat, 1, MAX_CONCAT, frozenset({"axis"})),
    "Pad": Operator(_pad, 2, 2, frozenset({"mode"}), constant_inputs=(1,)),
    "Reshape": Operator(_reshape, 2, 2, constant_inputs=(1,)),
    "Slice": Operator(_slice, 3, 5, constant_inputs=(1, 2, 3, 4)),
    "Transpose": Operator(_transpose, 1, 1, frozenset({"perm"})),
}

"""What an operator is: its values' types, its constants, and how a node's kernel is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedctl_graph.errors import GraphError

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


Constants = tuple[Constant | None, ...]  # one an input of a node; None where it is computed
Bind = Callable[[Attributes, Constants], Callable[[Real], Kernel]]


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


def integer(attributes: Attributes, key: str, op: str, *, default: int | None = None) -> int:
    """An attribute that is one whole number.

    Raises:
        GraphError: When it is missing and has no default, or is something else.
    """
    value = attributes.get(key, default)
    if type(value) is not int:
        raise GraphError(f"{op}: {key} is not an integer")
    return value


def integers(constants: Constants, position: int, what: str, op: str) -> tuple[int, ...]:
    """A constant input that is a list of whole numbers.

    Raises:
        GraphError: When it is something else.
    """
    constant = constants[position]
    if constant is None or constant.kind is not Kind.INT64 or len(constant.shape) != 1:
        raise GraphError(f"{op}: its {what} are not a list of integers")
    return tuple(int(number) for number in constant.data)

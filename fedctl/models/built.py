"""What a builder is asked for, and what it hands over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedctl_wire.manifest import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolutions:
    """The convolutions of a `cnn`."""

    channels: tuple[int, ...]  # of each one's output
    kernel: int = 5  # samples
    pool: int = 2  # neighbours of which the largest goes on, after each convolution; 1: all do


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A network as it was asked for; each builder refuses what it cannot make."""

    builder: str
    input_shape: tuple[int, ...]  # of one example: (features,), or (channels, samples)
    classes: int
    hidden: tuple[int, ...] = ()  # widths of the dense layers between
    window: Convolutions | None = None
    weighted: bool = False  # whether the loss takes a weight for each class


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model as a builder made it: graph, first weights and golden batch, ready for a bundle."""

    builder: str
    input_shape: tuple[int, ...]  # of one example
    classes: int
    graph: bytes  # train.json
    operators: tuple[str, ...]  # that the graph uses, sorted
    tensors: tuple[TensorSpec, ...]  # order of the parameters in files
    weights: dict[str, NDArray[np.float32]]  # one a tensor
    golden: dict[str, NDArray[Any]]  # param:NAME, x, y (int64), loss, logits, grad:NAME

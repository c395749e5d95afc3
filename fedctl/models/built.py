"""What a builder hands over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedctl_wire.manifest import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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

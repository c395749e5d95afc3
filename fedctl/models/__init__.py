"""Builders of training graphs, checked here before they travel.

Importing this package loads no NumPy; building does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedctl.core.errors import UsageError
from fedctl_wire.manifest import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.float32]]

BUILDERS = ("mlp",)


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model as a builder made it: graph, first weights and golden batch, ready for a bundle."""

    builder: str
    input_shape: tuple[int, ...]  # of one example
    classes: int
    graph: bytes  # train.json
    operators: tuple[str, ...]  # that the graph uses, sorted
    tensors: tuple[TensorSpec, ...]  # order of the parameters in files
    weights: Arrays  # float32, one a tensor
    golden: dict[str, NDArray[Any]]  # param:NAME, x, y (int64), loss, logits, grad:NAME


def build(
    builder: str, *, input_shape: tuple[int, ...], hidden: tuple[int, ...], classes: int, seed: int
) -> BuiltModel:
    """Make a model and check its gradients numerically in float64 before it is returned.

    Args:
        builder: One of `BUILDERS`.
        input_shape: One example's shape, e.g. `(237,)`.
        hidden: Widths of the hidden layers, at least one.
        classes: Number of classes, at least two.
        seed: Of the first weights and the golden batch: same arguments, same bytes.

    Raises:
        UsageError: When the builder is unknown or the numbers make no model.
    """
    from fedctl.models import mlp

    if builder not in BUILDERS:
        raise UsageError(f"there is no builder {builder!r}", hint=f"builders: {', '.join(BUILDERS)}")
    return mlp.build(input_shape=input_shape, hidden=hidden, classes=classes, seed=seed)

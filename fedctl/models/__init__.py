"""Builders of training graphs, checked here before they travel.

Importing this package loads no NumPy; building does.
"""

from __future__ import annotations

from fedctl.core.errors import UsageError
from fedctl.models.built import BuiltModel

__all__ = ["BUILDERS", "BuiltModel", "build"]

BUILDERS = ("mlp",)


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

    if builder != mlp.NAME:
        raise UsageError(f"there is no builder {builder!r}", hint=f"builders: {', '.join(BUILDERS)}")
    return mlp.build(input_shape=input_shape, hidden=hidden, classes=classes, seed=seed)

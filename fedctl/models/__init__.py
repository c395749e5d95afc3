"""Builders of training graphs, checked here before they travel.

Importing this package loads no NumPy; building does.
"""

from __future__ import annotations

from fedctl.core.errors import UsageError
from fedctl.models.built import Architecture, BuiltModel, Convolutions

__all__ = ["BUILDERS", "Architecture", "BuiltModel", "Convolutions", "build"]

BUILDERS = ("logreg", "mlp", "cnn")


def build(
    builder: str,
    *,
    input_shape: tuple[int, ...],
    classes: int,
    seed: int,
    hidden: tuple[int, ...] = (),
    window: Convolutions | None = None,
    weighted: bool = False,
) -> BuiltModel:
    """Make a model and check its gradients numerically in float64 before it is returned.

    Args:
        builder: One of `BUILDERS`.
        input_shape: One example's shape: `(237,)`, or `(9, 128)` for a `cnn`.
        classes: Number of classes, at least two.
        seed: Of the first weights and the golden batch: same arguments, same bytes.
        hidden: Widths of the hidden layers; an `mlp` has at least one, a `logreg` none.
        window: The convolutions of a `cnn`.
        weighted: Whether the loss takes a weight for each class, which the plan of a round sets.

    Raises:
        UsageError: When the builder is unknown or the numbers make no model.
    """
    if builder not in BUILDERS:
        raise UsageError(f"there is no builder {builder!r}", hint=f"builders: {', '.join(BUILDERS)}")
    from fedctl.models.make import make

    architecture = Architecture(
        builder=builder,
        input_shape=input_shape,
        classes=classes,
        hidden=hidden,
        window=window,
        weighted=weighted,
    )
    return make(architecture, seed=seed)

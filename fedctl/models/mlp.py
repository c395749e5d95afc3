"""The builders `mlp`, dense layers with ReLU, and `logreg`, one dense layer: flat features, softmax."""

from __future__ import annotations

from fedctl.core.errors import UsageError
from fedctl.models import dense
from fedctl.models.built import Architecture
from fedctl.models.draft import Draft
from fedctl_wire.manifest import TensorSpec

NAME = "mlp"
LOGREG = "logreg"


def tensors(architecture: Architecture) -> list[TensorSpec]:
    """A weight and a bias a layer.

    Raises:
        UsageError: When the numbers make no network.
    """
    builder, hidden = architecture.builder, architecture.hidden
    article = "an" if builder == NAME else "a"
    if len(architecture.input_shape) != 1:
        raise UsageError(
            f"{article} {builder} takes a flat input, not shape {list(architecture.input_shape)}",
            hint="windows of a signal are for --builder cnn",
        )
    if architecture.window is not None:
        raise UsageError(f"{article} {builder} has no channels, kernel or pool", hint="use --builder cnn")
    if builder == NAME and not hidden:
        raise UsageError(
            "an mlp needs at least one hidden layer", hint="for example --hidden 64; or --builder logreg"
        )
    if builder == LOGREG and hidden:
        raise UsageError("a logreg has no hidden layer", hint="leave out --hidden, or use --builder mlp")
    return dense.tensors(_widths(architecture))


def write(draft: Draft, architecture: Architecture) -> None:
    """Add the whole program."""
    layers = len(architecture.hidden) + 1
    dense.forward(draft, layers, "x")
    dense.loss(draft, architecture.classes, weighted=architecture.weighted)
    dense.backward(draft, layers, "x")


def _widths(architecture: Architecture) -> tuple[int, ...]:
    return (*architecture.input_shape, *architecture.hidden, architecture.classes)

"""How devices train, as options of `model create` (the model's defaults) and `round start` (of this run)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedctl.core.training import TrainWishes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """None is the model's default, or the tool's while there is no model."""

    local_epochs: Annotated[
        int | None, typer.Option("--local-epochs", metavar="N", help="Passes over a device's data.")
    ] = None
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Examples of one step.")
    ] = None
    lr: Annotated[float | None, typer.Option("--lr", metavar="RATE", help="Learning rate.")] = None
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", metavar="sgd|adam", help="How a step is made.")
    ] = None
    momentum: Annotated[
        float | None, typer.Option("--momentum", metavar="FACTOR", help="Of sgd, from 0 to below 1.")
    ] = None
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", metavar="RATE", help="Pull of weights to 0.")
    ] = None
    proximal_mu: Annotated[
        float | None,
        typer.Option("--proximal-mu", metavar="MU", help="FedProx: pull to the round's base; 0: none."),
    ] = None
    max_gradient_norm: Annotated[
        float | None,
        typer.Option("--max-gradient-norm", metavar="NORM", help="Shorten longer gradients; 0: none."),
    ] = None
    class_weights: Annotated[
        str | None,
        typer.Option("--class-weights", metavar="none|balanced|W,W...", help="Of the classes in the loss."),
    ] = None
    max_examples: Annotated[
        int | None, typer.Option("--max-examples", metavar="N", help="Most a device counts for.")
    ] = None

    def given(self) -> dict[str, Any]:
        """By the names of `TrainWishes`."""
        return asdict(self)

    def wishes(self) -> TrainWishes:
        """The same for the operations, not yet checked."""
        from fedctl.core.training import TrainWishes

        return TrainWishes(**self.given())

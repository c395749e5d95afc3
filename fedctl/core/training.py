"""What may be asked of local training, its ranges, and the settings that come of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from fedctl.core.errors import UsageError
from fedctl_wire.messages import TrainSettings

OPTIMIZERS = ("sgd", "adam")
_MOST = 10**9  # epochs or examples; far from what a signed plan can hold
_SAME_NAME = ("local_epochs", "batch_size", "lr", "momentum", "optimizer", "weight_decay", "proximal_mu")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainWishes:
    """What was asked for on the command line; None means the model's default."""

    local_epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    optimizer: str | None = None  # one of OPTIMIZERS
    momentum: float | None = None  # of sgd
    weight_decay: float | None = None
    proximal_mu: float | None = None
    max_gradient_norm: float | None = None  # 0: any
    class_weights: str | None = None  # "none", "balanced", or a number a class such as "1,4.5"
    max_examples: int | None = None


def check_training(wishes: TrainWishes) -> None:
    """Refuse what no device can do.

    Raises:
        UsageError: Naming the option that is out of range.
    """
    check_positive(
        {
            "--local-epochs": (wishes.local_epochs, _MOST),
            "--batch-size": (wishes.batch_size, _MOST),
            "--lr": (wishes.lr, math.inf),
            "--max-examples": (wishes.max_examples, _MOST),
        }
    )
    from_zero = {
        "--weight-decay": wishes.weight_decay,
        "--proximal-mu": wishes.proximal_mu,
        "--max-gradient-norm": wishes.max_gradient_norm,
    }
    for option, value in from_zero.items():
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(f"{option} is {value}; it must be 0 or more", subject=option)
    if wishes.momentum is not None and not 0 <= wishes.momentum < 1:
        raise UsageError(f"--momentum is {wishes.momentum}; it must be from 0 to below 1")
    if wishes.optimizer is not None and wishes.optimizer not in OPTIMIZERS:
        raise UsageError(
            f"--optimizer {wishes.optimizer!r} is not one of {', '.join(OPTIMIZERS)}", subject="--optimizer"
        )
    _class_weights(wishes.class_weights)


def check_positive(ranges: dict[str, tuple[float | None, float]]) -> None:
    """Refuse numbers that are not above 0 and at most the second of the pair; None was not asked for.

    Raises:
        UsageError: Naming the option.
    """
    for option, (value, most) in ranges.items():
        if value is None:
            continue
        if not 0 < value < math.inf:
            raise UsageError(f"{option} is {value}; it must be greater than 0")
        if value > most:
            raise UsageError(f"{option} is {value}; it must be at most {most}")


def asks_for_weights(wishes: TrainWishes) -> bool:
    """Whether the model's loss has to take class weights."""
    return wishes.class_weights not in {None, "none"}


def train_settings(
    defaults: TrainSettings, wishes: TrainWishes, *, classes: int, weighted: bool
) -> TrainSettings:
    """The defaults with the wishes in their place.

    Args:
        defaults: Of the model.
        wishes: Checked.
        classes: The model's number of classes.
        weighted: Whether the model's loss takes class weights.

    Raises:
        UsageError: When wishes contradict each other or the model.
    """
    wished: dict[str, Any] = {
        name: getattr(wishes, name) for name in _SAME_NAME if getattr(wishes, name) is not None
    }
    if wishes.max_examples is not None:
        wished["max_examples"] = wishes.max_examples
    if wishes.max_gradient_norm is not None:
        wished["max_gradient_norm"] = wishes.max_gradient_norm or None
    if wishes.class_weights is not None:
        balanced, weights = _class_weights(wishes.class_weights)
        _check_weights(wishes.class_weights, weights, classes=classes, weighted=weighted)
        wished |= {"class_weights": weights, "balance_classes": balanced}
    if wished.get("optimizer") == "adam" and wishes.momentum is None:
        wished["momentum"] = 0.0  # that of the model's own optimiser
    settings = replace(defaults, **wished)
    if settings.optimizer == "adam" and settings.momentum:
        raise UsageError(
            "adam has a momentum of its own", hint="leave out --momentum, or choose --optimizer sgd"
        )
    return settings


def _check_weights(text: str, weights: tuple[float, ...] | None, *, classes: int, weighted: bool) -> None:
    if weights is not None and len(weights) != classes:
        raise UsageError(
            f"--class-weights {text!r} has {len(weights)} numbers, the model {classes} classes",
            subject="--class-weights",
        )
    if text != "none" and not weighted:
        raise UsageError(
            "the model's loss takes no class weights",
            hint="make one that does: fedctl model create NAME … --class-weights balanced",
            subject="--class-weights",
        )


def _class_weights(text: str | None) -> tuple[bool, tuple[float, ...] | None]:
    """Whether to balance, or which weights."""
    if text is None or text in {"none", "balanced"}:
        return text == "balanced", None
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = ()
    if not weights or not all(0 < weight < math.inf for weight in weights):
        raise UsageError(
            f"--class-weights {text!r} is neither 'none', 'balanced' nor numbers above 0",
            hint="for example --class-weights 1,4.5",
            subject="--class-weights",
        )
    return False, weights

"""What may be asked of local training, and what a plan says then."""

from __future__ import annotations

from typing import Any

import pytest

from fedctl.core.errors import UsageError
from fedctl.core.plan import RoundWishes, check_wishes
from fedctl.core.training import TrainWishes, asks_for_weights, check_training, train_settings
from fedctl_wire.codec import decode
from fedctl_wire.messages import TrainSettings

DEFAULTS = TrainSettings(lr=0.05, momentum=0.9, local_epochs=2, weight_decay=1e-3, max_gradient_norm=5.0)


def settings(*, weighted: bool = True, **wishes: Any) -> TrainSettings:
    return train_settings(DEFAULTS, TrainWishes(**wishes), classes=2, weighted=weighted)


def test_settings_of_a_plan_from_before_mean_what_they_meant() -> None:
    old = b'{"batch_size":32,"local_epochs":3,"lr":0.1,"max_examples":null,"momentum":0.9,"optimizer":"sgd"}'
    expected = TrainSettings(lr=0.1, momentum=0.9, local_epochs=3)
    found = decode(TrainSettings, old, limit=1000)
    assert found == expected
    assert (found.weight_decay, found.proximal_mu, found.max_gradient_norm) == (0.0, 0.0, None)
    assert (found.class_weights, found.balance_classes) == (None, False)


def test_what_is_not_asked_for_is_the_models() -> None:
    assert settings() == DEFAULTS


def test_each_wish_takes_the_place_of_a_default() -> None:
    found = settings(lr=0.1, weight_decay=0.0, proximal_mu=0.01, max_gradient_norm=2.0, max_examples=9)
    assert (found.lr, found.weight_decay, found.proximal_mu) == (0.1, 0.0, 0.01)
    assert (found.max_gradient_norm, found.max_examples, found.momentum) == (2.0, 9, 0.9)
    assert settings(max_gradient_norm=0.0).max_gradient_norm is None


def test_adam_leaves_the_momentum_of_the_models_optimizer_behind() -> None:
    assert settings(optimizer="adam").momentum == 0.0
    with pytest.raises(UsageError, match="momentum of its own"):
        settings(optimizer="adam", momentum=0.5)


def test_class_weights_are_numbers_or_balance_or_none() -> None:
    assert settings(class_weights="1,4.5").class_weights == (1.0, 4.5)
    balanced = settings(class_weights="balanced")
    assert (balanced.class_weights, balanced.balance_classes) == (None, True)
    again = train_settings(balanced, TrainWishes(class_weights="none"), classes=2, weighted=True)
    assert again == DEFAULTS
    assert asks_for_weights(TrainWishes(class_weights="balanced"))
    assert not asks_for_weights(TrainWishes(class_weights="none"))
    assert not asks_for_weights(TrainWishes())


def test_class_weights_must_fit_the_model() -> None:
    with pytest.raises(UsageError, match="has 3 numbers, the model 2 classes"):
        settings(class_weights="1,2,3")
    with pytest.raises(UsageError, match="takes no class weights") as caught:
        settings(class_weights="balanced", weighted=False)
    assert "--class-weights balanced" in (caught.value.hint or "")
    assert settings(class_weights="none", weighted=False) == DEFAULTS


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"lr": 0.0}, "--lr is 0.0; it must be greater than 0"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"batch_size": 0}, "--batch-size"),
        ({"local_epochs": 10**10}, "at most 1000000000"),
        ({"momentum": 1.0}, "from 0 to below 1"),
        ({"weight_decay": -1e-3}, "--weight-decay is -0.001; it must be 0 or more"),
        ({"proximal_mu": float("inf")}, "--proximal-mu is inf"),
        ({"max_gradient_norm": -1.0}, "--max-gradient-norm"),
        ({"optimizer": "lion"}, "'lion' is not one of sgd, adam"),
        *(
            ({"class_weights": text}, "numbers above 0")
            for text in ("", "1,", "1,0", "1,-2", "heavy", "1,inf")
        ),
    ],
)
def test_what_is_out_of_range_is_named(wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_training(TrainWishes(**wishes))
    with pytest.raises(UsageError, match=message):
        check_wishes(RoundWishes(**wishes))

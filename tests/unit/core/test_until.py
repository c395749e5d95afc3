"""The target expression."""

from __future__ import annotations

import pytest

from fedctl.core.errors import UsageError
from fedctl.core.until import Until


@pytest.mark.parametrize(
    ("text", "metrics", "met"),
    [
        ("auroc>=0.85", {"auroc": 0.85}, True),
        ("macro_f1 >= .8", {"macro_f1": 0.81}, True),
        ("auroc>0.85", {"auroc": 0.85}, False),
        ("auroc>0.85", {"auroc": 0.86}, True),
        ("loss<=.3", {"loss": 0.3}, True),
        ("loss<.3", {"loss": 0.3}, False),
        (" accuracy >= 1 ", {"accuracy": 1.0}, True),
        ("loss<1e-3", {"loss": 0.0005}, True),
        ("auroc>=0.1", {"auroc": None}, False),
        ("auroc>=0.1", {"loss": 0.0}, False),
    ],
)
def test_a_target_is_met_or_not(text: str, metrics: dict[str, float | None], *, met: bool) -> None:
    assert Until.parse(text).met(metrics) is met


@pytest.mark.parametrize(
    "text",
    [
        *("", "auroc", "auroc>=", "auroc=0.8", "auroc==0.8", "auroc>=high", "f2>=0.8", "auroc>=85"),
        *("accuracy>1.01", "auroc>=nan", "loss<1e999", "auroc>=0.8 and loss<1", "auroc>=-1", "0.8<=auroc"),
    ],
)
def test_anything_else_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Until.parse(text)
    assert caught.value.subject == text


def test_it_is_written_in_one_spelling() -> None:
    until = Until.parse("loss < .30")
    assert str(until) == "loss<0.3"
    assert Until.parse(str(until)) == until
    assert str(Until.parse("f1>=0.8")) == "macro_f1>=0.8"  # as the tables head it


def test_a_metric_that_the_model_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(UsageError, match="AUROC is of two classes, the model has 3") as caught:
        Until.parse("auroc>=0.85").check_classes(3)
    assert caught.value.hint == "use macro_f1 or accuracy, for example 'macro_f1>=0.85'"
    Until.parse("auroc>=0.85").check_classes(2)
    Until.parse("f1>=0.85").check_classes(3)

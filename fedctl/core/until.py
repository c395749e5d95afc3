"""The target of a series of rounds: `--until "auroc>=0.85"`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from fedctl.core.errors import UsageError

METRICS = ("loss", "accuracy", "macro_f1", "auroc")
_ALSO = {"f1": "macro_f1"}  # as the tables head it
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
_EXPRESSION = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(>=|>|<=|<)\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*")
_FORM = "use METRIC OPERATOR NUMBER, for example 'auroc>=0.85'"


@dataclass(frozen=True, slots=True)
class Until:
    """One comparison of a metric, as measured by the gate's devices, with a number."""

    metric: str  # one of METRICS
    comparison: str  # one of >=, >, <=, <
    threshold: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an expression such as `auroc>=0.85` or `loss < .3`.

        Raises:
            UsageError: When it has another form, an unknown metric, or a number no metric can reach.
        """
        match = _EXPRESSION.fullmatch(text)
        if match is None:
            raise UsageError(f"cannot read the target {text!r}", hint=_FORM, subject=text)
        metric, comparison, threshold = _ALSO.get(match[1], match[1]), match[2], float(match[3])
        if metric not in METRICS:
            raise UsageError(
                f"target {text!r}: there is no metric {metric!r}",
                hint=f"it is one of {', '.join(METRICS)}",
                subject=text,
            )
        if not math.isfinite(threshold) or (metric != "loss" and threshold > 1):
            raise UsageError(f"target {text!r}: {metric} lies between 0 and 1", hint=_FORM, subject=text)
        return cls(metric, comparison, threshold)

    def __str__(self) -> str:
        """The expression, in one spelling: `auroc>=0.85`."""
        return f"{self.metric}{self.comparison}{self.threshold:g}"

    def check_classes(self, classes: int) -> None:
        """Refuse a metric that a model with so many classes does not have, before anything trains for it.

        Raises:
            UsageError: Naming the metrics it has.
        """
        if self.metric == "auroc" and classes != 2:  # the gate's histogram is of two
            raise UsageError(
                f"target {str(self)!r}: AUROC is of two classes, the model has {classes}",
                hint=f"use macro_f1 or accuracy, for example 'macro_f1{self.comparison}{self.threshold:g}'",
                subject=str(self),
            )

    def met(self, metrics: Mapping[str, float | None]) -> bool:
        """Whether `metrics` reach the target; a metric that was not measured does not."""
        value = metrics.get(self.metric)
        return value is not None and _OPERATORS[self.comparison](value, self.threshold)

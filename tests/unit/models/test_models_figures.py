"""AUROC, scaling from sums, and training in process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedctl.models import build, local
from fedctl.models.metrics import auroc, macro_f1
from fedctl_graph.errors import GraphError
from fedctl_wire.messages import TrainSettings


@pytest.mark.parametrize(
    ("histogram", "expected"),
    [
        (((0, 2, 0), (9, 0, 3)), 1.0),
        (((0, 0, 3), (9, 2, 0)), 0.0),
        (((0, 1, 1), (1, 1, 1)), 0.5),
        (((0, 3, 0), (1, 1, 1), (2, 0, 1)), 0.9375),  # of 8 pairs 7 are ordered right and one is a tie
        (((0, 0, 1), (1, 0, 1)), None),
        (((0, 1, 0), (1, 1, 0)), None),
    ],
)
def test_auroc_of_small_histograms(histogram: Any, expected: float | None) -> None:
    assert auroc(histogram) == expected


def test_scaling_is_that_of_all_data_together() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.standard_normal((n, 4)) * [1, 10, 0.1, 5] + 3).astype(np.float32) for n in (30, 1, 70)]
    everything = np.concatenate(parts).astype(np.float64)
    found = local.scaling_from(parts)
    np.testing.assert_allclose(found.mean, everything.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, everything.std(axis=0), rtol=1e-9)
    assert found.clip == 8.0


def test_a_feature_that_never_changes_or_is_never_there_can_be_divided_by() -> None:
    x = np.array([[2, np.nan, 1], [2, np.nan, np.nan]], np.float32)
    found = local.scaling_from([x])
    assert found.mean == (2.0, 0.0, 1.0)
    assert found.std == (1e-6, 1.0, 1e-6)


def test_rounding_below_zero_is_no_variance() -> None:
    found = local.scaling_from([np.full((7, 1), 0.3, np.float32), np.full((3, 1), 0.3, np.float32)])
    assert found.std == (pytest.approx(1e-6),)


MODEL = build("mlp", input_shape=(3,), hidden=(8,), classes=2, seed=0)


def data(n: int = 400) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n, 3), np.float32) * np.float32(20) + np.float32(50)
    return x, (x[:, 0] + x[:, 1] > 100).astype(np.int64)


def test_training_in_process_learns_and_leaves_its_arguments_alone() -> None:
    x, y = data()
    before, first = x.copy(), {name: w.copy() for name, w in MODEL.weights.items()}
    scaling = local.scaling_from([x])
    settings = TrainSettings(lr=0.1, momentum=0.9, local_epochs=10)
    weights = local.fit(MODEL, (x, y), settings=settings, seed=0, scaling=scaling)
    start = local.evaluate(MODEL, MODEL.weights, (x, y), scaling=scaling)
    end = local.evaluate(MODEL, weights, (x, y), scaling=scaling)
    assert end.examples == 400
    assert end.correct > 370
    assert end.loss_sum < start.loss_sum / 2
    assert end.histogram is not None
    area = auroc(end.histogram)
    assert area is not None
    assert area > 0.97
    np.testing.assert_array_equal(x, before)
    assert all((MODEL.weights[name] == w).all() for name, w in first.items())


def test_data_that_do_not_fit_the_model_are_refused() -> None:
    x, y = data(40)
    with pytest.raises(GraphError):
        local.fit(MODEL, (x[:, :2].copy(), y), settings=TrainSettings(lr=0.1), seed=0, scaling=None)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ((), None),
        (((0, 4, 4, 4), (1, 2, 2, 2)), 1.0),
        (((0, 4, 6, 4), (1, 2, 0, 0)), (8 / 10 + 0) / 2),
        (((0, 3, 2, 2), (1, 3, 2, 1), (2, 0, 2, 0)), (4 / 5 + 2 / 5 + 0) / 3),
        (((0, 3, 3, 3), (5, 0, 0, 0)), 1.0),
    ],
)
def test_macro_f1_is_the_mean_of_the_classes_that_occur(
    classes: tuple[tuple[int, ...], ...], expected: float | None
) -> None:
    assert macro_f1(classes) == (None if expected is None else pytest.approx(expected))

"""AUROC, scaling from sums, and training in process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedctl.models import build, local
from fedctl.models.metrics import add_histograms, auroc
from fedctl.models.scaling import Sums, read_sums, scaling_from
from fedctl_agent.trainers.tensorfile import write_tensors
from fedctl_graph.errors import GraphError
from fedctl_wire.errors import WireError
from fedctl_wire.messages import TrainSettings
from fedctl_wire.tensors import layout


@pytest.mark.parametrize(
    ("histogram", "expected"),
    [
        (((2, 0, 0), (0, 0, 3)), 1.0),
        (((0, 0, 2), (3, 0, 0)), 0.0),
        (((1, 1), (1, 1)), 0.5),
        (((3, 1, 0), (0, 1, 1)), 0.9375),  # of 8 pairs 7 are ordered right and one is a tie
        (((0, 0), (1, 1)), None),
        (((1, 1), (0, 0)), None),
    ],
)
def test_auroc_of_small_histograms(histogram: Any, expected: float | None) -> None:
    assert auroc(histogram) == expected


def test_histograms_add_up() -> None:
    assert add_histograms([((1, 2), (3, 4)), ((10, 20), (30, 40))]) == ((11, 22), (33, 44))


def test_scaling_is_that_of_all_data_together() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.standard_normal((n, 4)) * [1, 10, 0.1, 5] + 3).astype(np.float32) for n in (30, 1, 70)]
    everything = np.concatenate(parts).astype(np.float64)
    found = local.scaling_of(parts)
    np.testing.assert_allclose(found.mean, everything.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, everything.std(axis=0), rtol=1e-9)
    assert found.clip == 8.0


def test_a_feature_that_never_changes_or_is_never_there_can_be_divided_by() -> None:
    x = np.array([[2, np.nan, 1], [2, np.nan, np.nan]], np.float32)
    found = local.scaling_of([x])
    assert found.mean == (2.0, 0.0, 1.0)
    assert found.std == (1e-6, 1.0, 1e-6)


def test_rounding_below_zero_is_no_variance() -> None:
    found = scaling_from([Sums([3.0], [0.3], [0.03 - 1e-12])])
    assert found.std == (1e-6,)


def test_the_order_of_the_parts_is_the_order_of_the_additions() -> None:
    parts = [Sums([1.0], [value], [value * value]) for value in (1e16, 1.0, -1e16)]
    assert scaling_from(parts).mean == ((1e16 + 1.0 - 1e16) / 3,)
    assert scaling_from(reversed(parts)).mean == ((-1e16 + 1.0 + 1e16) / 3,)


def write_sums(path: Path, **changes: Any) -> Path:
    arrays = {"count": [4, 0], "sum": [2.5, 0], "sumsq": [9, 0], **changes}
    columns = {name: np.array(values, np.float64) for name, values in arrays.items()}
    write_tensors(path, layout([(name, "F64", c.shape) for name, c in columns.items()]), columns, {})
    return path


def test_sums_are_read_from_a_result_file(tmp_path: Path) -> None:
    sums = read_sums(write_sums(tmp_path / "s"), features=2)
    assert [list(column) for column in (sums.count, sums.total, sums.squares)] == [[4, 0], [2.5, 0], [9, 0]]


@pytest.mark.parametrize(
    "changes",
    [
        {"sum": [np.nan, 0]},
        {"sumsq": [np.inf, 0]},
        {"sumsq": [-1, 0]},
        {"count": [-1, 0]},
        {"count": [np.nan, 0]},
        {"sum": [1, 2, 3]},
        {"extra": [0, 0]},
    ],
)
def test_numbers_that_are_no_sums_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="sums"):
        read_sums(write_sums(tmp_path / "s", **changes), features=2)


def test_truncated_sums_are_refused(tmp_path: Path) -> None:
    path = write_sums(tmp_path / "s")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(WireError):
        read_sums(path, features=2)


MODEL = build("mlp", input_shape=(3,), hidden=(8,), classes=2, seed=0)


def data(n: int = 400) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n, 3), np.float32) * np.float32(20) + np.float32(50)
    return x, (x[:, 0] + x[:, 1] > 100).astype(np.int64)


def test_training_in_process_learns_and_leaves_its_arguments_alone() -> None:
    x, y = data()
    before, first = x.copy(), {name: w.copy() for name, w in MODEL.weights.items()}
    scaling = local.scaling_of([x])
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

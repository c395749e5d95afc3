"""Scaling from sums equals scaling from the pooled data."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fedctl.aggregation.scaling import scaling_from_stats, stats_layout
from fedctl.core.errors import ConfigError, DeviceError
from fedctl_wire.tensors import header_bytes


def write_sums(path: Path, count: list[float], total: list[float], squares: list[float]) -> Path:
    data = np.array([count, total, squares], dtype="<f8")
    path.write_bytes(header_bytes(stats_layout(len(count))) + data.tobytes())
    return path


def test_it_is_the_mean_and_deviation_of_all_present_cells(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    people = [rng.normal(3, 2, (n, 3)) * [1, 10, 0] + [0, 5, 7] for n in (40, 25, 90)]
    people[1][:10, 0] = np.nan  # missing cells
    results = {}
    for i, x in enumerate(people):
        columns = [c[np.isfinite(c)] for c in x.T]
        sums = [[float(f(c)) for c in columns] for f in (len, np.sum, lambda c: np.sum(c * c))]
        results[f"d{i}"] = write_sums(tmp_path / f"d{i}", *sums)
    scaling = scaling_from_stats(results, 3)
    pooled = np.concatenate(people)
    assert scaling.mean == pytest.approx(np.nanmean(pooled, axis=0))
    assert scaling.std[:2] == pytest.approx(np.nanstd(pooled, axis=0)[:2])
    assert scaling.std[2] == 1e-6  # never varies
    assert scaling.clip == 8.0
    assert scaling_from_stats(dict(reversed(results.items())), 3) == scaling


def test_a_feature_nobody_has_is_left_as_it_is(tmp_path: Path) -> None:
    results = {"d": write_sums(tmp_path / "d", [0, 2], [0, 4], [0, 10])}
    scaling = scaling_from_stats(results, 2)
    assert (scaling.mean, scaling.std) == ((0.0, 2.0), (1.0, 1.0))


def test_rounding_below_zero_variance_is_the_floor(tmp_path: Path) -> None:
    value = 0.1
    total, squares = sum([value] * 3), sum([value * value] * 3) * (1 - 1e-9)
    scaling = scaling_from_stats({"d": write_sums(tmp_path / "d", [3], [total], [squares])}, 1)
    assert scaling.std == (1e-6,)


@pytest.mark.parametrize(
    ("count", "total", "squares"),
    [
        ([-1.0], [0.0], [0.0]),
        ([1.0], [1.0], [-1.0]),
        ([math.nan], [1.0], [1.0]),
        ([1.0], [math.inf], [1.0]),
        ([2.0], [100.0], [1.0]),
        ([0.0], [1.0], [1.0]),
        ([1.0, 1.0], [1.0, 1.0], [1.0, 1.0]),
    ],
)
def test_impossible_sums_name_the_device(
    tmp_path: Path, count: list[float], total: list[float], squares: list[float]
) -> None:
    good = write_sums(tmp_path / "good", [1], [1], [1])
    bad = write_sums(tmp_path / "bad", count, total, squares)
    with pytest.raises(DeviceError, match="watch-02") as caught:
        scaling_from_stats({"watch-01": good, "watch-02": bad}, 1)
    assert caught.value.code == "stats"


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(DeviceError):
        scaling_from_stats({"d": tmp_path / "junk"}, 1)
    with pytest.raises(ConfigError, match="nowhere"):
        scaling_from_stats({"d": tmp_path / "nowhere"}, 1)

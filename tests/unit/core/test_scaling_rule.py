"""Scaling from sums: the rule that devices' sums and the demo's own data go through."""

from __future__ import annotations

import math

import pytest

from fedctl.core.scaling import scaling_of


@pytest.mark.parametrize(
    ("sums", "mean", "std"),
    [
        pytest.param((4, 8, 20), 2.0, 1.0, id="plain"),
        pytest.param((0, 0, 0), 0.0, 1.0, id="nowhere"),
        pytest.param((3, 6, 12), 2.0, 1e-6, id="never varies"),
        pytest.param((3, 0.3, 0.03 * (1 - 1e-9)), 0.1, 1e-6, id="rounded below zero"),
        pytest.param((1, 1e200, 1e300), 1e200, 1e-6, id="a square too large for a float"),
    ],
)
def test_one_feature(sums: tuple[float, float, float], mean: float, std: float) -> None:
    found = scaling_of(*([number] for number in sums))
    assert found.mean == pytest.approx((mean,))
    assert found.std == pytest.approx((std,))
    assert math.isfinite(found.std[0])

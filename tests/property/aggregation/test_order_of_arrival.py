"""The candidate's bytes do not depend on the order of arrival, nor on how files were cut into blocks."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.aggregation import fedavg
from fedctl.aggregation.fedavg import Update, aggregate
from fedctl.aggregation.reduce import weighted_mean
from fedctl_wire.manifest import BUNDLE_FILES, BundleFile, Manifest, TensorSpec
from fedctl_wire.messages import TrainSettings
from fedctl_wire.names import Name
from fedctl_wire.tensors import header_bytes

SHAPES = ((13, 11), (11,), (1,), (11, 2))


def model(trainable: list[bool]) -> Manifest:
    specs = tuple(
        TensorSpec(f"t{i}", shape, trainable=on)
        for i, (shape, on) in enumerate(zip(SHAPES, trainable, strict=True))
    )
    files = {name: BundleFile("0" * 64, 0) for name in BUNDLE_FILES}
    return Manifest(Name("m"), 1, "mlp", (13,), 2, specs, files, (), TrainSettings(lr=0.1))


def heavy_tailed(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Cauchy values over twelve orders of magnitude."""
    rng = np.random.default_rng(seed)
    return (rng.standard_cauchy(shape) * 10.0 ** rng.integers(-6, 6, shape)).astype("<f4")


def cancelling(count: int, values: int, seed: int) -> list[np.ndarray]:
    """Updates of which each second one takes back most of the one before.

    What is left is so much smaller than what was added that any change of the order of adding shows in
    float32; without the cancelling, rounding to float32 hides it.
    """
    updates = [heavy_tailed((values,), seed + i) for i in range(count)]
    for i in range(1, count, 2):
        large = np.abs(updates[i - 1]) > 1
        updates[i][large] = -updates[i - 1][large]
    return updates


@settings(max_examples=40, deadline=None)
@given(
    trainable=st.lists(st.booleans(), min_size=4, max_size=4).filter(any),
    pairs=st.lists(st.integers(1, 100_000), min_size=1, max_size=15),
    seed=st.integers(0, 2**32),
    block=st.sampled_from([1, 2, 5, 64, 65_536]),
)
def test_every_order_and_block_size_gives_the_same_bytes(
    trainable: list[bool], pairs: list[int], seed: int, block: int
) -> None:
    manifest = model(trainable)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        base, sent = directory / "base", manifest.update_layout()
        layout = manifest.weights_layout()
        base.write_bytes(header_bytes(layout) + np.zeros(layout[-1].end // 4, "<f4").tobytes())
        updates = []
        for i, values in enumerate(cancelling(2 * len(pairs), sent[-1].end // 4, seed)):
            path = directory / f"u{i}"
            path.write_bytes(header_bytes(sent) + values.tobytes())
            updates.append(Update(f"d{i:02}", path, pairs[i // 2]))
        aggregate(base, updates, directory / "in-order", manifest)
        random.Random(seed).shuffle(updates)
        with mock.patch.object(fedavg, "_BLOCK_VALUES", block):
            aggregate(base, updates, directory / "shuffled", manifest)
        assert (directory / "in-order").read_bytes() == (directory / "shuffled").read_bytes()


@settings(max_examples=100, deadline=None)
@given(
    updates=st.integers(1, 60),
    values=st.integers(1, 200) | st.sampled_from([8191, 8192, 8193, 20_000]),
    seed=st.integers(0, 2**32),
)
def test_the_mean_is_the_float64_sum_row_after_row(updates: int, values: int, seed: int) -> None:
    block = heavy_tailed((updates, values + 3), seed)[:, :values]
    weights = np.random.default_rng(seed).integers(1, 100_000, updates).astype(np.float64)
    total = np.zeros(values)
    for row, weight in zip(block, weights, strict=True):
        total = total + row.astype(np.float64) * weight
    np.testing.assert_array_equal(weighted_mean(block, weights), total / weights.sum())

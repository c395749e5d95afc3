"""Aggregation against a plain computation in memory, and against damaged files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedctl.aggregation import fedavg
from fedctl.aggregation.fedavg import Update, aggregate
from fedctl.core.errors import ConfigError, NotMetError
from fedctl_wire.manifest import BUNDLE_FILES, BundleFile, Manifest, TensorSpec
from fedctl_wire.messages import TrainSettings
from fedctl_wire.names import Name
from fedctl_wire.tensors import TensorInfo, header_bytes

SPECS = (
    TensorSpec("frozen", (5,), trainable=False),
    TensorSpec("w1", (31, 17)),
    TensorSpec("b1", (17,)),
    TensorSpec("head", (3, 2), local=True),
    TensorSpec("scalar", ()),
    TensorSpec("w2", (17, 2)),
    TensorSpec("last", (2,), trainable=False),
)


def model(specs: Sequence[TensorSpec] = SPECS) -> Manifest:
    files = {name: BundleFile("0" * 64, 0) for name in BUNDLE_FILES}
    settings = TrainSettings(lr=0.1)
    return Manifest(Name("har"), 1, "mlp", (31,), 2, tuple(specs), files, (), settings)


def write(path: Path, tensors: tuple[TensorInfo, ...], values: np.ndarray) -> Path:
    path.write_bytes(header_bytes(tensors, {"any": "thing"}) + values.astype("<f4").tobytes())
    return path


def heavy_tailed(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_cauchy(count).astype("<f4")


def size(tensors: tuple[TensorInfo, ...]) -> int:
    return tensors[-1].end // 4


def scene(directory: Path, manifest: Manifest, updates: int = 5) -> tuple[Path, list[Update]]:
    base = write(
        directory / "base", manifest.weights_layout(), heavy_tailed(size(manifest.weights_layout()), 99)
    )
    sent = manifest.update_layout()
    made = []
    for i in range(updates):
        path = write(directory / f"update-{i}", sent, heavy_tailed(size(sent), i))
        made.append(Update(f"d{i:03}", path, weight=1 + 13 * i))
    return base, made


def by_hand(base: Path, updates: list[Update]) -> dict[str, np.ndarray]:
    """The same mean, tensor by tensor, with whole models in memory."""
    candidate = load_file(base)
    loaded = [(update.weight, load_file(update.path)) for update in updates]
    for name in loaded[0][1]:
        total = np.zeros(candidate[name].shape)
        for weight, update in loaded:
            total = total + update[name].astype(np.float64) * weight
        mean = total / sum(weight for weight, _ in loaded)
        candidate[name] = (candidate[name] + mean).astype(np.float32)
    return candidate


@pytest.mark.parametrize("block", [1, 7, 64 * 1024])
def test_trainable_shared_tensors_move_and_the_others_stay(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fedavg, "_BLOCK_VALUES", block)
    manifest = model()
    base, updates = scene(tmp_path, manifest)
    aggregate(base, updates, tmp_path / "out", manifest)
    found, wanted = load_file(tmp_path / "out"), by_hand(base, updates)
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, strict=True)
    for name in ("frozen", "head", "last"):
        np.testing.assert_array_equal(found[name], load_file(base)[name])


def test_more_updates_than_files_are_kept_open(tmp_path: Path) -> None:
    manifest = model(SPECS[1:3])
    base, updates = scene(tmp_path, manifest, updates=500)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        aggregate(base, updates, tmp_path / "out", manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    found, wanted = load_file(tmp_path / "out"), by_hand(base, updates)
    np.testing.assert_array_equal(found["w1"], wanted["w1"])


def test_one_update_is_simply_added(tmp_path: Path) -> None:
    manifest = model(SPECS[1:2])
    base, updates = scene(tmp_path, manifest, updates=1)
    aggregate(base, updates, tmp_path / "out", manifest)
    step = load_file(updates[0].path)["w1"].astype(np.float64)
    wanted = (load_file(base)["w1"] + step).astype(np.float32)
    np.testing.assert_array_equal(load_file(tmp_path / "out")["w1"], wanted)


def test_an_aggregate_that_is_not_finite_is_rejected_and_leaves_nothing(tmp_path: Path) -> None:
    manifest = model(SPECS[1:3])
    count = size(manifest.update_layout())
    largest = np.full(count, np.finfo(np.float32).max)
    base = write(tmp_path / "base", manifest.weights_layout(), largest)
    update = Update("d", write(tmp_path / "update", manifest.update_layout(), largest), 1)
    with pytest.raises(NotMetError, match="har@1") as caught:
        aggregate(base, [update], tmp_path / "out", manifest)
    assert caught.value.code == "non_finite"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "update"]


@pytest.mark.parametrize("fault", ["missing", "cut", "cut later", "other model", "directory"])
@pytest.mark.parametrize("whose", ["base", "update-3"])
def test_a_damaged_file_is_named(
    tmp_path: Path, fault: str, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = model()
    base, updates = scene(tmp_path, manifest)
    path = tmp_path / whose
    data = path.read_bytes()
    if fault == "missing":
        path.unlink()
    elif fault == "cut":
        path.write_bytes(data[:-4])
    elif fault == "cut later":  # after its header was read
        monkeypatch.setattr(fedavg, "_spans", lambda m: [os.truncate(path, len(data) - 40), *spans(m)][1:])
    elif fault == "other model":
        write(path, model(SPECS[:2]).weights_layout(), heavy_tailed(5 + 31 * 17, 0))
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(ConfigError, match=whose):
        aggregate(base, updates, tmp_path / "out", manifest)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


spans = fedavg._spans


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    manifest = model([TensorSpec("w", (100_000,))])
    base, updates = scene(tmp_path, manifest, updates=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(ConfigError, match="out"):
            aggregate(base, updates, tmp_path / "out", manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("weights", [[], [0.0], [-1.0], [float("nan")]])
def test_no_mean_of_nothing(tmp_path: Path, weights: list[float]) -> None:
    manifest = model(SPECS[1:3])
    base, updates = scene(tmp_path, manifest, updates=len(weights))
    bad = [Update(u.device, u.path, w) for u, w in zip(updates, weights, strict=True)]
    with pytest.raises(ValueError, match="positive weights"):
        aggregate(base, bad, tmp_path / "out", manifest)


def test_no_device_counts_twice(tmp_path: Path) -> None:
    manifest = model(SPECS[1:3])
    base, updates = scene(tmp_path, manifest, updates=1)
    with pytest.raises(ValueError, match="distinct devices"):
        aggregate(base, updates * 2, tmp_path / "out", manifest)


def test_importing_the_package_does_not_import_numpy() -> None:
    program = (
        "import sys, fedctl.aggregation, fedctl.aggregation.update, fedctl.aggregation.fedavg\n"
        "import fedctl.aggregation.reduce, fedctl.aggregation.scaling\n"
        "sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

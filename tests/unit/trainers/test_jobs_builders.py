"""Jobs with windows, weighted classes and corrected gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from fedctl.models import Convolutions, build
from fedctl_agent.trainers import JobError, run
from fedctl_agent.trainers.tensorfile import read_tensors
from fedctl_wire.manifest import CLASS_WEIGHTS, Preprocessing
from fedctl_wire.messages import TaskKind, TrainSettings
from tests.unit.trainers.jobs import SETTINGS, Bench, write_bundle

WINDOW = Convolutions(channels=(4,), kernel=3, pool=2)


@pytest.fixture
def windows(bench: Bench) -> Bench:
    """Windows of two channels and eight samples; the class is which channel swings more."""
    bench.source(test_fraction=0.25)
    rng = np.random.default_rng(0)
    y = (np.arange(80) % 2).astype(np.uint8)
    x = rng.standard_normal((80, 2, 8)).astype(np.float32) * np.array([3.0, 0.5], np.float32)[:, None]
    x[y == 1] *= np.array([0.3, 3.0], np.float32)[:, None]
    bench.examples(80, x=x, y=y)
    bench.built = build("cnn", input_shape=(2, 8), classes=2, seed=0, window=WINDOW)
    bench.manifest = write_bundle(
        bench.root / "model", bench.built, scaling=Preprocessing((0.0, 0.0), (2.0, 1.0))
    )
    return bench


@pytest.fixture
def weighted(bench: Bench) -> Bench:
    """One example in eight of class 1, and a model whose loss takes class weights."""
    bench.source(test_fraction=0.25)
    x, _ = bench.examples(80)
    bench.examples(80, x=x, y=(np.arange(80) % 8 == 0).astype(np.uint8))
    bench.built = build("logreg", input_shape=(3,), classes=2, seed=0, weighted=True)
    bench.manifest = write_bundle(bench.root / "model", bench.built)
    return bench


def update(bench: Bench, settings: TrainSettings, **changes: Any) -> dict[str, Any]:
    context = bench.context(TaskKind.TRAIN, settings=settings, **changes)
    run(context)
    return safetensors.numpy.load_file(context.output)


def size(delta: dict[str, Any]) -> float:
    return float(np.sqrt(sum(np.square(part).sum() for part in delta.values())))


def test_a_cnn_learns_on_windows_and_is_measured(windows: Bench) -> None:
    settings = dataclasses.replace(SETTINGS, local_epochs=40, momentum=0.9)
    delta = update(windows, settings)
    assert set(delta) == {spec.name for spec in windows.built.tensors}
    trained = {name: array + delta[name] for name, array in windows.built.weights.items()}
    candidate = write_bundle(
        windows.root / "candidate", windows.built, weights=trained, scaling=windows.manifest.preprocessing
    )
    outcome = run(
        windows.context(
            TaskKind.EVALUATE,
            manifest=candidate,
            model_dir=windows.root / "candidate",
            base_dir=windows.root / "model",
            base_manifest=windows.manifest,
        )
    )
    assert outcome.candidate is not None
    assert outcome.base is not None
    assert outcome.candidate.correct >= 19 > outcome.base.correct
    assert outcome.candidate.classes is not None
    assert [row[:2] for row in outcome.candidate.classes] == [(0, 10), (1, 10)]


def test_stats_of_windows_are_by_channel_and_count_examples_for_the_minimum(windows: Bench) -> None:
    x = np.load(windows.data / "a.npz")["x"]
    x[:50, 1] = np.nan  # 10 windows of the training part are left: 80 cells, but 10 examples
    x[0, 0, :3] = np.nan
    windows.examples(80, x=x, y=np.zeros(80, np.uint8))
    context = windows.context(TaskKind.STATS)
    run(context)
    found = read_tensors(context.output)
    np.testing.assert_array_equal(found["count"], [60 * 8 - 3, 0])
    cells = np.nan_to_num(x[:60, 0].astype(np.float64))
    np.testing.assert_allclose([found["sum"][0], found["sumsq"][0]], [cells.sum(), (cells**2).sum()])
    assert found["sum"][1] == found["sumsq"][1] == 0


def test_a_golden_batch_of_windows_passes(windows: Bench) -> None:
    assert run(windows.context(TaskKind.GOLDEN)).examples == 4


def test_a_device_that_has_one_class_and_gaps_trains_without_nan(windows: Bench) -> None:
    x = np.load(windows.data / "a.npz")["x"]
    x[::2] = np.nan
    x[1::2, 0] = 4.0
    windows.examples(80, x=x, y=np.ones(80, np.uint8))
    delta = update(windows, SETTINGS)
    assert all(np.isfinite(part).all() for part in delta.values())


def test_class_weights_stay_on_the_device_and_count_in_the_loss(weighted: Bench) -> None:
    settings = dataclasses.replace(SETTINGS, batch_size=60, local_epochs=1)  # one step, from zeros
    plain = update(weighted, settings)
    assert CLASS_WEIGHTS not in plain
    balanced = update(weighted, dataclasses.replace(settings, balance_classes=True))
    fixed = update(weighted, dataclasses.replace(settings, class_weights=(1.0, 1.0)))
    for name, part in plain.items():
        np.testing.assert_allclose(fixed[name], part, rtol=1e-5, atol=1e-7)
    # A rare class has its bias pulled down, unless both count the same.
    assert plain["dense0.bias"][1] == pytest.approx(-settings.lr * (0.5 - 8 / 60), rel=1e-4)
    assert abs(balanced["dense0.bias"][1]) < 1e-6


def test_balance_is_of_the_training_part_and_equals_the_same_weights_by_hand(weighted: Bench) -> None:
    y = (np.arange(60) % 8 == 0).astype(int)  # of the training part
    by_hand = tuple(60 / (2 * (y == label).sum()) for label in (0, 1))
    balanced = update(weighted, dataclasses.replace(SETTINGS, balance_classes=True))
    fixed = update(weighted, dataclasses.replace(SETTINGS, class_weights=by_hand))
    for name, part in balanced.items():
        np.testing.assert_allclose(fixed[name], part, rtol=1e-5, atol=1e-7)


def test_the_loss_that_is_measured_has_the_plans_weights(weighted: Bench) -> None:
    losses = []
    weights = {"dense0.weight": np.zeros((3, 2), np.float32), "dense0.bias": np.array([2.0, 0.0], np.float32)}
    weights[CLASS_WEIGHTS] = np.ones(2, np.float32)
    weighted.manifest = write_bundle(weighted.root / "model", weighted.built, weights=weights)
    for settings in (SETTINGS, dataclasses.replace(SETTINGS, class_weights=(1.0, 100.0))):
        candidate = run(weighted.context(TaskKind.EVALUATE, settings=settings)).candidate
        assert candidate is not None
        losses.append(candidate.loss_sum / candidate.examples)
    right, wrong = np.log(1 + np.exp(-2.0)), np.log(1 + np.exp(2.0))
    n, rare = 20, sum(i % 8 == 0 for i in range(60, 80))
    assert losses[0] == pytest.approx(((n - rare) * right + rare * wrong) / n, rel=1e-5)
    assert losses[1] == pytest.approx(
        ((n - rare) * right + 100 * rare * wrong) / (n - rare + 100 * rare), rel=1e-5
    )


@pytest.mark.parametrize(
    "changes", [{"balance_classes": True}, {"class_weights": (1.0, 2.0)}, {"class_weights": (1.0,)}]
)
def test_class_weights_for_a_model_that_takes_none_are_refused(bench: Bench, changes: dict[str, Any]) -> None:
    bench.source()
    bench.examples(80)
    for kind in (TaskKind.TRAIN, TaskKind.EVALUATE):
        with pytest.raises(JobError) as caught:
            run(bench.context(kind, settings=dataclasses.replace(SETTINGS, **changes)))
        assert caught.value.code == "settings"


def test_the_proximal_term_keeps_the_update_near_the_base(weighted: Bench) -> None:
    settings = dataclasses.replace(SETTINGS, local_epochs=20)
    free, near = (size(update(weighted, dataclasses.replace(settings, proximal_mu=mu))) for mu in (0.0, 10.0))
    assert near < free / 3


def test_short_gradients_and_decay_make_a_short_update(weighted: Bench) -> None:
    settings = dataclasses.replace(SETTINGS, local_epochs=1)  # two steps
    short = update(weighted, dataclasses.replace(settings, max_gradient_norm=0.01))
    assert 0 < size(short) <= 2 * settings.lr * 0.01 * (1 + 1e-5)
    assert size(update(weighted, settings)) > 10 * size(short)


def test_adam_trains(weighted: Bench) -> None:
    delta = update(weighted, dataclasses.replace(SETTINGS, optimizer="adam", lr=0.01, local_epochs=1))
    assert np.abs(delta["dense0.bias"]).max() == pytest.approx(0.02, rel=0.2)  # two steps of about lr


@pytest.mark.parametrize(
    "changes", [{"weight_decay": -1.0}, {"proximal_mu": -1.0}, {"max_gradient_norm": 0.0}]
)
def test_corrections_out_of_range_are_refused(weighted: Bench, changes: dict[str, Any]) -> None:
    with pytest.raises(JobError) as caught:
        run(weighted.context(TaskKind.TRAIN, settings=dataclasses.replace(SETTINGS, **changes)))
    assert caught.value.code == "settings"

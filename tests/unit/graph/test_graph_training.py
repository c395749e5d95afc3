"""Optimisers, scaling, local training, evaluation and metrics over arrays."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fedctl.models import build
from fedctl_graph import optimisers
from fedctl_graph.errors import GraphError
from fedctl_graph.interpreter import Graph
from fedctl_graph.metrics import HISTOGRAM_BINS, NonFiniteError, Tally, score_histogram
from fedctl_graph.optimisers import Sgd
from fedctl_graph.program import Program
from fedctl_graph.training import (
    BLOCK_EXAMPLES,
    BatchDone,
    Measured,
    Scaling,
    block_rows,
    class_weights,
    evaluate,
    fit,
    prepare,
)

MODEL = build("mlp", input_shape=(3,), hidden=(5,), classes=2, seed=3)
GRAPH = Graph(Program.from_json(json.loads(MODEL.graph), max_nodes=1000))


def data(n: int = 70, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3), np.float32)
    return x, (x[:, 0] > x[:, 1]).astype(np.int64)


def trained(seed: int = 1, epochs: int = 2, **arguments: Any) -> tuple[dict[str, Any], float | None]:
    weights = {name: value.copy() for name, value in MODEL.weights.items()}
    optimiser = Sgd(arguments.pop("lr", 0.1), arguments.pop("momentum", 0.0))
    loss = fit(
        GRAPH,
        weights,
        arguments.pop("data", data()),
        optimiser=optimiser,
        epochs=epochs,
        batch_size=arguments.pop("batch_size", 32),
        seed=seed,
        **arguments,
    )
    return weights, loss


def test_sgd_moves_against_the_gradient_in_place() -> None:
    w = np.array([1.0, 2.0], np.float32)
    parameters = {"w": w}
    Sgd(0.5).step(parameters, {"w": np.array([2.0, -2.0], np.float32)})
    assert parameters["w"] is w
    np.testing.assert_array_equal(w, [0, 3])


def test_momentum_remembers_earlier_gradients() -> None:
    parameters = {"w": np.zeros(1, np.float32)}
    optimiser = Sgd(1.0, 0.5)
    gradient = np.ones(1, np.float32)
    for expected in (-1.0, -2.5, -4.25):  # velocities 1, 1.5, 1.75
        optimiser.step(parameters, {"w": gradient})
        assert parameters["w"][0] == expected
    assert gradient[0] == 1


def test_sgd_leaves_a_parameter_without_gradient_alone() -> None:
    parameters = {"w": np.ones(1), "fixed": np.ones(1)}
    Sgd(0.1).step(parameters, {"w": np.ones(1)})
    assert parameters["fixed"][0] == 1


def test_sgd_refuses_to_broadcast_a_gradient() -> None:
    with pytest.raises(GraphError, match=r"gradient of 'w' has shape \[1\]"):
        Sgd(0.1).step({"w": np.ones(3)}, {"w": np.ones(1)})


@pytest.mark.parametrize(
    ("name", "lr", "momentum"),
    [
        ("lion", 0.1, 0.0),
        ("adam", 0.1, 0.9),
        ("adam", -0.1, 0.0),
        ("sgd", -0.1, 0.0),
        ("sgd", float("inf"), 0.0),
        ("sgd", 0.1, 1.0),
        ("sgd", 0.1, -0.5),
    ],
)
def test_settings_out_of_range_are_refused(name: str, lr: float, momentum: float) -> None:
    with pytest.raises(GraphError):
        optimisers.make(name, lr=lr, momentum=momentum)


def test_scaling_standardises_clips_and_puts_missing_cells_at_the_mean() -> None:
    x = np.array([[1, 10, np.nan], [3, 1e30, 7]], np.float32)
    scaling = Scaling(np.array([1, 10, 5], np.float32), np.array([2, 1e-6, 1], np.float32), clip=8.0)
    prepare(x, scaling)
    np.testing.assert_array_equal(x, [[0, 0, 0], [1, 8, 2]])


def test_without_scaling_only_missing_cells_change() -> None:
    x = np.array([[1, np.nan], [-50, 2]], np.float32)
    prepare(x, None)
    np.testing.assert_array_equal(x, [[1, 0], [-50, 2]])


def test_training_lowers_the_loss() -> None:
    _, first = trained(epochs=1)
    weights, last = trained(epochs=30)
    assert first is not None
    assert last is not None
    assert last < first / 2
    assert any((weights[name] != value).any() for name, value in MODEL.weights.items())


def test_the_same_seed_and_data_give_the_same_bytes() -> None:
    a, b, other = trained(momentum=0.9)[0], trained(momentum=0.9)[0], trained(seed=2, momentum=0.9)[0]
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert any(a[name].tobytes() != other[name].tobytes() for name in a)


def test_every_example_is_used_once_an_epoch_the_last_small_batch_too() -> None:
    seen: list[BatchDone] = []
    trained(epochs=2, on_batch=seen.append)
    assert [(b.epoch, b.examples) for b in seen] == [(1, 32), (1, 64), (1, 70), (2, 32), (2, 64), (2, 70)]


def test_the_loss_of_an_epoch_is_the_mean_over_examples() -> None:
    x, y = data()
    _, loss = trained(epochs=1, lr=0.0)
    expected, _ = GRAPH.loss_and_logits(MODEL.weights, x, y)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_no_epochs_change_nothing() -> None:
    weights, loss = trained(epochs=0)
    assert loss is None
    assert all((weights[name] == value).all() for name, value in MODEL.weights.items())


@pytest.mark.parametrize("bad", [{"epochs": -1}, {"batch_size": 0}, {"data": data(0)}])
def test_training_refuses_what_is_no_training(bad: dict[str, Any]) -> None:
    with pytest.raises(GraphError):
        trained(**bad)


def test_training_that_diverges_is_said_so() -> None:
    with pytest.raises(NonFiniteError, match="epoch"):
        trained(lr=1e30, epochs=5)


def test_evaluation_counts_what_one_big_batch_would() -> None:
    x, y = data(BLOCK_EXAMPLES + 100)
    before = x.copy()
    seen: list[int] = []
    (tally,) = evaluate([Measured(GRAPH, MODEL.weights, None)], (x, y), classes=2, on_batch=seen.append)
    loss, logits = GRAPH.loss_and_logits(MODEL.weights, x, y)
    assert tally.examples == len(y)
    assert tally.loss_sum == pytest.approx(loss * len(y), rel=1e-5)
    assert tally.correct == (logits.argmax(axis=1) == y).sum()
    assert seen == [BLOCK_EXAMPLES, BLOCK_EXAMPLES + 100]
    np.testing.assert_array_equal(x, before)


def test_models_side_by_side_are_scaled_each_by_its_own_rule() -> None:
    x, y = data()
    scaling = Scaling(np.ones(3, np.float32), np.full(3, 2, np.float32), 8.0)
    both = evaluate(
        [Measured(GRAPH, MODEL.weights, None), Measured(GRAPH, MODEL.weights, scaling)], (x, y), classes=2
    )
    alone = evaluate([Measured(GRAPH, MODEL.weights, scaling)], (x, y), classes=2)
    assert both[1].loss_sum == alone[0].loss_sum
    assert both[0].loss_sum != both[1].loss_sum


def test_histogram_puts_scores_in_rising_bins_by_class() -> None:
    margin = np.array([-1e9, 0.0, 0.0, 1e9], np.float32)
    counts = score_histogram(margin, np.array([0, 0, 1, 1]))
    assert counts.shape == (2, HISTOGRAM_BINS)
    assert counts[0].nonzero()[0].tolist() == [0, HISTOGRAM_BINS // 2]
    assert counts[1].nonzero()[0].tolist() == [HISTOGRAM_BINS // 2, HISTOGRAM_BINS - 1]


def test_a_tally_has_a_histogram_only_for_two_classes() -> None:
    three = Tally(3)
    three.add(1.0, np.eye(3, dtype=np.float32), np.array([0, 1, 0]))
    assert (three.examples, three.loss_sum, three.correct, three.histogram) == (3, 3.0, 2, None)
    two = Tally(2)
    two.add(1.0, np.eye(2, dtype=np.float32), np.array([0, 1]))
    assert two.histogram is not None
    assert [row[1:] for row in two.histogram] == [(1, 0), (0, 1)]
    assert two.histogram[0][0] < HISTOGRAM_BINS // 2 < two.histogram[1][0]


@pytest.mark.parametrize(("loss", "logit"), [(float("nan"), 0.0), (1.0, np.inf)])
def test_a_tally_refuses_what_is_not_finite(loss: float, logit: float) -> None:
    with pytest.raises(NonFiniteError):
        Tally(2).add(loss, np.array([[0, logit]], np.float32), np.array([0]))


def test_a_tally_refuses_logits_of_another_shape() -> None:
    with pytest.raises(GraphError, match=r"shape \[1, 2\], not \[N, 3\]"):
        Tally(3).add(1.0, np.zeros((1, 2), np.float32), np.array([0]))


def test_a_window_is_scaled_by_channel() -> None:
    x = np.array([[[1, 3, np.nan], [10, 30, 20]]], np.float32)
    prepare(x, Scaling(np.array([1, 20], np.float32), np.array([2, 10], np.float32), clip=8.0))
    np.testing.assert_array_equal(x, [[[0, 1, 0], [-1, 1, 0]]])


def test_blocks_of_large_examples_hold_fewer_of_them() -> None:
    assert block_rows(np.zeros((9, 64), np.float32)) == BLOCK_EXAMPLES
    assert block_rows(np.zeros((9, 9, 128), np.float32)) == 56
    assert block_rows(np.zeros((1, 1 << 20), np.float32)) == 1


def test_balanced_weights_give_each_class_that_is_there_the_same_sum() -> None:
    y = np.array([0, 0, 0, 0, 0, 0, 2, 2])
    weights = class_weights(y, 4, fixed=None, balanced=True)
    assert weights is not None
    np.testing.assert_allclose(weights, [8 / 12, 1, 2, 1])
    assert weights[y].sum() == pytest.approx(len(y))
    assert class_weights(y, 4, fixed=None, balanced=False) is None
    np.testing.assert_array_equal(class_weights(y, 2, fixed=(1.0, 4.5), balanced=False), [1, 4.5])


@pytest.mark.parametrize(
    ("fixed", "balanced"),
    [((1.0,), False), ((1.0, 0.0), False), ((1.0, float("inf")), False), ((1.0, 1.0), True)],
)
def test_class_weights_that_are_none_are_refused(fixed: tuple[float, ...], *, balanced: bool) -> None:
    with pytest.raises(GraphError, match="2 positive numbers"):
        class_weights(np.zeros(3, np.int64), 2, fixed=fixed, balanced=balanced)


def test_a_tally_counts_by_class_what_was_there_taken_and_right() -> None:
    tally = Tally(4)
    logits = np.eye(4, dtype=np.float32)[[0, 0, 1, 3]]
    tally.add(1.0, logits, np.array([0, 1, 1, 1]))
    tally.add(1.0, logits[:1], np.array([0]))
    assert tally.class_counts == ((0, 2, 3, 2), (1, 3, 1, 1), (3, 0, 1, 0))
    assert tally.correct == 3

"""Logistic regression and the CNN: what they are made of, what they refuse, ties, and weighted classes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fedctl.core.errors import UsageError
from fedctl.models import BuiltModel, Convolutions, build, check
from fedctl_graph.interpreter import Graph
from fedctl_graph.program import Program
from fedctl_wire.manifest import CLASS_WEIGHTS
from tests.unit.graph.programs import numerical

WINDOW = Convolutions(channels=(3, 2), kernel=3, pool=2)


def graph_of(model: BuiltModel, real: Any = np.float64) -> Graph:
    return Graph(Program.from_json(json.loads(model.graph), max_nodes=10_000), real)


def exact(model: BuiltModel) -> dict[str, Any]:
    return {name: model.golden[f"param:{name}"].astype(np.float64) for name in model.weights}


def test_a_logreg_is_one_layer_that_starts_at_zero() -> None:
    model = build("logreg", input_shape=(66,), classes=2, seed=0)
    assert [(spec.name, spec.shape) for spec in model.tensors] == [
        ("dense0.weight", (66, 2)),
        ("dense0.bias", (2,)),
    ]
    assert not any(array.any() for array in model.weights.values())
    assert model.golden["param:dense0.weight"].any()
    assert "Relu" not in model.operators


def test_a_cnn_has_its_convolutions_then_its_dense_layers() -> None:
    model = build("cnn", input_shape=(9, 128), classes=6, seed=0, window=WINDOW, hidden=(7,))
    assert [(spec.name, spec.shape) for spec in model.tensors] == [
        ("conv0.weight", (3, 9, 3)),
        ("conv0.bias", (3,)),
        ("conv1.weight", (2, 3, 3)),
        ("conv1.bias", (2,)),
        ("dense0.weight", (64, 7)),
        ("dense0.bias", (7,)),
        ("dense1.weight", (7, 6)),
        ("dense1.bias", (6,)),
    ]
    weight = model.weights["conv0.weight"]
    assert weight.std() == pytest.approx((2 / 27) ** 0.5, rel=0.2)
    assert model.golden["x"].shape == (4, 9, 128)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [1, 6])
def test_every_entry_of_every_gradient_is_the_slope_of_the_loss(n: int, *, weighted: bool) -> None:
    rng = np.random.default_rng(n)
    y = rng.integers(0, 3, n)
    for builder, shape, more in (
        ("logreg", (5,), {}),
        ("mlp", (5,), {"hidden": (4,)}),
        ("cnn", (2, 11), {"window": WINDOW, "hidden": (4,)}),
        ("cnn", (2, 11), {"window": Convolutions(channels=(3,), kernel=4, pool=3)}),
    ):
        model = build(builder, input_shape=shape, classes=3, seed=2, weighted=weighted, **more)
        graph, parameters = graph_of(model), exact(model)
        x = rng.standard_normal((n, *shape))
        _, _, gradients = graph.loss_and_gradients(parameters, x, y)
        assert list(gradients) == [spec.name for spec in model.tensors if spec.trainable]
        for name, gradient in gradients.items():
            expected = numerical(graph, parameters, x, y, name)
            np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


def test_equal_neighbours_share_the_gradient_of_their_maximum() -> None:
    """A constant signal: every maximum is a tie, and the bias moves each response as much as the others."""
    window = Convolutions(channels=(2,), kernel=1, pool=4)
    model = build("cnn", input_shape=(2, 8), classes=2, seed=0, window=window)
    graph, parameters = graph_of(model), exact(model)
    parameters["conv0.bias"][:] = 5.0  # every ReLU is on
    x, y = np.ones((3, 2, 8)), np.array([0, 1, 1])
    _, _, gradients = graph.loss_and_gradients(parameters, x, y)
    for name in ("conv0.weight", "conv0.bias"):
        expected = numerical(graph, parameters, x, y, name)
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-6, atol=1e-9)


def test_samples_that_fill_no_last_pool_are_left_out_and_get_no_gradient() -> None:
    window = Convolutions(channels=(2,), kernel=1, pool=3)
    model = build("cnn", input_shape=(1, 7), classes=2, seed=0, window=window)
    graph, parameters = graph_of(model, np.float64), exact(model)
    x = np.random.default_rng(0).standard_normal((4, 1, 7))
    loss, _ = graph.loss_and_logits(parameters, x, np.array([0, 1, 0, 1]))
    x[:, :, 6] += 100
    assert graph.loss_and_logits(parameters, x, np.array([0, 1, 0, 1]))[0] == loss


def test_a_weighted_loss_is_the_mean_by_the_classes_weights() -> None:
    model = build("mlp", input_shape=(3,), hidden=(4,), classes=3, seed=0, weighted=True)
    assert model.tensors[-1].name == CLASS_WEIGHTS
    assert (model.tensors[-1].trainable, model.tensors[-1].local) == (False, True)
    np.testing.assert_array_equal(model.weights[CLASS_WEIGHTS], [1, 1, 1])
    graph, parameters = graph_of(model), exact(model)
    parameters[CLASS_WEIGHTS] = np.array([1.0, 2.0, 10.0])
    x, y = np.random.default_rng(0).standard_normal((5, 3)), np.array([0, 1, 2, 2, 1])
    loss, logits, gradients = graph.loss_and_gradients(parameters, x, y)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    weights = parameters[CLASS_WEIGHTS][y]
    assert loss == pytest.approx(-(weights * log_p[np.arange(5), y]).sum() / weights.sum())
    assert CLASS_WEIGHTS not in gradients


def test_equal_weights_are_no_weights() -> None:
    plain, weighted = (
        build("mlp", input_shape=(3,), hidden=(4,), classes=3, seed=0, weighted=weighted)
        for weighted in (False, True)
    )
    x, y = np.random.default_rng(0).standard_normal((5, 3)), np.array([0, 1, 2, 2, 1])
    parameters = exact(plain)
    loss, _, gradients = graph_of(plain).loss_and_gradients(parameters, x, y)
    same, _, others = graph_of(weighted).loss_and_gradients(
        {**parameters, CLASS_WEIGHTS: np.full(3, 7.0)}, x, y
    )
    assert same == pytest.approx(loss)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(others[name], gradient, rtol=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"builder": "logreg", "input_shape": (9,), "window": None, "hidden": (3,)}, "no hidden layer"),
        ({"builder": "mlp", "input_shape": (9,), "hidden": (3,)}, "no channels, kernel or pool"),
        ({"input_shape": (9,)}, r"windows of channels and samples, not shape \[9\]"),
        ({"input_shape": (0, 9)}, "at least one channel"),
        ({"window": None}, "at least one convolution"),
        ({"window": Convolutions(channels=())}, "at least one convolution"),
        ({"window": Convolutions(channels=(2, 0))}, "at least one channel"),
        ({"window": Convolutions(channels=(2,), kernel=0)}, "1 to 255 samples, not 0"),
        ({"window": Convolutions(channels=(2,), kernel=256)}, "1 to 255 samples, not 256"),
        ({"window": Convolutions(channels=(2,), pool=0)}, "1 to 255 samples, not 0"),
        ({"window": Convolutions(channels=(2, 2, 2, 2))}, "nothing is left of 9 samples after 4 pools of 2"),
        ({"hidden": (4, 0)}, "at least one unit"),
        ({"window": Convolutions(channels=(1 << 20, 1 << 20))}, "more than 268435456 parameters"),
    ],
)
def test_numbers_that_make_no_network(changes: dict[str, Any], message: str) -> None:
    arguments = {
        "builder": "cnn",
        "input_shape": (2, 9),
        "classes": 2,
        "seed": 0,
        "window": WINDOW,
        **changes,
    }
    with pytest.raises(UsageError, match=message):
        build(arguments.pop("builder"), **arguments)


def test_a_golden_batch_is_drawn_again_until_rounding_decides_nothing() -> None:
    """Two responses that differ by less than float32 holds: which is the maximum is then a matter of luck."""
    window = Convolutions(channels=(1,), kernel=1, pool=2)
    model = build("cnn", input_shape=(2, 2), classes=2, seed=0, window=window)
    graph, parameters = graph_of(model), exact(model)
    parameters["conv0.weight"][:] = 1.0
    y = np.array([0, 0])
    near, far = np.array([[[1.0, 0.0], [0.0, 1.0 + 1e-7]]] * 2), np.array([[[1.0, 0.0], [0.0, 2.0]]] * 2)
    assert not check._is_steady(graph, parameters, near, y)
    assert check._is_steady(graph, parameters, far, y)

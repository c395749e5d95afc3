"""The operators that move and fold values, against plain NumPy; convolutions against loops."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.models import Convolutions, build
from fedctl_graph.errors import GraphError
from fedctl_graph.interpreter import Graph
from fedctl_graph.program import Program
from tests.unit.graph.programs import numerical

SHAPES = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)


def run(op: str, x: Any, constants: dict[str, list[int]], inputs: list[str], **attributes: Any) -> Any:
    value = {
        "version": 1,
        "opset": 18,
        "inputs": {"x": ["N", *x.shape[1:]], "y": ["N"]},
        "parameters": [],
        "constants": {
            name: {"dtype": "int64", "shape": [len(data)], "data": data} for name, data in constants.items()
        },
        "nodes": [{"op": op, "in": inputs, "out": ["out"], "attrs": attributes}],
        "outputs": {"loss": "out", "logits": "out", "gradients": {}},
    }
    return Graph(Program.from_json(value, max_nodes=10)).logits({}, x)


def values(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(deadline=None)
@given(SHAPES, st.data())
def test_slice_is_a_range_of_positions(shape: tuple[int, ...], data: st.DataObject) -> None:
    x = values(shape)
    axis = data.draw(st.integers(0, len(shape) - 1))
    start, end = (data.draw(st.integers(-7, 7)) for _ in range(2))
    step = data.draw(st.integers(-3, 3).filter(bool))
    constants = {"s": [start], "e": [end], "a": [axis], "d": [step]}
    kept = range(shape[axis])[start:end:step]
    expected = np.take(x, list(kept), axis=axis)
    np.testing.assert_array_equal(run("Slice", x, constants, ["x", "s", "e", "a", "d"]), expected)


@settings(deadline=None)
@given(SHAPES, st.data())
def test_pad_surrounds_with_zeros(shape: tuple[int, ...], data: st.DataObject) -> None:
    x = values(shape)
    before, after = ([data.draw(st.integers(0, 3)) for _ in shape] for _ in range(2))
    expected = np.pad(x, list(zip(before, after, strict=True)))
    np.testing.assert_array_equal(run("Pad", x, {"p": [*before, *after]}, ["x", "p"]), expected)


@settings(deadline=None)
@given(SHAPES, st.integers(1, 4), st.data())
def test_concat_max_and_sum_take_any_number_of_values(
    shape: tuple[int, ...], count: int, data: st.DataObject
) -> None:
    x = values(shape)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    inputs = ["x"] * count
    np.testing.assert_array_equal(run("Concat", x, {}, inputs, axis=axis), np.concatenate([x] * count, axis))
    np.testing.assert_array_equal(run("Max", x, {}, inputs), x)
    np.testing.assert_allclose(run("Sum", x, {}, inputs), count * x, rtol=1e-6)


@settings(deadline=None)
@given(SHAPES, st.data())
def test_reshape_keeps_the_order_of_values(shape: tuple[int, ...], data: st.DataObject) -> None:
    x = values(shape)
    wanted = list(data.draw(st.permutations(shape)))
    hidden = data.draw(st.integers(0, len(wanted) - 1))
    wanted[hidden] = -1
    for place, size in enumerate(shape):
        if wanted[place] == size and data.draw(st.booleans()):
            wanted[place] = 0  # as it is
    result = run("Reshape", x, {"s": wanted}, ["x", "s"])
    np.testing.assert_array_equal(result.reshape(-1), x.reshape(-1))
    assert all(found == size for found, size in zip(result.shape, wanted, strict=True) if size > 0)


def plain_cnn(weights: dict[str, Any], x: Any, layers: int, pool: int) -> Any:
    """Logits by the definition: a sum for each sample and channel, nothing clever."""
    signal = x
    for layer in range(layers):
        weight, bias = weights[f"conv{layer}.weight"], weights[f"conv{layer}.bias"]
        n, _, length = signal.shape
        kernel = weight.shape[2]
        result = np.zeros((n, weight.shape[0], length))
        for i, o, t, k in itertools.product(range(n), range(weight.shape[0]), range(length), range(kernel)):
            place = t + k - (kernel - 1) // 2
            if 0 <= place < length:
                result[i, o, t] += weight[o, :, k] @ signal[i, :, place]
        result += bias[:, None]
        pooled = [result[:, :, t * pool : (t + 1) * pool].max(axis=2) for t in range(length // pool)]
        signal = np.maximum(np.stack(pooled, axis=2), 0)
    return signal.reshape(len(x), -1) @ weights["dense0.weight"] + weights["dense0.bias"]


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(1, 3),
    length=st.integers(4, 9),
    channels=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    kernel=st.integers(1, 5),
    pool=st.integers(1, 2),
    weighted=st.booleans(),
)
def test_any_cnn_is_the_network_that_it_says_with_its_gradients(
    *, inputs: int, length: int, channels: list[int], kernel: int, pool: int, weighted: bool
) -> None:
    window = Convolutions(channels=tuple(channels), kernel=kernel, pool=pool)
    model = build("cnn", input_shape=(inputs, length), classes=3, seed=1, window=window, weighted=weighted)
    graph = Graph(Program.from_json(json.loads(model.graph), max_nodes=10_000), np.float64)
    parameters = {name: model.golden[f"param:{name}"].astype(np.float64) for name in model.weights}
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((4, inputs, length)), np.array([0, 1, 2, 1])
    _, logits, gradients = graph.loss_and_gradients(parameters, x, y)
    np.testing.assert_allclose(logits, plain_cnn(parameters, x, len(channels), pool), rtol=1e-9, atol=1e-12)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, numerical(graph, parameters, x, y, name), rtol=1e-5, atol=1e-7)


SMALL = build("cnn", input_shape=(2, 5), classes=2, seed=0, window=Convolutions(channels=(2, 2), kernel=2))
VALID = json.loads(SMALL.graph)
PLACES = [("constants", name, "data", 0) for name, item in VALID["constants"].items() if item["data"]]
PLACES += [("nodes", number, key, 0) for number, node in enumerate(VALID["nodes"]) for key in ("in", "out")]
NAMES = sorted({node["out"][0] for node in VALID["nodes"]} | set(VALID["constants"]))
HUGE = [1 << 20, 1 << 40, -(1 << 62), 1 << 65]  # nothing between: what fits in memory might be taken


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PLACES), st.sampled_from(NAMES) | st.integers(-9, 9) | st.sampled_from(HUGE))
def test_a_damaged_cnn_runs_or_is_a_graph_error(place: tuple[Any, ...], item: str | int) -> None:
    value = copy.deepcopy(VALID)
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = item
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, 5), np.float32)
    with contextlib.suppress(GraphError):
        Graph(Program.from_json(value, max_nodes=1000)).loss_and_gradients(
            SMALL.weights, x, np.array([0, 1, 1])
        )

"""The interpreter on whole programs: gradients, pruning, buffers, and what it refuses."""

from __future__ import annotations

import json
import weakref
from typing import Any

import numpy as np
import pytest

from fedctl.models import BuiltModel, build
from fedctl_graph.errors import GraphError
from fedctl_graph.interpreter import Graph
from fedctl_graph.program import Program
from tests.unit.graph.programs import numerical


def make(**changes: Any) -> tuple[BuiltModel, Any]:
    arguments = {"input_shape": (5,), "hidden": (7, 4), "classes": 3, "seed": 1, **changes}
    model = build("mlp", **arguments)
    return model, json.loads(model.graph)


def graph_of(value: Any, real: Any = np.float64) -> Graph:
    return Graph(Program.from_json(value, max_nodes=1000), real)


def parameters_of(model: BuiltModel, scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    return {s.name: scale * rng.standard_normal(s.shape) for s in model.tensors}


def batch(kind: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(7)
    n = 1 if kind == "one example" else 6
    x, y = rng.standard_normal((n, 5)), rng.integers(0, 3, n)
    if kind == "one class":
        y[:] = 2
    if kind == "zeros":
        x[:] = 0
    return x, y


@pytest.mark.parametrize("kind", ["random", "one example", "one class", "zeros"])
def test_gradients_are_the_slopes_of_the_loss(kind: str) -> None:
    model, value = make()
    graph, parameters = graph_of(value), parameters_of(model)
    x, y = batch(kind)
    _, _, gradients = graph.loss_and_gradients(parameters, x, y)
    assert list(gradients) == [spec.name for spec in model.tensors]
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, numerical(graph, parameters, x, y, name), rtol=1e-6, atol=1e-8)


def test_dead_units_have_no_gradient_and_the_rest_is_right() -> None:
    model, value = make(hidden=(7,))
    graph, parameters = graph_of(value), parameters_of(model)
    parameters["dense0.bias"][:] = -100  # every ReLU is off
    x, y = batch("random")
    _, _, gradients = graph.loss_and_gradients(parameters, x, y)
    assert not gradients["dense0.weight"].any()
    assert not gradients["dense1.weight"].any()
    expected = numerical(graph, parameters, x, y, "dense1.bias")
    np.testing.assert_allclose(gradients["dense1.bias"], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_huge_logits_do_not_overflow(real: Any) -> None:
    model, value = make()
    parameters = {name: p.astype(real) for name, p in parameters_of(model, scale=1e6).items()}
    x, y = batch("random")
    loss, logits, gradients = graph_of(value, real).loss_and_gradients(parameters, x.astype(real), y)
    assert np.abs(logits).max() > 1e12
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_loss_is_the_mean_cross_entropy_of_the_logits() -> None:
    model, value = make()
    x, y = batch("random")
    loss, logits, _ = graph_of(value).loss_and_gradients(parameters_of(model), x, y)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(p[np.arange(6), y]).mean())


def test_all_ways_to_run_agree_and_keep_the_real_type() -> None:
    model, value = make()
    graph = graph_of(value, np.float32)
    x, y = batch("random")
    x = x.astype(np.float32)
    loss, logits, gradients = graph.loss_and_gradients(model.weights, x, y)
    assert graph.loss_and_logits(model.weights, x, y)[0] == loss
    np.testing.assert_array_equal(graph.logits(model.weights, x), logits)
    assert {array.dtype for array in (logits, *gradients.values())} == {np.dtype(np.float32)}


def test_only_what_an_output_needs_is_run() -> None:
    _, value = make()
    value["nodes"].append({"op": "MatMul", "in": ["x", "x"], "out": ["unused"], "attrs": {}})
    model, _ = make()
    x, y = batch("random")  # x times x does not fit: it would fail if it ran
    graph_of(value).loss_and_gradients(parameters_of(model), x, y)


def test_a_value_is_dropped_after_its_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of 50 values: only the last may be alive at the end, and the input's copy is gone."""
    nodes = [
        {"op": "Neg", "in": [f"v{i}" if i else "x"], "out": [f"v{i + 1}"], "attrs": {}} for i in range(50)
    ]
    value = {
        "version": 1,
        "opset": 18,
        "inputs": {"x": ["N", 2], "y": ["N"]},
        "parameters": [],
        "constants": {},
        "nodes": nodes,
        "outputs": {"loss": "v50", "logits": "v50", "gradients": {}},
    }
    graph = graph_of(value)
    seen: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def watch(step: Any) -> Any:
        def watched(values: list[Any]) -> None:
            step(values)
            seen.extend(weakref.ref(v) for v in values[2:] if v is not None)
            alive.append(len({id(r()) for r in seen if r() is not None}))

        return watched

    routine = graph._infer
    steps = tuple((watch(step), dead) for step, dead in routine.steps)
    monkeypatch.setattr(
        graph, "_infer", type(routine)(steps, routine.nodes, routine.constants, routine.outputs)
    )
    graph.logits({}, np.ones((3, 2)))
    assert max(alive) <= 2


def test_logits_that_need_the_labels_are_refused() -> None:
    _, value = make()
    value["outputs"]["logits"] = "excess"
    with pytest.raises(GraphError, match="logits depend on the labels"):
        graph_of(value)


def test_a_loss_that_is_not_one_number_is_refused() -> None:
    model, value = make()
    value["outputs"]["loss"] = "picked"
    x, y = batch("random")
    with pytest.raises(GraphError, match=r"loss has shape \[6, 3\]"):
        graph_of(value).loss_and_gradients(parameters_of(model), x, y)


def test_a_missing_parameter_is_named() -> None:
    model, value = make()
    parameters = parameters_of(model)
    del parameters["dense1.bias"]
    with pytest.raises(GraphError, match=r"no parameter 'dense1\.bias'"):
        graph_of(value).logits(parameters, batch("random")[0])


def test_features_that_do_not_fit_name_the_node() -> None:
    model, value = make()
    with pytest.raises(GraphError, match="MatMul that makes 'product0' failed"):
        graph_of(value).logits(parameters_of(model), np.zeros((2, 4)))


def test_the_bytes_alive_in_training_are_those_of_arrays_not_of_views() -> None:
    """x, y and parameters are not counted; a transposed view is the array that it shows."""
    nodes = [
        {"op": "Neg", "in": ["x"], "out": ["a"], "attrs": {}},
        {"op": "Transpose", "in": ["a"], "out": ["b"], "attrs": {"perm": [1, 0]}},
        {"op": "Transpose", "in": ["x"], "out": ["c"], "attrs": {"perm": [1, 0]}},
        {"op": "Add", "in": ["b", "c"], "out": ["d"], "attrs": {}},
        {"op": "ReduceSum", "in": ["d"], "out": ["loss"], "attrs": {"keepdims": 0}},
    ]
    value = {
        "version": 1,
        "opset": 18,
        "inputs": {"x": ["N", 2], "y": ["N"]},
        "parameters": [],
        "constants": {},
        "nodes": nodes,
        "outputs": {"loss": "loss", "logits": "d", "gradients": {}},
    }
    graph = graph_of(value, np.float32)
    found = graph.training_bytes({}, np.zeros((3, 2), np.float32), np.zeros(3, np.int64))
    assert found == [24, 24, 24, 48, 28]

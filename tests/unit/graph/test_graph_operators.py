"""Each operator against values computed by hand from the ONNX specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedctl_graph.errors import GraphError
from fedctl_graph.interpreter import Graph
from fedctl_graph.program import Program

X = [[1.0, -2.0, 3.0], [0.0, 4.0, -5.0]]


def constant(value: Any, dtype: str = "float32") -> dict[str, Any]:
    array = np.array(value)
    return {"dtype": dtype, "shape": list(array.shape), "data": array.reshape(-1).tolist()}


def program_json(nodes: list[dict[str, Any]], constants: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "version": 1,
        "opset": 18,
        "inputs": {"x": ["N", 3], "y": ["N"]},
        "parameters": ["w"],
        "constants": constants or {},
        "nodes": nodes,
        "outputs": {"loss": "out", "logits": "out", "gradients": {}},
    }


def program(nodes: list[dict[str, Any]], constants: dict[str, Any] | None = None) -> Program:
    return Program.from_json(program_json(nodes, constants), max_nodes=100)


def node(op: str, inputs: list[str], output: str = "out", **attrs: Any) -> dict[str, Any]:
    return {"op": op, "in": inputs, "out": [output], "attrs": attrs}


def run(
    nodes: list[dict[str, Any]], constants: dict[str, Any] | None = None, *, x: Any = X, w: Any = 2.0
) -> Any:
    graph = Graph(program(nodes, constants))
    return graph.logits({"w": np.array(w, np.float32)}, np.array(x, np.float32))


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("Add", [[3, 0, 5], [2, 6, -3]]),
        ("Sub", [[-1, -4, 1], [-2, 2, -7]]),
        ("Mul", [[2, -4, 6], [0, 8, -10]]),
        ("Div", [[0.5, -1, 1.5], [0, 2, -2.5]]),
    ],
)
def test_arithmetic_broadcasts(op: str, expected: Any) -> None:
    result = run([node(op, ["x", "w"])])
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)


def test_unary_operators() -> None:
    np.testing.assert_array_equal(run([node("Neg", ["x"])]), -np.array(X))
    np.testing.assert_array_equal(run([node("Relu", ["x"])]), [[1, 0, 3], [0, 4, 0]])
    np.testing.assert_allclose(run([node("Exp", ["x"])]), np.exp(X), rtol=1e-6)


def test_relu_lets_a_nan_through() -> None:
    assert np.isnan(run([node("Relu", ["x"])], x=[[np.nan, 1, 2]])[0, 0])


def test_matmul_of_a_matrix_and_a_vector() -> None:
    np.testing.assert_array_equal(run([node("MatMul", ["x", "w"])], w=[1, 2, 3]), [6, -7])


def test_greater_is_strict_and_cast_makes_it_zero_or_one() -> None:
    nodes = [node("Greater", ["x", "zero"], "on"), node("Cast", ["on"], to=1)]
    np.testing.assert_array_equal(run(nodes, {"zero": constant(0.0)}), [[1, 0, 1], [0, 1, 0]])


def test_transpose_reverses_unless_told_otherwise() -> None:
    np.testing.assert_array_equal(run([node("Transpose", ["x"])]), np.array(X).T)
    np.testing.assert_array_equal(run([node("Transpose", ["x"], perm=[0, 1])]), X)


def test_reduce_sum_takes_axes_as_a_constant_and_keeps_dimensions_by_default() -> None:
    axes = {"axes": constant([1], "int64")}
    np.testing.assert_array_equal(run([node("ReduceSum", ["x", "axes"])], axes), [[2], [-1]])
    np.testing.assert_array_equal(run([node("ReduceSum", ["x", "axes"], keepdims=0)], axes), [2, -1])
    np.testing.assert_array_equal(run([node("ReduceSum", ["x"])]), [[1]])


def test_reduce_mean_over_one_axis_and_over_all() -> None:
    axes = {"axes": constant([0], "int64")}
    np.testing.assert_array_equal(run([node("ReduceMean", ["x", "axes"], keepdims=0)], axes), [0.5, 1, -1])
    assert run([node("ReduceMean", ["x"], keepdims=0)]) == pytest.approx(1 / 6)


def test_log_softmax_of_huge_logits_does_not_overflow() -> None:
    result = run([node("LogSoftmax", ["x"])], x=[[1e30, 0, -1e30], [0, 0, 0]])
    np.testing.assert_allclose(result, [[0, -1e30, -2e30], [-np.log(3)] * 3], rtol=1e-6)


def test_log_softmax_along_another_axis() -> None:
    result = run([node("LogSoftmax", ["x"], axis=0)], x=[[0, 0, 0], [0, np.log(3), 0]])
    np.testing.assert_allclose(np.exp(result), [[0.5, 0.25, 0.5], [0.5, 0.75, 0.5]], rtol=1e-6)


def test_shape_is_int64_and_casts_to_float() -> None:
    np.testing.assert_array_equal(run([node("Shape", ["x"], "s"), node("Cast", ["s"], to=1)]), [2, 3])


def one_hot(labels: list[int]) -> Any:
    value = program_json(
        [
            node("OneHot", ["y", "depth", "values"], "hot"),
            node("Mul", ["hot", "w"]),
            node("ReduceSum", ["x"], "loss", keepdims=0),
        ],
        {"depth": constant(3, "int64"), "values": constant([-1.0, 1.0])},
    )
    value["outputs"] = {"loss": "loss", "logits": "x", "gradients": {"w": "out"}}
    graph = Graph(Program.from_json(value, max_nodes=100))
    x = np.zeros((len(labels), 3), np.float32)
    return graph.loss_and_gradients({"w": np.float32(1)}, x, np.array(labels))[2]["w"]


def test_one_hot_has_off_and_on_values_and_counts_negative_indices_from_the_end() -> None:
    np.testing.assert_array_equal(one_hot([0, 2, -1]), [[1, -1, -1], [-1, -1, 1], [-1, -1, 1]])


@pytest.mark.parametrize("label", [3, -4])
def test_one_hot_refuses_a_label_that_is_no_class(label: int) -> None:
    with pytest.raises(GraphError, match="OneHot that makes 'hot' failed"):
        one_hot([label])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (node("Cast", ["x"], to=7), "only to FLOAT"),
        (node("Cast", ["x"]), "to is not an integer"),
        (node("Transpose", ["x"], perm=[0, 0]), "not a permutation"),
        (node("Transpose", ["x"], perm="10"), "not a list of integers"),
        (node("Transpose", ["x"], perm=["1", "0"]), "not a list of integers"),
        (node("ReduceSum", ["x"], keepdims=2), "keepdims is 2"),
        (node("ReduceSum", ["x"], keepdims=True), "keepdims is not an integer"),
        (node("ReduceSum", ["x", "number"]), "not a list of integers"),
        (node("ReduceSum", ["x", "w"]), "must be a constant"),
        (node("ReduceSum", ["x"], noop_with_empty_axes=1), "does not take the attribute"),
        (node("LogSoftmax", ["x"], axis=1.0), "axis is not an integer"),
        (node("OneHot", ["y", "depth", "pair"], axis=0), "last axis"),
        (node("OneHot", ["y", "number", "pair"]), "depth is not an integer"),
        (node("OneHot", ["y", "depth", "number"]), "off and on"),
        (node("OneHot", ["y", "huge", "pair"]), "its depth is 1000000"),
        (node("OneHot", ["x", "depth", "pair"]), "does not take 'x', which is float32"),
        (node("Add", ["x", "y"]), "does not take 'y', which is int64"),
        (node("Add", ["x"]), "1 inputs"),
        (node("Relu", ["x", "w"]), "2 inputs"),
        (node("If", ["x"]), "'If' is not allowed"),
        (node("Concat", ["x"]), "axis is not an integer"),
        (node("Concat", ["x"] * 257, axis=0), "257 inputs"),
        (node("Max", []), "0 inputs"),
        (node("Max", ["x", "y"]), "does not take 'y', which is int64"),
        (node("Pad", ["x", "one"]), "not pairs of counts"),
        (node("Pad", ["x", "back"]), "not pairs of counts"),
        (node("Pad", ["x", "far"]), "not pairs of counts up to 4096"),
        (node("Pad", ["x", "pads"], mode="reflect"), "mode is not 'constant'"),
        (node("Pad", ["x", "w"]), "must be a constant"),
        (node("Reshape", ["x", "two_unknown"]), "at most one -1"),
        (node("Reshape", ["x", "back"]), "at most one -1"),
        (node("Reshape", ["x", "depth"]), "not a list of integers"),
        (node("Slice", ["x", "one", "pads"]), "differ in number"),
        (node("Slice", ["x", "one", "one", "back"]), "differ in number"),
        (node("Slice", ["x", "one", "one", "minus"]), "an axis is negative"),
        (node("Slice", ["x", "pads", "pads", "pads", "pads"]), "named twice, or a step is 0"),
    ],
)
def test_what_an_operator_refuses(bad: dict[str, Any], message: str) -> None:
    constants = {
        "number": constant(1.5),
        "pair": constant([0.0, 1.0]),
        "depth": constant(3, "int64"),
        "huge": constant(1_000_000, "int64"),
        "one": constant([1], "int64"),
        "minus": constant([-1], "int64"),
        "pads": constant([0, 0, 1, 1], "int64"),
        "back": constant([1, -2], "int64"),
        "far": constant([0, 1 << 40], "int64"),
        "two_unknown": constant([-1, -1], "int64"),
    }
    with pytest.raises(GraphError, match=message):
        program([bad], constants)


@pytest.mark.parametrize("axis", [2, -3, 1 << 70])
def test_an_axis_that_is_not_there_names_the_node(axis: int) -> None:
    with pytest.raises(GraphError, match="LogSoftmax that makes 'out' failed"):
        run([node("LogSoftmax", ["x"], axis=axis)])


def test_shapes_that_do_not_fit_name_the_node() -> None:
    with pytest.raises(GraphError, match="MatMul that makes 'out' failed"):
        run([node("MatMul", ["x", "w"])], w=[1, 2])


def test_equal_compares_and_pad_adds_zeros_where_the_constant_says() -> None:
    nodes = [node("Equal", ["x", "w"], "same"), node("Cast", ["same"], to=1)]
    np.testing.assert_array_equal(run(nodes, w=4.0), [[0, 0, 0], [0, 1, 0]])
    pads = {"pads": constant([0, 1, 0, 2], "int64")}
    padded = run([node("Pad", ["x", "pads"])], pads)
    np.testing.assert_array_equal(padded, [[0, 1, -2, 3, 0, 0], [0, 0, 4, -5, 0, 0]])


def test_max_lets_a_nan_through() -> None:
    assert np.isnan(run([node("Max", ["x", "w"])], x=[[np.nan, 1, 2]])[0, 0])


@pytest.mark.parametrize(
    ("op", "constants", "attributes"),
    [
        ("Pad", {"c": constant([1, 1], "int64")}, {}),
        ("Reshape", {"c": constant([5, -1], "int64")}, {}),
        ("Reshape", {"c": constant([0, 0, 0], "int64")}, {}),
    ],
)
def test_what_does_not_fit_the_value_names_the_node(
    op: str, constants: dict[str, Any], attributes: dict[str, Any]
) -> None:
    with pytest.raises(GraphError, match=f"{op} that makes 'out' failed"):
        run([node(op, ["x", "c"], **attributes)], constants)

"""The strict loader: one valid program, and every way to break it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from fedctl.models import build
from fedctl_graph.errors import GraphError
from fedctl_graph.program import Program

VALID = json.loads(build("mlp", input_shape=(3,), hidden=(4,), classes=2, seed=0).graph)


def load(value: Any, max_nodes: int = 1000) -> Program:
    return Program.from_json(value, max_nodes=max_nodes)


def changed(change: Callable[[Any], Any]) -> Any:
    value = copy.deepcopy(VALID)
    change(value)
    return value


def test_a_built_program_loads() -> None:
    program = load(VALID)
    assert program.input_shape == (3,)
    assert program.parameters == ("dense0.weight", "dense0.bias", "dense1.weight", "dense1.bias")
    assert set(program.gradients) == set(program.parameters)
    assert program.operators[:3] == ("Add", "Cast", "Div")


def put(path: tuple[Any, ...], item: Any) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = item

    return change


def node(**fields: Any) -> dict[str, Any]:
    return {"op": "Relu", "in": ["x"], "out": ["new"], "attrs": {}, **fields}


BROKEN: list[tuple[str, Callable[[Any], Any], str]] = [
    ("missing field", lambda v: v.pop("nodes"), "lacks 'nodes'"),
    ("unknown field", put(("extra",), 1), "unknown field 'extra'"),
    ("other version", put(("version",), 2), "not of version 1"),
    ("other opset", put(("opset",), 17), "opset 18"),
    ("version of another type", put(("version",), True), "not of type int"),
    ("nodes of another type", put(("nodes",), {}), "not of type list"),
    ("third input", put(("inputs", "z"), []), "unknown field 'z'"),
    ("labels of another shape", put(("inputs", "y"), ["N", 1]), "inputs are not"),
    ("no batch", put(("inputs", "x"), [3, 3]), "inputs are not"),
    ("scalar input", put(("inputs", "x"), ["N"]), "inputs are not"),
    ("input of rank 9", put(("inputs", "x"), ["N", *[1] * 8]), "inputs are not"),
    ("negative dimension", put(("inputs", "x"), ["N", -3]), "not a dimension"),
    ("name that is no string", put(("parameters", 0), 7), "not a name"),
    ("name that is empty", put(("parameters", 0), ""), "not a name"),
    ("giant name", put(("parameters", 0), "w" * 201), "not a name"),
    ("parameter twice", put(("parameters", 1), "dense0.weight"), "defined twice"),
    ("too many parameters", put(("parameters",), ["w"] * 4097), "more than 4096"),
    ("parameter named x", put(("parameters", 0), "x"), "'x' is defined twice"),
    (
        "constant named as a parameter",
        lambda v: v["constants"].update({"dense0.bias": v["constants"]["zero"]}),
        "twice",
    ),
    ("constant of float64", put(("constants", "zero", "dtype"), "float64"), "unsupported dtype"),
    ("constant of another size", put(("constants", "zero", "data"), [0.0, 0.0]), "its shape says 1"),
    ("constant that is text", put(("constants", "zero", "data"), ["0"]), "numbers of float32"),
    ("constant that is true", put(("constants", "zero", "data"), [True]), "numbers of float32"),
    ("constant of fractions", put(("constants", "classes", "data"), [2.5]), "numbers of int64"),
    ("constant beyond int64", put(("constants", "classes", "data"), [1 << 63]), "too large"),
    (
        "giant constant",
        put(("constants", "zero"), {"dtype": "float32", "shape": [4097], "data": [0.0] * 4097}),
        "4096",
    ),
    ("giant shape", put(("constants", "zero", "shape"), [1 << 30, 1 << 30]), "its shape says"),
    (
        "too many constants",
        lambda v: v["constants"].update({f"c{i}": v["constants"]["zero"] for i in range(1000)}),
        "more than 1000",
    ),
    ("unknown operator", lambda v: v["nodes"].append(node(op="Loop")), "'Loop' is not allowed"),
    (
        "unknown attribute",
        lambda v: v["nodes"].append(node(attrs={"a": 1})),
        "does not take the attribute 'a'",
    ),
    ("node with a subgraph", lambda v: v["nodes"].append(node(body={})), "unknown field 'body'"),
    ("two outputs", lambda v: v["nodes"].append(node(out=["a", "b"])), "2 outputs"),
    ("no output", lambda v: v["nodes"].append(node(out=[])), "0 outputs"),
    ("undefined input", lambda v: v["nodes"].append(node(**{"in": ["nowhere"]})), "uses 'nowhere' before"),
    ("cycle", lambda v: v["nodes"].append(node(**{"in": ["new"]})), "uses 'new' before"),
    ("backwards", lambda v: v["nodes"].reverse(), "before it is defined"),
    ("output defined twice", lambda v: v["nodes"].append(node(out=["loss"])), "'loss' is defined twice"),
    ("node that redefines x", lambda v: v["nodes"].append(node(out=["x"])), "'x' is defined twice"),
    ("loss from nowhere", put(("outputs", "loss"), "nowhere"), "'nowhere' is not a float value"),
    ("loss that is no float", put(("outputs", "loss"), "batch"), "'batch' is not a float value"),
    ("gradient of nothing", put(("outputs", "gradients", "nothing"), "loss"), "no parameter"),
    ("gradient from nowhere", put(("outputs", "gradients", "dense0.bias"), "nowhere"), "not a float value"),
    ("gradient that is no name", put(("outputs", "gradients", "dense0.bias"), [1]), "not a float value"),
]


@pytest.mark.parametrize(
    ("change", "message"), [(c, m) for _, c, m in BROKEN], ids=[name for name, _, _ in BROKEN]
)
def test_a_broken_program_is_refused(change: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        load(changed(change))


@pytest.mark.parametrize("value", [None, [], "program", 1])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(GraphError, match="not an object"):
        load(value)


def test_a_giant_program_is_refused() -> None:
    with pytest.raises(GraphError, match="nodes, more than 5"):
        load(VALID, max_nodes=5)

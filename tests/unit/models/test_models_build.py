"""The builder: what it makes, what it refuses, and that a wrong gradient cannot leave it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from fedctl.core.errors import FedctlError, UsageError
from fedctl.models import BUILDERS, BuiltModel, build, check
from fedctl_graph.interpreter import Graph
from fedctl_graph.program import Program


def make(**changes: Any) -> BuiltModel:
    arguments: dict[str, Any] = {"input_shape": (9,), "hidden": (16, 5), "classes": 3, "seed": 0, **changes}
    return build(arguments.pop("builder", "mlp"), **arguments)


def test_an_mlp_has_a_weight_and_a_bias_a_layer_in_order() -> None:
    model = make()
    assert [(s.name, s.shape) for s in model.tensors] == [
        ("dense0.weight", (9, 16)),
        ("dense0.bias", (16,)),
        ("dense1.weight", (16, 5)),
        ("dense1.bias", (5,)),
        ("dense2.weight", (5, 3)),
        ("dense2.bias", (3,)),
    ]
    assert all(spec.trainable and not spec.local for spec in model.tensors)
    assert {name: w.shape for name, w in model.weights.items()} == {s.name: s.shape for s in model.tensors}
    assert (model.builder, model.input_shape, model.classes) == ("mlp", (9,), 3)
    assert BUILDERS == ("logreg", "mlp", "cnn")


def test_first_weights_are_he_normal_and_biases_zero() -> None:
    weights = make(input_shape=(400,), hidden=(300,)).weights
    assert weights["dense0.weight"].dtype == np.float32
    assert weights["dense0.weight"].std() == pytest.approx((2 / 400) ** 0.5, rel=0.01)
    assert not weights["dense0.bias"].any()


def bytes_of(model: BuiltModel) -> tuple[Any, ...]:
    arrays = [*model.weights.items(), *model.golden.items()]
    return model.graph, [(name, array.tobytes()) for name, array in arrays]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights() -> None:
    assert bytes_of(make()) == bytes_of(make())
    assert bytes_of(make())[1] != bytes_of(make(seed=1))[1]
    assert make().graph == make(seed=1).graph


def test_the_graph_loads_and_names_its_operators() -> None:
    model = make()
    program = Program.from_json(json.loads(model.graph), max_nodes=1000)
    assert program.parameters == tuple(spec.name for spec in model.tensors)
    assert program.operators == model.operators


def test_the_golden_batch_has_its_own_weights_and_the_answers_to_them() -> None:
    model = make()
    golden = model.golden
    graph = Graph(Program.from_json(json.loads(model.graph), max_nodes=1000))
    parameters = {spec.name: golden[f"param:{spec.name}"] for spec in model.tensors}
    assert all((parameters[name] != w).any() for name, w in model.weights.items())
    loss, logits, gradients = graph.loss_and_gradients(parameters, golden["x"], golden["y"])
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, golden[f"grad:{name}"], rtol=1e-4, atol=1e-5)
    assert golden["y"].dtype == np.int64
    assert {a.dtype for name, a in golden.items() if name != "y"} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"builder": "transformer"}, "no builder 'transformer'"),
        ({"input_shape": (9, 128)}, r"flat input, not shape \[9, 128\]"),
        ({"input_shape": ()}, "flat input"),
        ({"input_shape": (0,)}, "at least one unit"),
        ({"hidden": ()}, "at least one hidden layer"),
        ({"hidden": (4, 0)}, "at least one unit"),
        ({"classes": 1}, "2 to 1000 classes, not 1"),
        ({"classes": 1001}, "not 1001"),
        ({"input_shape": (1 << 20,), "hidden": (1 << 20,)}, "more than 268435456 parameters"),
        ({"hidden": (1,) * 3000}, "more than 4096 tensors"),
    ],
)
def test_numbers_that_make_no_model(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**changes)


def broken(op: str, output: str) -> Any:
    """A graph whose value `output` comes from another operator: well-formed, but wrong."""
    value = json.loads(make().graph)
    (node,) = [node for node in value["nodes"] if node["out"] == [output]]
    node["op"] = op
    return value


def prove(value: Any) -> None:
    model = make()
    weights = {spec.name: model.golden[f"param:{spec.name}"] for spec in model.tensors}
    check.golden_batch(value, weights, classes=3, examples=8, rng=np.random.default_rng(0))


def test_the_proof_passes_an_honest_graph() -> None:
    prove(json.loads(make().graph))


@pytest.mark.parametrize(
    ("op", "output"), [("Add", "excess"), ("Mul", "d_logits"), ("Add", "d_sum0"), ("Sub", "d_sum1")]
)
def test_a_wrong_backward_part_is_found(op: str, output: str) -> None:
    with pytest.raises(FedctlError, match=r"gradient of 'dense.*' is wrong by"):
        prove(broken(op, output))


def test_a_gradient_of_another_shape_is_found() -> None:
    value = json.loads(make().graph)
    value["outputs"]["gradients"]["dense0.bias"] = "loss"
    with pytest.raises(FedctlError, match=r"gradient of 'dense0.bias' has shape \[\]"):
        prove(value)


def test_a_gradient_that_is_not_finite_is_found() -> None:
    value = json.loads(make().graph)
    value["nodes"].append({"op": "Div", "in": ["grad:dense0.bias", "zero"], "out": ["bad"], "attrs": {}})
    value["outputs"]["gradients"]["dense0.bias"] = "bad"
    with pytest.raises(FedctlError, match=r"'dense0\.bias' is not finite"):
        prove(value)


def test_importing_the_package_and_what_commands_need_of_it_loads_no_numpy() -> None:
    code = (
        "import fedctl.models, fedctl.models.metrics, fedctl.models.local, "
        "fedctl_agent.trainers, fedctl_agent.sources, sys; sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

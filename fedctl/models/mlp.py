"""The builder `mlp`: dense layers with ReLU, a softmax over classes, mean cross-entropy.

The graph holds its own backward part, written out by hand below; `check.py` compares it with
numerical gradients before a model leaves this module.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedctl.core.errors import UsageError
from fedctl.models.built import BuiltModel
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "mlp"
MAX_CLASSES = 1000
GOLDEN_EXAMPLES = 8


def build(*, input_shape: tuple[int, ...], hidden: tuple[int, ...], classes: int, seed: int) -> BuiltModel:
    """Build an MLP with He-initialised weights and zero biases; see `fedctl.models.build`.

    Raises:
        UsageError: When the numbers make no model that a device would take.
    """
    import numpy as np

    from fedctl.models import check

    widths = _widths(input_shape, hidden, classes)
    tensors = _tensors(widths)
    program = _program(widths)
    first, golden = np.random.SeedSequence(seed).spawn(2)
    return BuiltModel(
        builder=NAME,
        input_shape=input_shape,
        classes=classes,
        graph=json.dumps(program, separators=(",", ":")).encode(),
        operators=tuple(sorted({node["op"] for node in program["nodes"]})),
        tensors=tensors,
        weights=_weights(tensors, np.random.default_rng(first), biases=False),
        golden=check.golden_batch(
            program,
            _weights(tensors, np.random.default_rng(golden), biases=True),
            classes=classes,
            examples=GOLDEN_EXAMPLES,
            rng=np.random.default_rng(golden.spawn(1)[0]),
        ),
    )


def _widths(input_shape: tuple[int, ...], hidden: tuple[int, ...], classes: int) -> tuple[int, ...]:
    if len(input_shape) != 1:
        raise UsageError(f"an mlp takes a flat input, not shape {list(input_shape)}")
    if not 2 <= classes <= MAX_CLASSES:
        raise UsageError(f"an mlp has 2 to {MAX_CLASSES} classes, not {classes}")
    if not hidden:
        raise UsageError("an mlp needs at least one hidden layer", hint="for example --hidden 64")
    widths = (*input_shape, *hidden, classes)
    if min(widths) < 1:
        raise UsageError("every layer of an mlp has at least one unit")
    if sum((i + 1) * o for i, o in itertools.pairwise(widths)) > LIMITS.parameters:
        raise UsageError(f"the model would have more than {LIMITS.parameters} parameters")
    if 2 * len(widths) > LIMITS.tensors:
        raise UsageError(f"the model would have more than {LIMITS.tensors} tensors")
    return widths


def _tensors(widths: Sequence[int]) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        specs.append(TensorSpec(f"dense{layer}.weight", (inputs, outputs)))
        specs.append(TensorSpec(f"dense{layer}.bias", (outputs,)))
    return tuple(specs)


def _weights(
    tensors: Sequence[TensorSpec], rng: np.random.Generator, *, biases: bool
) -> dict[str, NDArray[np.float32]]:
    """Normal weights of variance 2 / inputs (He et al. 2015, arXiv:1502.01852); biases 0 unless asked."""
    import numpy as np

    weights: dict[str, NDArray[np.float32]] = {}
    for spec in tensors:
        if len(spec.shape) == 2:
            scale = np.float32(math.sqrt(2 / spec.shape[0]))
            weights[spec.name] = rng.standard_normal(spec.shape, np.float32) * scale
        elif biases:
            weights[spec.name] = rng.standard_normal(spec.shape, np.float32)
        else:
            weights[spec.name] = np.zeros(spec.shape, np.float32)
    return weights


def _program(widths: Sequence[int]) -> dict[str, Any]:
    layers = len(widths) - 1
    parameters = [spec.name for spec in _tensors(widths)]
    return {
        "version": 1,
        "opset": 18,
        "inputs": {"x": ["N", widths[0]], "y": ["N"]},
        "parameters": parameters,
        "constants": {
            "zero": {"dtype": "float32", "shape": [], "data": [0.0]},
            "off_on": {"dtype": "float32", "shape": [2], "data": [0.0, 1.0]},
            "classes": {"dtype": "int64", "shape": [], "data": [widths[-1]]},
            "rows": {"dtype": "int64", "shape": [1], "data": [0]},
            "columns": {"dtype": "int64", "shape": [1], "data": [1]},
        },
        "nodes": [*_forward(layers), *_loss(), *_backward(layers)],
        "outputs": {
            "loss": "loss",
            "logits": "logits",
            "gradients": {name: f"grad:{name}" for name in parameters},
        },
    }


def _node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> dict[str, Any]:
    return {"op": op, "in": list(inputs), "out": [output], "attrs": attributes}


def _forward(layers: int) -> list[dict[str, Any]]:
    nodes = []
    for layer in range(layers):
        source = "x" if layer == 0 else f"active{layer - 1}"
        last = layer == layers - 1
        nodes += [
            _node("MatMul", (source, f"dense{layer}.weight"), f"product{layer}"),
            _node("Add", (f"product{layer}", f"dense{layer}.bias"), "logits" if last else f"sum{layer}"),
        ]
        if not last:
            nodes.append(_node("Relu", (f"sum{layer}",), f"active{layer}"))
    return nodes


def _loss() -> list[dict[str, Any]]:
    """Mean cross-entropy, and its gradient by the logits: (softmax - one-hot) / examples."""
    return [
        _node("LogSoftmax", ("logits",), "log_p", axis=-1),
        _node("OneHot", ("y", "classes", "off_on"), "target", axis=-1),
        _node("Mul", ("log_p", "target"), "picked"),
        _node("ReduceSum", ("picked", "columns"), "log_likelihood", keepdims=0),
        _node("ReduceMean", ("log_likelihood", "rows"), "mean_log_likelihood", keepdims=0),
        _node("Neg", ("mean_log_likelihood",), "loss"),
        _node("Exp", ("log_p",), "p"),
        _node("Sub", ("p", "target"), "excess"),
        _node("Shape", ("y",), "batch"),
        _node("Cast", ("batch",), "examples", to=1),
        _node("Div", ("excess", "examples"), "d_logits"),
    ]


def _backward(layers: int) -> list[dict[str, Any]]:
    nodes = []
    for layer in reversed(range(layers)):
        source = "x" if layer == 0 else f"active{layer - 1}"
        delta = "d_logits" if layer == layers - 1 else f"d_sum{layer}"
        nodes += [
            _node("Transpose", (source,), f"{source}_t", perm=[1, 0]),
            _node("MatMul", (f"{source}_t", delta), f"grad:dense{layer}.weight"),
            _node("ReduceSum", (delta, "rows"), f"grad:dense{layer}.bias", keepdims=0),
        ]
        if layer > 0:
            below = layer - 1
            nodes += [
                _node("Transpose", (f"dense{layer}.weight",), f"weight{layer}_t", perm=[1, 0]),
                _node("MatMul", (delta, f"weight{layer}_t"), f"d_active{below}"),
                _node("Greater", (f"sum{below}", "zero"), f"on{below}"),
                _node("Cast", (f"on{below}",), f"slope{below}", to=1),
                _node("Mul", (f"d_active{below}", f"slope{below}"), f"d_sum{below}"),
            ]
    return nodes

"""A `train.json` while it is written, and the constants and parameters that all builders share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fedctl_graph.operators import OPSET
from fedctl_graph.program import VERSION
from fedctl_wire.manifest import CLASS_WEIGHTS, TensorSpec


class Draft:
    """Nodes in the order in which they run. Values are named by whoever adds them, each once."""

    def __init__(self, input_shape: Sequence[int]) -> None:
        self._input_shape = list(input_shape)
        self._nodes: list[dict[str, Any]] = []
        self._constants: dict[str, dict[str, Any]] = {
            "zero": _constant("float32", [], [0.0]),
            "off_on": _constant("float32", [2], [0.0, 1.0]),
            "rows": _constant("int64", [1], [0]),
            "columns": _constant("int64", [1], [1]),
        }

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add an operator; returns the name of its value."""
        self._nodes.append({"op": op, "in": list(inputs), "out": [output], "attrs": attributes})
        return output

    def number(self, name: str, value: int) -> str:
        """A whole number as a constant; returns its name."""
        self._constants[name] = _constant("int64", [], [value])
        return name

    def integers(self, values: Sequence[int]) -> str:
        """A list of whole numbers as a constant, named by what it holds; returns the name."""
        name = f"[{','.join(map(str, values))}]"
        self._constants[name] = _constant("int64", [len(values)], list(values))
        return name

    def reshape(self, source: str, shape: Sequence[int], output: str) -> str:
        """Add a Reshape; -1 in `shape` stands for what has to do with the size of the batch."""
        return self.node("Reshape", (source, self.integers(shape)), output)

    def cut(self, source: str, axis: int, span: tuple[int, int], output: str) -> str:
        """Add a Slice of one axis, from `span[0]` to before `span[1]`."""
        bounds = (self.integers([span[0]]), self.integers([span[1]]), self.integers([axis]))
        return self.node("Slice", (source, *bounds), output)

    def program(self, tensors: Sequence[TensorSpec]) -> dict[str, Any]:
        """The whole program; the gradient of each trainable parameter is named `grad:PARAMETER`."""
        trainable = [spec.name for spec in tensors if spec.trainable]
        return {
            "version": VERSION,
            "opset": OPSET,
            "inputs": {"x": ["N", *self._input_shape], "y": ["N"]},
            "parameters": [spec.name for spec in tensors],
            "constants": self._constants,
            "nodes": self._nodes,
            "outputs": {
                "loss": "loss",
                "logits": "logits",
                "gradients": {name: f"grad:{name}" for name in trainable},
            },
        }


def graph_bytes(program: dict[str, Any]) -> bytes:
    """The bytes of `train.json`."""
    return json.dumps(program, separators=(",", ":")).encode()


def class_weights(classes: int) -> TensorSpec:
    """The parameter that holds the weights of the classes: set on the device, never trained, never sent."""
    return TensorSpec(CLASS_WEIGHTS, (classes,), trainable=False, local=True)


def _constant(dtype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data": data}

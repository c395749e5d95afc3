"""The program in `train.json`: standard ONNX operators, backward part included, loaded strictly.

```
{"version": 1, "opset": 18,
 "inputs": {"x": ["N", 237], "y": ["N"]},
 "parameters": ["dense0.weight", ...],
 "constants": {"zero": {"dtype": "float32", "shape": [], "data": [0.0]}, ...},
 "nodes": [{"op": "MatMul", "in": ["x", "dense0.weight"], "out": ["a0"], "attrs": {}}, ...],
 "outputs": {"loss": "loss", "logits": "logits", "gradients": {"dense0.weight": "g0", ...}}}
```
`x` is float32, `y` int64, "N" the examples of a batch. Every value has one name and is defined once,
before its first use: there is no cycle, no control flow, no subgraph and no external data. What the
operators mean, which attributes they take and what each refuses is `operators.py`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fedctl_graph.errors import GraphError
from fedctl_graph.operator_types import Attributes, Constant, Kind
from fedctl_graph.operators import OPERATORS, OPSET

T = TypeVar("T")

VERSION = 1
MAX_NAME_CHARS = 200
MAX_RANK = 8
MAX_CONSTANT_ITEMS = 4096  # of one constant; what is larger is a parameter
MAX_CONSTANTS = 1000
MAX_PARAMETERS = 4096
_NUMBERS: dict[str, tuple[type, ...]] = {"float32": (int, float), "int64": (int,)}


@dataclass(frozen=True, slots=True)
class Node:
    """One operator applied to named values; every operator here has one output."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Program:
    """A checked program `(parameters, x, y) -> (loss, logits, gradients)`."""

    input_shape: tuple[int, ...]  # of one example
    parameters: tuple[str, ...]
    constants: Mapping[str, Constant]
    nodes: tuple[Node, ...]
    loss: str
    logits: str
    gradients: Mapping[str, str]  # parameter: the value that is its gradient

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators that the program uses, sorted."""
        return tuple(sorted({node.op for node in self.nodes}))

    @classmethod
    def from_json(cls, value: Any, *, max_nodes: int) -> Program:
        """Check a parsed `train.json`.

        Args:
            value: Plain JSON values; the caller has capped the bytes that it parsed.
            max_nodes: Upper limit on the number of nodes.

        Raises:
            GraphError: Naming the first thing that is missing, unknown, defined twice or too large.
        """
        table = _table(value, "train.json", _FIELDS)
        if (table["version"], table["opset"]) != (VERSION, OPSET):
            raise GraphError(f"train.json is not of version {VERSION} with opset {OPSET}")
        input_shape = _read_inputs(table["inputs"])
        parameters = _list(table["parameters"], "parameters", MAX_PARAMETERS, _name)
        constants = _read_constants(table["constants"])
        nodes = _list(table["nodes"], "nodes", max_nodes, lambda node: _read_node(node, constants))
        kinds = _check_values(parameters, constants, nodes)
        outputs = _table(table["outputs"], "outputs", {"loss": str, "logits": str, "gradients": dict})
        gradients = outputs["gradients"]
        for name in (outputs["loss"], outputs["logits"], *gradients.values()):
            if not isinstance(name, str) or kinds.get(name) is not Kind.FLOAT:
                raise GraphError(f"output {str(name)[:80]!r} is not a float value of the program")
        for name in gradients:
            if name not in parameters:
                raise GraphError(f"there is a gradient of {name[:80]!r}, which is no parameter")
        return cls(input_shape, parameters, constants, nodes, outputs["loss"], outputs["logits"], gradients)


_FIELDS: dict[str, type] = {
    "version": int,
    "opset": int,
    "inputs": dict,
    "parameters": list,
    "constants": dict,
    "nodes": list,
    "outputs": dict,
}


def _table(value: Any, what: str, wanted: Mapping[str, type]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise GraphError(f"{what} is not an object")
    for key in wanted.keys() - value.keys():
        raise GraphError(f"{what} lacks {key!r}")
    for key, item in value.items():
        if key not in wanted:
            raise GraphError(f"{what} has an unknown field {key!r}")
        if type(item) is not wanted[key]:
            raise GraphError(f"{what}: {key!r} is not of type {wanted[key].__name__}")
    return value


def _list(value: list[Any], what: str, limit: int, read: Callable[[Any], T]) -> tuple[T, ...]:
    if len(value) > limit:
        raise GraphError(f"train.json has {len(value)} {what}, more than {limit}")
    return tuple(read(item) for item in value)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARS:
        raise GraphError(f"{str(value)[:80]!r} is not a name of 1 to {MAX_NAME_CHARS} characters")
    return value


def _read_inputs(value: dict[str, Any]) -> tuple[int, ...]:
    inputs = _table(value, "inputs", {"x": list, "y": list})
    x = inputs["x"]
    if inputs["y"] != ["N"] or not 2 <= len(x) <= MAX_RANK or x[0] != "N":
        raise GraphError('inputs are not x ["N", ...] and y ["N"]')
    return tuple(_dimension(n) for n in x[1:])


def _dimension(value: Any) -> int:
    if type(value) is not int or not 0 < value <= 1 << 31:
        raise GraphError(f"{str(value)[:80]!r} is not a dimension")
    return value


def _read_constants(value: dict[str, Any]) -> dict[str, Constant]:
    if len(value) > MAX_CONSTANTS:
        raise GraphError(f"train.json has {len(value)} constants, more than {MAX_CONSTANTS}")
    return {_name(name): _read_constant(name, item) for name, item in value.items()}


def _read_constant(name: str, value: Any) -> Constant:
    fields = _table(value, f"constant {name!r}", {"dtype": str, "shape": list, "data": list})
    dtype, data = fields["dtype"], fields["data"]
    if dtype not in _NUMBERS:
        raise GraphError(f"constant {name!r} has the unsupported dtype {dtype!r}")
    if len(data) > MAX_CONSTANT_ITEMS or any(type(item) not in _NUMBERS[dtype] for item in data):
        raise GraphError(f"constant {name!r} is not at most {MAX_CONSTANT_ITEMS} numbers of {dtype}")
    if any(abs(item) >= 1 << 63 for item in data):
        raise GraphError(f"constant {name!r} holds a number that is too large")
    shape = _list(fields["shape"], f"dimensions of {name!r}", MAX_RANK, _dimension)
    size = 1
    for n in shape:
        size *= n
    if size != len(data):
        raise GraphError(f"constant {name!r} has {len(data)} items, its shape says {size}")
    return Constant(Kind(dtype), shape, tuple(data))


def _read_node(value: Any, constants: Mapping[str, Constant]) -> Node:
    fields = _table(value, "node", {"op": str, "in": list, "out": list, "attrs": dict})
    op = fields["op"]
    if op not in OPERATORS:
        raise GraphError(f"operator {op[:80]!r} is not allowed")
    operator = OPERATORS[op]
    inputs = tuple(_name(item) for item in fields["in"])
    outputs = tuple(_name(item) for item in fields["out"])
    if not operator.min_inputs <= len(inputs) <= operator.max_inputs or len(outputs) != 1:
        raise GraphError(f"{op} has {len(inputs)} inputs and {len(outputs)} outputs")
    node = Node(op, inputs, outputs[0], fields["attrs"])
    for key in node.attributes:
        if key not in operator.attributes:
            raise GraphError(f"{op} does not take the attribute {key[:80]!r}")
    for position in operator.constant_inputs:
        if position < len(inputs) and inputs[position] not in constants:
            raise GraphError(f"{op}: its input {inputs[position]!r} must be a constant")
    operator.bind(node.attributes, tuple(constants.get(name) for name in inputs))
    return node


def _check_values(
    parameters: tuple[str, ...], constants: Mapping[str, Constant], nodes: tuple[Node, ...]
) -> dict[str, Kind]:
    """Every value's element type, once it is sure that each is defined once and before its use."""
    given = [("x", Kind.FLOAT), ("y", Kind.INT64), *((name, Kind.FLOAT) for name in parameters)]
    given += [(name, constant.kind) for name, constant in constants.items()]
    kinds: dict[str, Kind] = {}
    for name, kind in given:
        _define(name, kind, kinds)
    for node in nodes:
        operator = OPERATORS[node.op]
        for position, name in enumerate(node.inputs):
            if name not in kinds:
                raise GraphError(f"{node.op} uses {name!r} before it is defined")
            free = operator.takes is None or position in operator.constant_inputs
            if not free and kinds[name] is not operator.takes:
                raise GraphError(f"{node.op} does not take {name!r}, which is {kinds[name].value}")
        _define(node.output, operator.gives, kinds)
    return kinds


def _define(name: str, kind: Kind, kinds: dict[str, Kind]) -> None:
    if name in kinds:
        raise GraphError(f"value {name!r} is defined twice")
    kinds[name] = kind

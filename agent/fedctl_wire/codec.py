"""JSON to frozen data classes and back, driven by their type annotations.

Types understood: str, int, float, bool, None, `tuple[T, ...]`, `dict[str, T]`, unions with None,
`Literal`, enums of str, data classes, and `Json` for a value that is passed through. A class with a
field `extra: dict[str, Json]` keeps unknown keys there and writes them back; a class without one
refuses them. Integers are not accepted as booleans nor booleans as integers; NaN, infinities and
integers of more than 64 bits are refused.
"""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, TypeVar, Union

from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS

Json = Any
T = TypeVar("T")

_EXTRA = "extra"
_PLAIN = frozenset({str, int, float, bool, type(None)})  # what JSON carries as it is


def dump_bytes(value: Json) -> bytes:
    """Serialise to canonical JSON: sorted keys, no spaces, UTF-8, finite numbers only.

    Raises:
        ValueError: When a number is not finite or a text cannot be written as UTF-8.
    """
    return _ENCODER.encode(value).encode()


def parse_bytes(data: bytes, *, limit: int, what: str) -> Json:
    """Parse one JSON value of at most `limit` bytes.

    Raises:
        WireError: `too_large`, or `malformed` for bad UTF-8, bad JSON, duplicate keys, numbers that are
            not finite, half a surrogate pair, or more than `LIMITS.json_depth` levels.
    """
    if len(data) > limit:
        raise WireError(f"{what} has {len(data)} bytes, more than {limit}", code="too_large", subject=what)
    try:
        text = data.decode()  # json.loads would take UTF-16 and UTF-32 too
        value = _DECODER.decode(text)
        if "\\u" in text:
            dump_bytes(value)  # fails on half a surrogate pair, which nobody could write again
        if text.count("[") + text.count("{") > LIMITS.json_depth:
            _check_depth(value)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what} is not valid JSON: {error}", subject=what) from error
    return value


def to_json(value: object) -> Json:
    """Turn a data class (or a container of them) into plain JSON values; None fields are kept."""
    if type(value) in _PLAIN:
        return value
    if is_dataclass(value) and not isinstance(value, type):
        plain = {name: to_json(getattr(value, name)) for name in _fields(type(value))}
        return {**getattr(value, _EXTRA, {}), **plain}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return str(value)  # a checked string such as Name becomes a plain one
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return list(value) if _PLAIN.issuperset(map(type, value)) else [to_json(item) for item in value]
    return value


def encode(value: object) -> bytes:
    """Serialise a data class to canonical JSON bytes."""
    return dump_bytes(to_json(value))


def from_json(cls: type[T], value: Json, *, what: str | None = None) -> T:
    """Build a data class from parsed JSON, checking every type on the way.

    Raises:
        WireError: Naming the path of the first value that does not fit, e.g. `plan.train.lr`.
    """
    result: T = _convert(cls, value, what or cls.__name__.lower())
    return result


def decode(cls: type[T], data: bytes, *, limit: int, what: str | None = None) -> T:
    """Parse JSON bytes straight into a data class; see `parse_bytes` and `from_json`."""
    label = what or cls.__name__.lower()
    return from_json(cls, parse_bytes(data, limit=limit, what=label), what=label)


def _unique_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _refuse_constant(text: str) -> Json:
    raise ValueError(f"{text} is not a number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{_cut(text)} is too large for a number")
    return number


# Made once: to make one takes longer than to read or write a message.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite
)


def _check_depth(value: Json) -> None:
    level: list[Json] = [[value]]
    for _ in range(LIMITS.json_depth + 1):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {LIMITS.json_depth} levels deep")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _fields(cls: type) -> dict[str, Field[Any]]:
    return {f.name: f for f in fields(cls) if f.name != _EXTRA}


@functools.cache
def _form(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """What `kind` is made of: origin and arguments; a data class is its own origin."""
    if isinstance(kind, type) and is_dataclass(kind):
        return kind, ()
    return typing.get_origin(kind), typing.get_args(kind)


def _convert(kind: Any, value: Json, path: str) -> Any:
    if kind is Any:
        return value
    origin, arguments = _form(kind)
    if origin is kind:
        return _convert_dataclass(kind, value, path)
    if origin is None:
        return _convert_scalar(kind, value, path)
    if origin in {Union, types.UnionType}:
        return _convert_union(arguments, value, path)
    if origin is Literal:
        if value in arguments and type(value) in {type(a) for a in arguments}:
            return value
        raise WireError(
            f"{path} is {_short(value)}, not one of {', '.join(map(str, arguments))}", subject=path
        )
    if origin is tuple and isinstance(value, list):
        return _convert_list(arguments[0], value, path)
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    raise WireError(f"{path} is {_short(value)}, not a {origin.__name__}", subject=path)


def _convert_list(kind: Any, value: list[Json], path: str) -> tuple[Any, ...]:
    # Histograms and scalings are thousands of numbers: those that fit are taken without a look at each.
    types_found = set(map(type, value))
    if kind is int and types_found == {int} and -LIMITS.integer <= min(value) <= max(value) <= LIMITS.integer:
        return tuple(value)
    if kind is float and types_found == {float} and all(map(math.isfinite, value)):
        return tuple(value)
    return tuple(_convert(kind, item, f"{path}[{i}]") for i, item in enumerate(value))


def _convert_union(options: tuple[Any, ...], value: Json, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    chosen = next(option for option in options if option is not type(None))
    return _convert(chosen, value, path)


def _convert_scalar(kind: type, value: Json, path: str) -> Any:
    if issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError as error:
            known = ", ".join(str(member.value) for member in kind)
            raise WireError(f"{path} is {_short(value)}, not one of {known}", subject=path) from error
    if type(value) is int and abs(value) > LIMITS.integer:
        raise WireError(f"{path} is {_short(value)}, which does not fit 64 bits", subject=path)
    if kind is float and type(value) in {int, float} and math.isfinite(value):
        return float(value)
    if kind in {str, int, bool} and type(value) is kind:
        return value
    if kind not in {str, int, bool, float} and issubclass(kind, str) and type(value) is str:
        return kind(value)  # a checked string such as Name
    raise WireError(f"{path} is {_short(value)}, not a {kind.__name__}", subject=path)


def _convert_dataclass(cls: type, value: Json, path: str) -> Any:
    if not isinstance(value, dict):
        raise WireError(f"{path} is {_short(value)}, not an object", subject=path)
    hints = _hints(cls)
    known = _fields(cls)
    arguments = {name: _field(known[name], hints[name], value, path) for name in known}
    unknown = {key: item for key, item in value.items() if key not in known}
    if _EXTRA in hints:
        arguments[_EXTRA] = unknown
    elif unknown:
        name = next(iter(unknown))
        raise WireError(
            f"{path} has an unknown field {name!r}", code="unknown_field", subject=f"{path}.{name}"
        )
    return cls(**arguments)


def _field(field: Field[Any], kind: Any, value: dict[str, Json], path: str) -> Any:
    if field.name in value:
        return _convert(kind, value[field.name], f"{path}.{field.name}")
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return field.default_factory()
    raise WireError(f"{path} lacks the field {field.name!r}", subject=f"{path}.{field.name}")


def _short(value: Json) -> str:
    return _cut(json.dumps(value, default=str))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."

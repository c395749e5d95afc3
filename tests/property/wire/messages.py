"""Hypothesis strategies that build any message from its annotations, and the list of them all."""

import functools
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, Union

from hypothesis import strategies as st

from fedctl_wire import manifest, messages
from fedctl_wire.limits import LIMITS
from fedctl_wire.names import Name

MESSAGES: tuple[type, ...] = tuple(
    found
    for module in (messages, manifest)
    for found in vars(module).values()
    if isinstance(found, type) and is_dataclass(found) and found.__module__ == module.__name__
)
OPEN = tuple(cls for cls in MESSAGES if any(f.name == "extra" for f in fields(cls)))
CLOSED = tuple(cls for cls in MESSAGES if cls not in OPEN)

integers = st.integers(-LIMITS.integer, LIMITS.integer)
floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.tuples(st.sampled_from("a9z"), st.text("abz019-", max_size=62)).map(
    lambda parts: Name("".join(parts))
)
json_values = st.recursive(
    st.none() | st.booleans() | integers | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
_SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    Any: json_values,
    Name: names,
    bool: st.booleans(),
    int: integers,
    float: floats,
    str: texts,
}


@functools.cache
def instances(cls: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    parts = {
        f.name: (
            st.dictionaries(texts.filter(lambda key: key not in known - {"extra"}), json_values, max_size=2)
            if f.name == "extra"
            else values(hints[f.name])
        )
        for f in fields(cls)
    }
    return st.builds(cls, **parts)


def values(kind: Any) -> st.SearchStrategy[Any]:
    if kind in _SCALARS:
        return _SCALARS[kind]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(kind)
    if isinstance(kind, type):
        return instances(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {Union, types.UnionType}:
        return st.one_of(*(st.none() if a is type(None) else values(a) for a in arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    assert origin is dict
    return st.dictionaries(texts, values(arguments[1]), max_size=3)


def required(cls: type) -> list[str]:
    return [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]

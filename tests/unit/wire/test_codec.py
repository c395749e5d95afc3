import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import pytest

from fedctl_wire.codec import Json, decode, dump_bytes, encode, from_json, parse_bytes, to_json
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.names import Name


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Inner:
    n: int


@dataclass(frozen=True, slots=True)
class Outer:
    name: Name
    colour: Colour
    ratio: float
    flag: bool
    mode: Literal["a", "b", 3]
    inner: Inner
    many: tuple[Inner, ...] = ()
    table: dict[str, int] = field(default_factory=dict)
    maybe: int | None = None
    free: Json = None


GOOD: dict[str, Any] = {
    "name": "watch-01",
    "colour": "red",
    "ratio": 1,
    "flag": True,
    "mode": 3,
    "inner": {"n": 1},
    "many": [{"n": 2}],
    "table": {"k": 3},
    "maybe": 4,
    "free": [{"x": None}],
}


def test_every_kind_of_value_arrives_as_its_type() -> None:
    outer = from_json(Outer, GOOD)
    assert from_json(Outer, to_json(outer)) == outer
    assert type(to_json(outer)["name"]) is str
    assert outer == Outer(
        Name("watch-01"), Colour.RED, 1.0, True, 3, Inner(1), (Inner(2),), {"k": 3}, 4, [{"x": None}]
    )
    assert isinstance(outer.name, Name)
    assert isinstance(outer.ratio, float)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("name", "Watch 01", "name 'Watch 01' is not allowed"),
        ("name", 1, "outer.name is 1, not a Name"),
        ("colour", "green", 'outer.colour is "green", not one of red, blue'),
        ("colour", ["red"], "not one of red, blue"),
        ("ratio", True, "outer.ratio is true, not a float"),
        ("ratio", math.inf, "not a float"),
        ("ratio", math.nan, "not a float"),
        ("ratio", "1", "not a float"),
        ("ratio", 10**400, "does not fit 64 bits"),
        ("flag", 1, "outer.flag is 1, not a bool"),
        ("mode", "c", 'outer.mode is "c", not one of a, b, 3'),
        ("mode", True, "not one of"),
        ("mode", 3.0, "not one of"),
        ("mode", [], "not one of"),
        ("inner", [], "outer.inner is \\[\\], not an object"),
        ("inner", None, "outer.inner is null, not an object"),
        ("inner", {"n": 1.0}, "outer.inner.n is 1.0, not a int"),
        ("inner", {"n": True}, "outer.inner.n is true, not a int"),
        ("inner", {"n": 2**63}, "does not fit 64 bits"),
        ("inner", {"n": 1, "m": 2}, "outer.inner has an unknown field 'm'"),
        ("inner", {}, "outer.inner lacks the field 'n'"),
        ("many", {"n": 1}, "outer.many is .*, not a tuple"),
        ("many", [{"n": 1}, {"n": None}], r"outer.many\[1\].n is null"),
        ("table", [], "outer.table is \\[\\], not a dict"),
        ("table", {"k": "v"}, "outer.table.k is"),
        ("maybe", "4", "outer.maybe is"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(name: str, value: object, says: str) -> None:
    with pytest.raises(WireError, match=says):
        from_json(Outer, {**GOOD, name: value})


def test_a_long_wrong_value_is_cut_in_the_message() -> None:
    with pytest.raises(WireError) as caught:
        from_json(Outer, {**GOOD, "inner": "x" * 10_000})
    assert len(str(caught.value)) < 200


def test_absent_fields_take_their_defaults_and_none_is_written_out() -> None:
    outer = from_json(Outer, {key: GOOD[key] for key in ("name", "colour", "ratio", "flag", "mode", "inner")})
    assert (outer.many, outer.table, outer.maybe, outer.free) == ((), {}, None, None)
    assert to_json(outer)["maybe"] is None


def test_canonical_bytes_are_sorted_compact_and_utf_8() -> None:
    assert dump_bytes({"b": [1, 2.5], "a": "ü"}) == '{"a":"ü","b":[1,2.5]}'.encode()
    assert encode(Inner(7)) == b'{"n":7}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "\ud800"])
def test_what_json_cannot_say_is_not_written(value: object) -> None:
    with pytest.raises(ValueError):
        dump_bytes({"x": value})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{}{}",
        b"\xff",
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b"NaN",
        b'{"x":Infinity}',
        b'{"x":-Infinity}',
        b"1e400",
        b"[-1e999]",
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b'"\xed\xa0\x80"',  # the same surrogate, as raw bytes
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-32"),
        b'"a\nb"',
        b"{'a':1}",
        b"[1,]",
        b"9" * 5000,
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_not_strict_json_is_malformed(data: bytes) -> None:
    with pytest.raises(WireError, match="body is not valid JSON") as caught:
        parse_bytes(data, limit=10_000, what="body")
    assert caught.value.code == "malformed"


def test_escapes_that_form_a_character_are_fine() -> None:
    assert parse_bytes(b'"\\ud83d\\ude00 \\u00fc"', limit=100, what="body") == "😀 ü"


@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("innermost", ["1", "[]", "{}"])
def test_depth_is_limited(left: str, right: str, innermost: str) -> None:
    levels = LIMITS.json_depth - (innermost != "1")
    text = left * levels + innermost + right * levels
    parse_bytes(text.encode(), limit=1000, what="body")
    with pytest.raises(WireError, match="nested more than 32 levels"):
        parse_bytes((left + text + right).encode(), limit=1000, what="body")


def test_absurd_depth_is_no_crash() -> None:
    with pytest.raises(WireError, match="not valid JSON"):
        parse_bytes(b"[" * 500_000 + b"]" * 500_000, limit=2_000_000, what="body")


def test_many_values_beside_one_another_are_not_deep() -> None:
    rows = [[1, 2]] * 500
    assert parse_bytes(json.dumps(rows).encode(), limit=10_000, what="body") == rows


def test_the_size_is_checked_before_anything_is_parsed() -> None:
    with pytest.raises(WireError, match="body has 11 bytes, more than 10") as caught:
        decode(Inner, b"not json at", limit=10, what="body")
    assert (caught.value.code, caught.value.subject) == ("too_large", "body")

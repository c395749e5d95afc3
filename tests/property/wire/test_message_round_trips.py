"""Every message: there and back, unknown and missing fields, and nothing but a WireError on garbage."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl_wire.codec import decode, dump_bytes, encode, from_json, parse_bytes, to_json
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import Manifest
from tests.property.wire.messages import CLOSED, MESSAGES, OPEN, instances, json_values, required, texts

LIMIT = LIMITS.json_body_bytes
each_message = pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)


@each_message
@given(data=st.data())
@settings(max_examples=25)
def test_there_and_back(cls: type, data: st.DataObject) -> None:
    message = data.draw(instances(cls))
    assert from_json(cls, to_json(message)) == message
    wire = encode(message)
    assert decode(cls, wire, limit=LIMIT) == message
    assert encode(decode(cls, wire, limit=LIMIT)) == wire


@pytest.mark.parametrize("cls", OPEN, ids=lambda cls: cls.__name__)
@given(data=st.data())
@settings(max_examples=5)
def test_an_open_message_keeps_what_a_newer_peer_added(cls: type, data: st.DataObject) -> None:
    plain = to_json(data.draw(instances(cls)))
    plain["from-the-future"] = data.draw(json_values)
    assert to_json(from_json(cls, plain)) == plain


@pytest.mark.parametrize("cls", CLOSED, ids=lambda cls: cls.__name__)
@given(data=st.data())
@settings(max_examples=3)
def test_a_closed_message_refuses_what_it_does_not_know(cls: type, data: st.DataObject) -> None:
    plain = to_json(data.draw(instances(cls)))
    plain["from-the-future"] = None
    with pytest.raises(WireError, match="unknown field 'from-the-future'") as caught:
        from_json(cls, plain)
    assert caught.value.code == "unknown_field"


@each_message
@given(data=st.data())
@settings(max_examples=3)
def test_a_missing_field_is_named(cls: type, data: st.DataObject) -> None:
    plain = to_json(data.draw(instances(cls)))
    for name in required(cls):
        with pytest.raises(WireError, match=f"lacks the field '{name}'"):
            from_json(cls, {key: value for key, value in plain.items() if key != name})


@each_message
@given(data=st.data(), wrong=json_values)
@settings(max_examples=10)
def test_a_wrong_value_is_a_wire_error_or_a_valid_message(
    cls: type, data: st.DataObject, wrong: object
) -> None:
    plain = to_json(data.draw(instances(cls)))
    plain[data.draw(st.sampled_from(sorted(plain)))] = wrong
    with contextlib.suppress(WireError):
        assert from_json(cls, to_json(from_json(cls, plain))) is not None


@each_message
@given(value=json_values)
@settings(max_examples=8)
def test_any_json_is_a_wire_error_or_a_valid_message(cls: type, value: object) -> None:
    with contextlib.suppress(WireError):
        from_json(cls, value)


@given(instances(Manifest))
@settings(max_examples=20)
def test_reading_a_manifest_checks_it_without_crashing(manifest: Manifest) -> None:
    with contextlib.suppress(WireError):
        assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@given(st.binary(max_size=200))
def test_any_bytes_are_a_wire_error_or_json(data: bytes) -> None:
    with contextlib.suppress(WireError):
        dump_bytes(parse_bytes(data, limit=200, what="body"))


@given(json_values)
def test_whatever_parses_can_be_written_again_and_is_canonical(value: Any) -> None:
    data = json.dumps(value, indent=1).encode()
    parsed = parse_bytes(data, limit=len(data), what="body")
    assert parsed == value
    canonical = dump_bytes(parsed)
    assert dump_bytes(parse_bytes(canonical, limit=len(canonical), what="body")) == canonical


@given(st.lists(st.tuples(texts, json_values), min_size=2, max_size=4), st.randoms())
def test_canonical_json_does_not_depend_on_the_order_of_keys(pairs: list[Any], random: Any) -> None:
    value = dict(pairs)
    shuffled = list(value.items())
    random.shuffle(shuffled)
    assert dump_bytes(dict(shuffled)) == dump_bytes(value)

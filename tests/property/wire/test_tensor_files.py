"""Our header reader against the `safetensors` package, on good and on damaged files."""

import contextlib
import io
import struct
from typing import Any

import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl_wire.errors import WireError
from fedctl_wire.tensors import METADATA, TensorHeader, header_bytes, layout, read_header

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != METADATA)
specs = st.lists(
    st.tuples(
        names,
        st.sampled_from(["F32", "F64", "I64", "U8"]),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
    ),
    max_size=5,
    unique_by=lambda spec: spec[0],
)
metadata = st.dictionaries(names, names, max_size=3)


def read(data: bytes) -> TensorHeader:
    return read_header(io.BytesIO(data), total_bytes=len(data), what="file")


def build(wanted: Any, extra: dict[str, str]) -> bytes:
    placed = layout(wanted)
    size = placed[-1].end if placed else 0
    return header_bytes(placed, extra) + bytes(i % 251 for i in range(size))


@given(specs, metadata)
def test_what_we_write_both_read_alike(wanted: Any, extra: dict[str, str]) -> None:
    data = build(wanted, extra)
    header = read(data)
    assert header.tensors == layout(wanted)
    assert header.metadata == extra
    theirs = dict(safetensors.deserialize(data))
    assert set(theirs) == {info.name for info in header.tensors}
    for info in header.tensors:
        assert theirs[info.name]["dtype"] == info.dtype
        assert tuple(theirs[info.name]["shape"]) == info.shape
        start = header.data_start + info.begin
        assert bytes(theirs[info.name]["data"]) == data[start : start + info.end - info.begin]


@given(specs, st.data())
@settings(max_examples=200)
def test_a_damaged_file_that_we_accept_the_package_accepts_too(wanted: Any, data: st.DataObject) -> None:
    damaged = bytearray(build(wanted, {}))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        ours = read(bytes(damaged))
        assert {name for name, _ in safetensors.deserialize(bytes(damaged))} == {i.name for i in ours.tensors}


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused_or_read(text: bytes, prefixed: bool) -> None:  # noqa: FBT001 - Hypothesis passes it
    with contextlib.suppress(WireError):
        read(struct.pack("<Q", len(text)) + text if prefixed else text)

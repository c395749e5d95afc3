import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.tensors import TensorHeader, header_bytes, layout, read_file_header, read_header

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]}


def file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read(data: bytes) -> TensorHeader:
    return read_header(io.BytesIO(data), total_bytes=len(data), what="w.safetensors")


def test_a_header_is_read_and_the_stream_is_left_at_the_data() -> None:
    data = file({"__metadata__": {"format": "x"}, "b": B, "a": A}, b"12345678abc")
    stream = io.BytesIO(data)
    header = read_header(stream, total_bytes=len(data), what="w")
    assert [info.name for info in header.tensors] == ["a", "b"]  # by offset, not by place in the header
    assert header.metadata == {"format": "x"}
    assert (header.data_bytes, header["b"].shape, header["a"].size) == (11, (3,), 2)
    assert stream.tell() == header.data_start
    with pytest.raises(WireError, match="no tensor 'c'"):
        header["c"]


def test_a_layout_is_packed_in_order_and_scalars_have_one_item() -> None:
    placed = layout([("s", "F64", ()), ("e", "F32", (0, 3)), ("v", "I64", (2, 2))])
    assert [(i.begin, i.end, i.size) for i in placed] == [(0, 8, 1), (8, 8, 0), (8, 40, 4)]
    header = read(header_bytes(placed) + bytes(40))
    assert header.tensors == placed
    assert header.data_start % 8 == 0


def test_the_bytes_of_a_header_depend_on_nothing_else() -> None:
    placed = layout([("b", "F32", (1,)), ("a", "F32", (1,))])
    assert header_bytes(placed, {"x": "1", "y": "2"}) == header_bytes(placed, {"y": "2", "x": "1"})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "truncated: it has no header"),
        (b"\x08\x00\x00", "truncated: it has no header"),
        (struct.pack("<Q", 100) + b"{}", "truncated inside its header"),
        (struct.pack("<Q", 2**63) + b"{}", "has a header of 9223372036854775808 bytes"),
        (struct.pack("<Q", LIMITS.tensor_header_bytes + 1) + b"{}", "has a header of"),
        (file(b""), "does not start with an object"),
        (file(b" {}"), "does not start with an object"),
        (file([]), "does not start with an object"),
        (file(b"{"), "not valid JSON"),
        (file(b'{"a":1,"a":2}'), "a key appears twice"),
        (file(b"{" + b'"a":[' * 5000), "not valid JSON"),
        (file({"__metadata__": {"n": 1}}), "metadata of w.safetensors is not a map of strings"),
        (file({"__metadata__": []}), "metadata of w.safetensors is not a map of strings"),
        (file({"a": A}, b"1234567"), "has 7 bytes of data, its header says 8"),
        (file({"a": A}, b"123456789"), "has 9 bytes of data, its header says 8"),
        (file({"b": B}, b"12345678abc"), "hole or an overlap before tensor 'b'"),
        (file({"a": A, "b": {**B, "data_offsets": [7, 10]}}, b"12345678ab"), "hole or an overlap"),
        (file({"a": A, "b": {**A}}, b"12345678"), "hole or an overlap"),
        (file({"a": {**A, "shape": [3]}}, b"12345678"), "its shape does not fit its offsets"),
        (file({"a": {**A, "data_offsets": [8, 0]}}, b"12345678"), "its shape does not fit its offsets"),
        (file({"a": {**A, "shape": [-2], "data_offsets": [0, -8]}}), "bad shape or offset"),
        (file({"a": {**A, "shape": [0, LIMITS.parameters + 1], "data_offsets": [0, 0]}}), "bad shape"),
        (file({"a": {**A, "shape": [1] * 9}}, b"12345678"), "bad shape or offset"),
        (file({"a": {**A, "dtype": "F16"}}, b"12345678"), "unsupported dtype 'F16'"),
        (file({"a": {**A, "dtype": ["F32"]}}, b"12345678"), "badly described"),
        (file({"a": {**A, "shape": "2"}}, b"12345678"), "badly described"),
        (file({"a": {**A, "shape": [2.0]}}, b"12345678"), "badly described"),
        (file({"a": {**A, "shape": [True, 2]}}, b"12345678"), "badly described"),
        (file({"a": {**A, "shape": [10**300]}}, b"12345678"), "badly described"),
        (file({"a": {**A, "data_offsets": [0, 8, 8]}}, b"12345678"), "badly described"),
        (file({"a": {**A, "data_offsets": {"x": 0, "y": 8}}}, b"12345678"), "badly described"),
        (file({"a": {**A, "surprise": 1}}, b"12345678"), "badly described"),
        (file({"a": {"dtype": "F32", "shape": [2]}}, b"12345678"), "badly described"),
        (file({"a": None}), "badly described"),
        (file({"a": "dtype"}), "badly described"),
        (
            file({str(i): {**A, "shape": [0], "data_offsets": [0, 0]} for i in range(4097)}),
            "too many tensors",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_file_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        read(data)


def test_a_header_cut_anywhere_is_refused() -> None:
    data = file({"__metadata__": {"k": "v"}, "a": A, "b": B}, b"12345678abc")
    read(data)
    for length in range(len(data)):
        with pytest.raises(WireError):
            read(data[:length])


def test_a_model_of_too_many_parameters_is_refused_by_its_header_alone() -> None:
    size = LIMITS.parameters // 2 + 1
    half = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    rest = {"dtype": "U8", "shape": [size], "data_offsets": [size, 2 * size]}
    data = file({"a": half, "b": rest})
    with pytest.raises(WireError, match="too many tensors or parameters") as caught:
        read_header(io.BytesIO(data), total_bytes=len(data) + 2 * size, what="w")
    assert caught.value.code == "too_large"


def test_a_file_of_the_reference_package_is_read(tmp_path: Path) -> None:
    arrays = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "d": np.array(1.5),
        "i": np.array([], dtype=np.int64),
        "u": np.array([[1], [2]], dtype=np.uint8),
    }
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"k": "ü"})
    header = read_file_header(path)
    data = path.read_bytes()[header.data_start :]
    kinds = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "U8": "u1"}
    found = {
        i.name: np.frombuffer(data[i.begin : i.end], kinds[i.dtype]).reshape(i.shape) for i in header.tensors
    }
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert header.metadata == {"k": "ü"}


def test_the_reference_package_reads_a_file_of_ours() -> None:
    values = np.arange(5, dtype=np.float32), np.array([[-1.0, 2.0]])
    placed = layout([("z", "F32", (5,)), ("a", "F64", (1, 2))])
    data = header_bytes(placed, {"round": "1"}) + b"".join(value.tobytes() for value in values)
    loaded = safetensors.numpy.load(data)
    assert np.array_equal(loaded["z"], values[0])
    assert np.array_equal(loaded["a"], values[1])


def test_an_empty_file_of_tensors_is_allowed_as_the_reference_allows_it() -> None:
    assert read(safetensors.numpy.save({})).tensors == ()

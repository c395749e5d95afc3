"""Arrays in files, against the `safetensors` package as oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from fedctl_agent.trainers.tensorfile import read_tensors, write_tensors
from fedctl_wire.errors import WireError
from fedctl_wire.tensors import layout

ARRAYS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "wide": np.array([1e300, -0.0]),
    "labels": np.array([3, -1], np.int64),
    "bytes": np.array([[7]], np.uint8),
    "scalar": np.array(2.5, np.float32),
}
TENSORS = layout(
    [
        ("w", "F32", (2, 3)),
        ("wide", "F64", (2,)),
        ("labels", "I64", (2,)),
        ("bytes", "U8", (1, 1)),
        ("scalar", "F32", ()),
    ]
)


def same(found: dict[str, np.ndarray]) -> None:
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_the_reference_implementation_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, ARRAYS, {"format": "test"})
    same(safetensors.numpy.load_file(path))
    with safetensors.safe_open(path, "numpy") as stream:
        assert stream.metadata() == {"format": "test"}


def test_what_the_reference_implementation_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(ARRAYS, path)
    same(read_tensors(path))


def test_arrays_are_fresh_and_writable(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, ARRAYS, {})
    read_tensors(path)["w"][:] = 9
    same(read_tensors(path, TENSORS))


def test_a_transposed_array_is_written_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, layout([("w", "F32", (3, 2))]), {"w": ARRAYS["w"].T}, {})
    np.testing.assert_array_equal(read_tensors(path)["w"], ARRAYS["w"].T)


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tensors(tmp_path / name, TENSORS, ARRAYS, {"b": "2", "a": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_tensors_than_expected_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, ARRAYS, {})
    with pytest.raises(WireError, match="does not hold the tensors") as caught:
        read_tensors(path, TENSORS[:2])
    assert caught.value.code == "shape"


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, ARRAYS, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WireError, match=r"a\.safetensors"):
        read_tensors(path)

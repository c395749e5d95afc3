"""NumPy arrays in safetensors files, without a copy of the whole: maps to read, small blocks to write."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedctl_wire.errors import WireError
from fedctl_wire.tensors import TensorInfo, header_bytes, read_header

_BLOCK_ITEMS = 32 * 1024  # of a difference: small enough for the processor's cache
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}


def read_tensors(path: Path, expected: Sequence[TensorInfo] | None = None) -> dict[str, NDArray[Any]]:
    """Read all tensors of a file into writable arrays of this process's own.

    The arrays are parts of one private map of the file: what is only read takes no memory but the
    page cache's, what is written to becomes a copy page by page. The file must not be changed in
    place meanwhile; a bundle's never is.

    Args:
        path: The file.
        expected: What the file must hold, in that order; None: anything that the format allows.

    Raises:
        WireError: When the file is malformed (see `read_header`) or holds something else.
    """
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - pathlib's share of a small job is seen
        start, tensors = _layout(stream, path, expected)
        memory = mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE)
    data = np.frombuffer(memory, np.uint8)[start:]
    return {info.name: _array(data[info.begin : info.end], info) for info in tensors}


def _layout(
    stream: FileIO, path: Path, expected: Sequence[TensorInfo] | None
) -> tuple[int, Sequence[TensorInfo]]:
    """Where the data of a file starts and which tensors it holds."""
    size = os.fstat(stream.fileno()).st_size
    if expected:  # nearly always the very bytes that this project writes: nothing to parse
        ours = header_bytes(expected, {})
        if size == len(ours) + expected[-1].end and stream.read(len(ours)) == ours:
            return len(ours), expected
        stream.seek(0)
    header = read_header(stream, total_bytes=size, what=path.name)
    if expected is not None and header.tensors != tuple(expected):
        raise WireError(f"{path.name} does not hold the tensors of its manifest", code="shape")
    return header.data_start, header.tensors


def write_tensors(
    path: Path, tensors: Sequence[TensorInfo], arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write arrays in the order and with the dtypes of `tensors`; same input, same bytes. Not synced."""
    with path.open("wb") as stream:
        stream.write(header_bytes(tensors, metadata))
        for info in tensors:
            array = np.ascontiguousarray(arrays[info.name], _DTYPES[info.dtype]).reshape(info.shape)
            stream.write(array.reshape(-1).view(np.uint8).data)


def write_difference(
    path: Path,
    tensors: Sequence[TensorInfo],
    arrays: tuple[Mapping[str, NDArray[np.float32]], Mapping[str, NDArray[np.float32]]],
    metadata: Mapping[str, str],
) -> None:
    """Write the float32 difference of two sets of arrays, block by block; otherwise as `write_tensors`.

    Raises:
        FloatingPointError: Naming the first tensor whose difference is not finite.
    """
    ours, base = arrays
    with path.open("wb") as stream:
        stream.write(header_bytes(tensors, metadata))
        for info in tensors:
            for block in _differences(ours[info.name].reshape(-1), base[info.name].reshape(-1)):
                if not np.isfinite(block).all():
                    raise FloatingPointError(info.name)
                stream.write(block.data)


def _differences(ours: NDArray[np.float32], base: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    room = np.empty(min(len(ours), _BLOCK_ITEMS), _DTYPES["F32"])
    for start in range(0, len(ours), _BLOCK_ITEMS):
        part = ours[start : start + _BLOCK_ITEMS]
        yield np.subtract(part, base[start : start + _BLOCK_ITEMS], out=room[: len(part)])


def _array(data: NDArray[np.uint8], info: TensorInfo) -> NDArray[Any]:
    array: NDArray[Any] = data.view(_DTYPES[info.dtype]).reshape(info.shape)
    return array if array.flags.aligned else array.copy()  # a header of another length than ours'

"""NumPy arrays in safetensors files: each tensor straight from and to the file, no copy of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedctl_wire.errors import WireError
from fedctl_wire.tensors import TensorInfo, header_bytes, read_header

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}


def read_tensors(path: Path, expected: Sequence[TensorInfo] | None = None) -> dict[str, NDArray[Any]]:
    """Read all tensors of a file into fresh, writable arrays.

    Args:
        path: The file.
        expected: What the file must hold, in that order; None: anything that the format allows.

    Raises:
        WireError: When the file is malformed (see `read_header`) or holds something else.
    """
    with path.open("rb") as stream:
        header = read_header(stream, total_bytes=path.stat().st_size, what=path.name)
        if expected is not None and header.tensors != tuple(expected):
            raise WireError(f"{path.name} does not hold the tensors of its manifest", code="shape")
        return {info.name: _read(stream, info, path.name) for info in header.tensors}


def write_tensors(
    path: Path, tensors: Sequence[TensorInfo], arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write arrays in the order and with the dtypes of `tensors`; same input, same bytes. Not synced."""
    with path.open("wb") as stream:
        stream.write(header_bytes(tensors, metadata))
        for info in tensors:
            array = np.ascontiguousarray(arrays[info.name], _DTYPES[info.dtype]).reshape(info.shape)
            stream.write(array.reshape(-1).view(np.uint8).data)


def _read(stream: BufferedReader, info: TensorInfo, what: str) -> NDArray[Any]:
    array: NDArray[Any] = np.empty(info.size, _DTYPES[info.dtype])
    if stream.readinto(array.view(np.uint8).data) != array.nbytes:
        raise WireError(f"{what} ends inside tensor {info.name!r}", subject=info.name)
    return array.reshape(info.shape)

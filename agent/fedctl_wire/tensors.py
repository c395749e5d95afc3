"""Named tensors in the safetensors format: a capped, strict header reader and a writer, without NumPy.

Only what the tool uses is read: little-endian F32, F64, I64 and U8, no holes, no overlaps, tensors
in the order of their offsets. The data itself is read and written by block by whoever holds the
file, so that nobody needs a whole model in memory.

Source: the safetensors format, https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fedctl_wire.codec import Json, from_json, parse_bytes
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS

ITEM_BYTES = {"F32": 4, "F64": 8, "I64": 8, "U8": 1}
_LENGTH = struct.Struct("<Q")
METADATA = "__metadata__"  # the one key of a header that names no tensor
_ALIGNMENT = 8  # bytes; the header is padded with spaces so that data starts aligned


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file: where its little-endian items are, relative to the start of the data."""

    name: str
    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    begin: int  # bytes
    end: int  # bytes

    @property
    def size(self) -> int:
        """Number of items; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a safetensors file says of itself."""

    tensors: tuple[TensorInfo, ...]  # in the order of their offsets
    metadata: Mapping[str, str]
    data_start: int  # bytes from the start of the file
    data_bytes: int

    def __getitem__(self, name: str) -> TensorInfo:
        """The tensor of that name.

        Raises:
            WireError: When the file has none.
        """
        for info in self.tensors:
            if info.name == name:
                return info
        raise WireError(f"there is no tensor {name!r}", subject=name)


@dataclass(frozen=True, slots=True)
class _InfoJson:
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, ...]


def layout(specs: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[TensorInfo, ...]:
    """Place tensors given as (name, dtype, shape) one after the other, in that order."""
    placed: list[TensorInfo] = []
    offset = 0
    for name, dtype, shape in specs:
        end = offset + math.prod(shape) * ITEM_BYTES[dtype]
        placed.append(TensorInfo(name, dtype, tuple(shape), offset, end))
        offset = end
    return tuple(placed)


def header_bytes(tensors: Sequence[TensorInfo], metadata: Mapping[str, str] | None = None) -> bytes:
    """The length prefix and header of a file; the tensors' data follows in order.

    The same tensors and metadata always give the same bytes.
    """
    header: dict[str, Json] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    for info in tensors:
        header[info.name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.begin, info.end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return _LENGTH.pack(len(text)) + text


def read_header(stream: BinaryIO, *, total_bytes: int, what: str) -> TensorHeader:
    """Read and check the header at the stream's position.

    Args:
        stream: Positioned at the first byte of the file; left at the first byte of the data.
        total_bytes: Size of the whole file, which the offsets must fill exactly.
        what: The file's name for error messages.

    Raises:
        WireError: When the file is truncated, oversized, has holes, overlaps, bad names or dtypes.
    """
    prefix = stream.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        raise WireError(f"{what} is truncated: it has no header", subject=what)
    (length,) = _LENGTH.unpack(prefix)
    if length > LIMITS.tensor_header_bytes:
        raise WireError(f"{what} has a header of {length} bytes", code="too_large", subject=what)
    text = stream.read(length)
    if len(text) < length:
        raise WireError(f"{what} is truncated inside its header", subject=what)
    if text[:1] != b"{":
        raise WireError(f"header of {what} does not start with an object", subject=what)
    raw = parse_bytes(text, limit=LIMITS.tensor_header_bytes, what=f"header of {what}")
    metadata = _read_metadata(raw.pop(METADATA, {}), what)
    infos = sorted(
        (_read_info(name, value, what) for name, value in raw.items()), key=lambda i: (i.begin, i.end)
    )
    data_start = _LENGTH.size + length
    _check_layout(infos, total_bytes - data_start, what)
    return TensorHeader(tuple(infos), metadata, data_start, total_bytes - data_start)


def read_file_header(path: Path) -> TensorHeader:
    """Read the header of a file on disk; see `read_header`."""
    with path.open("rb") as stream:
        return read_header(stream, total_bytes=path.stat().st_size, what=path.name)


def _read_metadata(value: Json, what: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise WireError(f"metadata of {what} is not a map of strings", subject=what)
    return value


def _read_info(name: str, value: Json, what: str) -> TensorInfo:
    try:
        raw = from_json(_InfoJson, value, what=f"tensor {name!r} of {what}")
        begin, end = raw.data_offsets
    except ValueError as error:
        raise WireError(f"tensor {name!r} of {what} is badly described: {error}", subject=name) from error
    dtype, shape = raw.dtype, raw.shape
    if (
        min((*shape, begin, end)) < 0
        or max(shape, default=0) > LIMITS.parameters
        or len(shape) > LIMITS.tensor_rank
    ):
        raise WireError(f"tensor {name!r} of {what} has a bad shape or offset", subject=name)
    if dtype not in ITEM_BYTES:
        raise WireError(f"tensor {name!r} of {what} has the unsupported dtype {dtype[:20]!r}", subject=name)
    info = TensorInfo(name, dtype, shape, begin, end)
    if end - begin != info.size * ITEM_BYTES[dtype]:
        raise WireError(f"tensor {name!r} of {what}: its shape does not fit its offsets", subject=name)
    return info


def _check_layout(infos: Sequence[TensorInfo], data_bytes: int, what: str) -> None:
    if len(infos) > LIMITS.tensors or sum(info.size for info in infos) > LIMITS.parameters:
        raise WireError(f"{what} holds too many tensors or parameters", code="too_large", subject=what)
    offset = 0
    for info in infos:
        if info.begin != offset:
            raise WireError(f"{what} has a hole or an overlap before tensor {info.name!r}", subject=info.name)
        offset = info.end
    if offset != data_bytes:
        raise WireError(f"{what} has {data_bytes} bytes of data, its header says {offset}", subject=what)

"""The source kind `npz`: arrays that NumPy saved, never unpickled, checked before they are used.

An array of features is (n, features), a row each, or (n, features, samples), windows already cut.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

import fedctl_agent.sources.arrange  # noqa: F401 - for the worker to have it before it forks a job
from fedctl_agent.sources.files import data_files
from fedctl_agent.sources.npz_header import ENDING, shape
from fedctl_agent.sources.rows import (
    LABELS,
    UNLABELLED,
    Rows,
    Times,
    asked_columns,
    infinite_is_missing,
    no_examples,
    room,
)
from fedctl_agent.sources.source import Source, check_fit, check_shape
from fedctl_agent.trainers.contract import JobError
from fedctl_wire.limits import KIB
from fedctl_wire.messages import DataNeeds
from fedctl_wire.sources import shown

_NPY_START = struct.Struct("<8sH")  # format 1.0, and the length of the header
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[<|][fiu][1248])', 'fortran_order': False,"
    rb" 'shape': \((?P<shape>\d{1,12}, ?(\d{1,12}(, \d{1,12})?)?)\), \} *\n"
)
_BLOCK_BYTES = 128 * KIB


__all__ = ["read", "shape"]


@dataclass(slots=True)
class _Columns:
    """The arrays of one file."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    time: NDArray[np.float64] | None
    group: NDArray[Any] | None

    @property
    def nbytes(self) -> int:
        """What they take."""
        return sum(a.nbytes for a in (self.x, self.y, self.time, self.group) if a is not None)


def read(source: Source, needs: DataNeeds | None, oldest: float | None) -> Rows:
    """Read all files, sorted by name, into one array each; see `SourceKind`. No row is left out."""
    del oldest  # `arrange` leaves out what is too old
    if needs is not None:
        check_fit(source, needs)
    parts, left = [], room()
    for path in data_files(source, ENDING):
        parts.append(_load_file(path, source, needs, left))
        left -= parts[-1].nbytes
    lengths = [len(part.y) for part in parts]
    if not sum(lengths):
        raise no_examples(source)
    widths = {part.x.shape[1:] for part in parts if len(part.y)}
    if len(widths) > 1:
        raise JobError("data", f"source {source.name!r}: its files have features of different shapes")
    time = _joined([part.time for part in parts])
    group = _groups(source, parts, lengths)
    return Rows(*_joined_examples(parts, widths.pop()), time, group)


def _joined_examples(
    parts: list[_Columns], width: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if len(parts) == 1:
        return parts[0].x, parts[0].y
    end = sum(len(part.y) for part in parts)
    x, y = np.empty((end, *width), np.float32), np.empty(end, np.int64)
    while parts:  # each part is freed once it is copied: never two whole copies
        part = parts.pop()
        begin = end - len(part.y)
        if begin < end:
            x[begin:end], y[begin:end] = part.x, part.y
        end = begin
    return x, y


def _joined(arrays: list[NDArray[np.float64] | None]) -> NDArray[np.float64] | None:
    known = [a for a in arrays if a is not None]
    return np.concatenate(known) if known else None


def _groups(source: Source, parts: list[_Columns], lengths: list[int]) -> NDArray[np.int32] | None:
    """A number for each group; without times a file is one of its own, for nobody knows the pause between."""
    spec = source.spec
    numbers = None
    if spec.group is not None:
        _, numbers = np.unique(np.concatenate([part.group for part in parts]), return_inverse=True)
    if spec.window is None or spec.time is not None or len(parts) == 1:
        return None if numbers is None else numbers.astype(np.int32)
    files = np.repeat(np.arange(len(lengths)), lengths)
    return (files if numbers is None else files * (numbers.max() + 1) + numbers).astype(np.int32)


def _load_file(path: Path, source: Source, needs: DataNeeds | None, room: int) -> _Columns:
    spec = source.spec
    names = (spec.features[0], *asked_columns(spec))
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, names, path, room)
            arrays = {name: _read(archive, name, path) for name in names}
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise JobError("data", f"{path.name} cannot be read: {shown(error)}") from error
    x = _features(arrays[names[0]], path, source, needs)
    y = _labels(arrays[spec.label], path, source, len(x), needs.classes if needs else LABELS)
    time = None if spec.time is None else _times(_column(arrays, spec.time, path, len(x)), path, spec.time)
    group = None if spec.group is None else _column(arrays, spec.group, path, len(x))
    return _Columns(x, y, time, group)


def _check_sizes(archive: zipfile.ZipFile, names: Sequence[str], path: Path, room: int) -> None:
    """Before anything is unpacked. More than is declared never comes out of an archive."""
    wanted = {f"{name}.npy" for name in names}
    declared = sum(info.file_size for info in archive.infolist() if info.filename in wanted)
    if declared > room:
        raise JobError("data", f"{path.name} unpacks to {declared} bytes, more than the {room} that are left")


def _read(archive: zipfile.ZipFile, name: str, path: Path) -> NDArray[Any]:
    if f"{name}.npy" not in archive.namelist():
        raise JobError("data", f"{path.name} has no array {shown(name)!r}")
    size = archive.getinfo(f"{name}.npy").file_size
    with archive.open(f"{name}.npy") as stream:
        array = _read_plain(stream, size)
        if array is None:
            stream.seek(0)
            _check_header(stream, size)
            stream.seek(0)
            array = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def _check_header(stream: IO[bytes], size: int) -> None:
    """Refuse an array that is larger than its file, before NumPy takes the memory for it."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    _check_room(shape, dtype.itemsize, size)


def _check_room(shape: tuple[int, ...], item_bytes: int, size: int) -> None:
    if math.prod(shape) * item_bytes > size:
        raise ValueError("an array is cut short")


def _read_plain(stream: IO[bytes], size: int) -> NDArray[Any] | None:
    """Read an array with the header that `numpy.save` writes for numbers; None: it has another one.

    NumPy compiles each header as a Python expression, which takes a job longer than its rows.
    """
    start = stream.read(_NPY_START.size)
    if len(start) < _NPY_START.size or start[:8] != _NPY_MAGIC:
        return None
    header = _NPY_HEADER.fullmatch(stream.read(_NPY_START.unpack(start)[1]))
    if header is None:
        return None
    shape = tuple(int(n) for n in header["shape"].split(b",") if n.strip())
    dtype = header["dtype"].decode("ascii")
    _check_room(shape, int(dtype[2:]), size)
    array: NDArray[Any] = np.empty(shape, dtype)
    room, filled = array.reshape(-1).view(np.uint8).data, 0
    while filled < len(room):
        block = stream.read(min(_BLOCK_BYTES, len(room) - filled))
        if not block:
            raise ValueError("an array is cut short")
        room[filled : filled + len(block)] = block
        filled += len(block)
    return array


def _features(x: NDArray[Any], path: Path, source: Source, needs: DataNeeds | None) -> NDArray[np.float32]:
    spec = source.spec
    name, windowed = spec.features[0], spec.window is not None
    ranks = {2} if windowed else {2, 3} if needs is None else {len(needs.input_shape) + 1}
    if x.ndim not in ranks or x.dtype.kind != "f":
        kind = "(n, features, samples)" if ranks == {3} else "(n, features)"
        raise JobError("data", f"{path.name}: {name!r} is {x.dtype}{list(x.shape)}, not float32 {kind}")
    if needs is not None:
        check_shape(source, (x.shape[1], spec.window) if spec.window else x.shape[1:], needs)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, so missing
        x = np.ascontiguousarray(x, np.float32)
    infinite_is_missing(x)
    for value in _sentinels(source):
        x[x == np.float32(value)] = np.nan
    return x


def _labels(y: NDArray[Any], path: Path, source: Source, examples: int, classes: int) -> NDArray[np.int64]:
    name = source.spec.label
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise JobError("data", f"{path.name}: {name!r} is {y.dtype}{list(y.shape)}, not integers (n,)")
    if len(y) != examples:
        raise JobError("data", f"{path.name}: {examples} rows of features, but {len(y)} labels")
    sentinels = _sentinels(source)
    unlabelled = np.isin(y, sentinels) if sentinels else np.zeros(len(y), bool)
    known = y[~unlabelled] if unlabelled.any() else y
    if len(known) and not (known.min() >= 0 and known.max() < classes):
        raise JobError("data", f"{path.name}: {name!r} has labels outside 0 to {classes - 1}")
    numbers = y.astype(np.int64)
    numbers[unlabelled] = UNLABELLED
    return numbers


def _sentinels(source: Source) -> list[float]:
    return [value for value in source.spec.missing_values if not isinstance(value, str)]


def _column(arrays: dict[str, NDArray[Any]], name: str, path: Path, examples: int) -> NDArray[Any]:
    column = arrays[name]
    if column.shape != (examples,) or column.dtype.kind not in "iufU":
        raise JobError(
            "data", f"{path.name}: {name!r} is {column.dtype}{list(column.shape)}, not ({examples},)"
        )
    return column


def _times(column: NDArray[Any], path: Path, name: str) -> NDArray[np.float64]:
    read = Times(f"{path.name}: {shown(name)!r}")
    try:
        times = np.array([read.take(cell) for cell in column.tolist()], np.float64)
    except ValueError:
        raise JobError("data", f"{path.name}: {name!r} has what is no time") from None
    return times

"""The source kind `npz`: arrays that NumPy saved, never unpickled, checked before they are used."""

from __future__ import annotations

import math
import re
import resource
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fedctl_agent.sources import Source, shown
from fedctl_agent.trainers.contract import JobError, refuse
from fedctl_wire.limits import KIB, MIB

_NPY_START = struct.Struct("<8sH")  # format 1.0, and the length of the header
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[<|][fiu][1248])', 'fortran_order': False,"
    rb" 'shape': \((?P<shape>\d{1,12}, ?(\d{1,12})?)\), \} *\n"
)
_BLOCK_BYTES = 128 * KIB
_ARRAY_BYTES = 1024 * MIB

Arrays = tuple[NDArray[np.float32], NDArray[np.int64]]


def load(source: Source, *, features: int, classes: int) -> Arrays:
    """Read all files of a source, sorted by name, into one array each.

    Returns:
        x, float32 (n, features), NaN where a cell is missing or infinite; y, int64 (n,).

    Raises:
        JobError: With code `data`, naming the file; refused, `no_data`, when there are no examples.
    """
    parts, room = [], _room()
    for path in _files(source):
        parts.append(_load_file(path, source, (features, classes), room))
        room -= sum(array.nbytes for array in parts[-1])
    total = sum(len(y) for _, y in parts)
    if not total:
        raise refuse("no_data", f"source {source.name!r} holds no examples")
    if len(parts) == 1:
        return parts[0]
    x, y = np.empty((total, features), np.float32), np.empty(total, np.int64)
    end = total
    while parts:  # each part is freed once it is copied: never two whole copies
        part_x, part_y = parts.pop()
        x[end - len(part_y) : end], y[end - len(part_y) : end] = part_x, part_y
        end -= len(part_y)
    return x, y


def _room() -> int:
    """Bytes that the arrays of a source may take: what is compressed may claim any size."""
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return _ARRAY_BYTES if soft == resource.RLIM_INFINITY else min(_ARRAY_BYTES, soft)


def _files(source: Source) -> list[Path]:
    where = f"source {source.name!r}: {shown(source.path)}"
    try:
        mode = source.path.stat().st_mode
        files = sorted(source.path.glob("*.npz")) if stat.S_ISDIR(mode) else [source.path]
        odd = [path for path in files if not stat.S_ISREG(path.stat().st_mode)]
    except FileNotFoundError as error:
        raise JobError("source", f"source {source.name!r}: {shown(error.filename)} does not exist") from error
    except (OSError, ValueError) as error:  # too long a path, for one; or a zero byte in it
        cause = error.strerror if isinstance(error, OSError) else error
        raise JobError("source", f"{where} cannot be read: {cause}") from error
    if not files:
        raise refuse("no_data", f"{where} holds no .npz file")
    if odd:  # a pipe or a device would never end
        raise JobError("source", f"source {source.name!r}: {shown(odd[0])} is not a regular file")
    return files


def _load_file(path: Path, source: Source, shape: tuple[int, int], room: int) -> Arrays:
    features, classes = shape
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, source, path, room)
            x, y = (_read(archive, name, path) for name in (source.features, source.label))
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise JobError("data", f"{path.name} cannot be read: {shown(error)}") from error
    return _features(x, path, source.features, features), _labels(y, path, source.label, len(x), classes)


def _check_sizes(archive: zipfile.ZipFile, source: Source, path: Path, room: int) -> None:
    """Before anything is unpacked. More than is declared never comes out of an archive."""
    wanted = {f"{name}.npy" for name in (source.features, source.label)}
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


def _features(x: NDArray[Any], path: Path, name: str, features: int) -> NDArray[np.float32]:
    if x.ndim != 2 or x.dtype.kind != "f":
        raise JobError(
            "data", f"{path.name}: {name!r} is {x.dtype}{list(x.shape)}, not float32 (n, features)"
        )
    if x.shape[1] != features:
        raise JobError("data", f"{path.name}: {name!r} has {x.shape[1]} features, the model takes {features}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, so missing
        x = np.ascontiguousarray(x, np.float32)
    x[np.isinf(x)] = np.nan
    return x


def _labels(y: NDArray[Any], path: Path, name: str, examples: int, classes: int) -> NDArray[np.int64]:
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise JobError("data", f"{path.name}: {name!r} is {y.dtype}{list(y.shape)}, not integers (n,)")
    if len(y) != examples:
        raise JobError("data", f"{path.name}: {examples} rows of features, but {len(y)} labels")
    if len(y) and not (y.min() >= 0 and y.max() < classes):
        raise JobError("data", f"{path.name}: {name!r} has labels outside 0 to {classes - 1}")
    return y.astype(np.int64)

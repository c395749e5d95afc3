"""The shape of an array in an .npz file from its header alone, without NumPy."""

from __future__ import annotations

import re
import zipfile
import zlib

from fedctl_agent.sources.files import data_files
from fedctl_agent.sources.source import Source
from fedctl_agent.trainers.contract import JobError
from fedctl_wire.limits import KIB
from fedctl_wire.sources import shown

ENDING = ".npz"
_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # by the format's major version
_MOST_HEADER_BYTES = 64 * KIB
_SHAPE = re.compile(rb"'shape': \(([0-9, ]{0,100})\)")


def shape(source: Source) -> tuple[int, ...] | None:
    """The shape of one example, by the last file; see `SourceKind`."""
    path = data_files(source, ENDING)[-1]
    name = source.spec.features[0]
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                raise JobError("data", f"{path.name} has no array {shown(name)!r}")
            with archive.open(f"{name}.npy") as stream:
                start = stream.read(8)
                length = stream.read(_LENGTH_BYTES.get(start[6] if start[:6] == _MAGIC else 0, 0))
                header = stream.read(min(int.from_bytes(length, "little"), _MOST_HEADER_BYTES))
    except (OSError, EOFError, ValueError, RuntimeError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        raise JobError("data", f"{path.name} cannot be read: {shown(error)}") from error
    found = _SHAPE.search(header)
    if found is None:
        raise JobError("data", f"{path.name}: {shown(name)!r} is no array of numbers")
    sizes = tuple(int(part) for part in found[1].split(b",") if part.strip())
    if source.spec.window is not None and len(sizes) == 2:
        return (sizes[1], source.spec.window)
    return sizes[1:] if len(sizes) > 1 else None

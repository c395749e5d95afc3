"""From the devices' sums per feature to the scaling in a bundle; plain floats, no NumPy."""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedctl_wire.errors import WireError
from fedctl_wire.manifest import Preprocessing
from fedctl_wire.tensors import layout, read_header

STD_FLOOR = 1e-6  # a feature that never changes must not be divided by 0
CLIP = 8.0  # standard deviations
_TENSORS = ("count", "sum", "sumsq")


@dataclass(frozen=True, slots=True)
class Sums:
    """Count, sum and sum of squares per feature over present cells, each (features,)."""

    count: Sequence[float]
    total: Sequence[float]
    squares: Sequence[float]


def read_sums(path: Path, *, features: int) -> Sums:
    """Read the result file of a `stats` task.

    Raises:
        WireError: When it is malformed, of another shape, or holds numbers that are no sums.
    """
    expected = layout([(name, "F64", (features,)) for name in _TENSORS])
    with path.open("rb") as stream:
        header = read_header(stream, total_bytes=path.stat().st_size, what=path.name)
        if header.tensors != expected:
            raise WireError(f"{path.name} does not hold the sums of {features} features", code="shape")
        columns = [array.array("d", stream.read(info.end - info.begin)) for info in expected]
    if sys.byteorder == "big":  # the file is little-endian
        for column in columns:
            column.byteswap()
    sums = Sums(*columns)
    for cells, total, squares in zip(*columns, strict=True):
        if not (math.isfinite(total) and math.isfinite(squares) and 0 <= cells < 1 << 53 and squares >= 0):
            raise WireError(f"{path.name} holds numbers that are no sums", subject=path.name)
    return sums


def scaling_from(parts: Iterable[Sums]) -> Preprocessing:
    """Add the devices' sums in the order given and derive mean and standard deviation.

    A feature that is present nowhere gets mean 0 and deviation 1. The same parts in the same order
    give the same bytes.

    Args:
        parts: At least one, all of the same number of features; order them by device name.
    """
    count, total, squares = (list(column) for column in _added(parts))
    mean = [s / n if n else 0.0 for s, n in zip(total, count, strict=True)]
    std = [
        max(math.sqrt(max(q / n - m * m, 0.0)), STD_FLOOR) if n else 1.0
        for q, n, m in zip(squares, count, mean, strict=True)
    ]
    return Preprocessing(tuple(mean), tuple(std), CLIP)


def _added(parts: Iterable[Sums]) -> tuple[list[float], list[float], list[float]]:
    first, *rest = parts
    columns = list(first.count), list(first.total), list(first.squares)
    for part in rest:
        for column, more in zip(columns, (part.count, part.total, part.squares), strict=True):
            column[:] = map(float.__add__, column, map(float, more))
    return columns

"""Scaling from the sums of the `stats` tasks: nobody's readings, only counts, sums and sums of squares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl.core.errors import DeviceError, unreadable
from fedctl.core.scaling import scaling_of
from fedctl_wire.errors import WireError
from fedctl_wire.manifest import Preprocessing
from fedctl_wire.tensors import TensorInfo, layout, read_file_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SUMS = ("count", "sum", "sumsq")


def stats_layout(features: int) -> tuple[TensorInfo, ...]:
    """The tensors of a `stats` result: float64 `count`, `sum`, `sumsq`, each (features,)."""
    return layout([(name, "F64", (features,)) for name in _SUMS])


def scaling_from_stats(results: Mapping[str, Path], features: int) -> Preprocessing:
    """Mean and standard deviation per feature over all devices' present cells.

    Added in float64 in device order, so that the same results give the same bits.

    Args:
        results: Device name to its checked `stats` result.
        features: Of one example.

    Raises:
        DeviceError: `stats`, when a device's sums cannot be those of any data.
        ConfigError: When a file is missing.
    """
    import numpy as np

    totals = np.zeros((len(_SUMS), features))
    for device, path in sorted(results.items()):
        totals += _read_sums(device, path, features)
    return scaling_of(*totals.tolist())


def _read_sums(device: str, path: Path, features: int) -> NDArray[np.float64]:
    import numpy as np

    try:
        header = read_file_header(path)
        with path.open("rb") as stream:
            stream.seek(header.data_start)
            data = stream.read(header.data_bytes)
    except OSError as error:
        raise unreadable(path, error) from error
    except WireError as error:
        raise _impossible(device, str(error)) from error
    if header.tensors != stats_layout(features):
        raise _impossible(device, f"they are not count, sum and sumsq of {features} features")
    sums = np.frombuffer(data, dtype="<f8").reshape(len(_SUMS), features)
    count, total, squares = sums
    if not np.isfinite(sums).all() or (count < 0).any() or (squares < 0).any():
        raise _impossible(device, "a count or sum of squares is negative or not finite")
    # Cauchy and Schwarz; the slack is for the rounding of sums over millions of cells.
    if (total * total > count * squares * (1 + 1e-6)).any():
        raise _impossible(device, "a sum is larger than its sum of squares allows")
    return sums


def _impossible(device: str, why: str) -> DeviceError:
    return DeviceError(f"the sums of {device} cannot be right: {why}", subject=device, code="stats")

"""How fast 50 client updates of 10 MB become the next model, and in how much memory.

Run: python benchmarks/aggregation.py
The last line is one JSON object: `ratio_to_read_add` is the time of reading the same files and adding
them up in float32, divided by ours (medians of alternating runs; the files are in the page cache);
`peak_mib` is VmHWM of a fresh process that does nothing else; `identical` says whether several orders
of arrival gave the same bytes on heavy-tailed values.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedctl.aggregation.fedavg import Update, aggregate
from fedctl_wire.manifest import BUNDLE_FILES, BundleFile, Manifest, TensorSpec
from fedctl_wire.messages import TrainSettings
from fedctl_wire.names import Name
from fedctl_wire.tensors import TensorInfo, header_bytes, read_file_header

UPDATES = 50
TENSORS = (("w1", (1200, 2000)), ("b1", (2000,)), ("w2", (2000, 49)))  # 2.5 million float32, 10 MB
REPEATS = 7
ORDERS = 5
BLOCK = 64 * 1024  # float32 values that the plain reader takes at a time


def model() -> Manifest:
    return Manifest(
        model=Name("bench"),
        model_version=1,
        builder="mlp",
        input_shape=(1200,),
        classes=49,
        tensors=tuple(TensorSpec(name, shape) for name, shape in TENSORS),
        files={name: BundleFile("0" * 64, 0) for name in BUNDLE_FILES},
        operators=(),
        defaults=TrainSettings(lr=0.1),
    )


def values_of(number: int) -> np.ndarray:
    """Heavy-tailed values of one update; each odd one takes back what is large in the one before.

    What is left is so much smaller than what was added that any change of the order of adding shows:
    with Gaussian values even a sum that depends on its order looks exact.
    """
    rng = np.random.default_rng(number)
    count = model().update_layout()[-1].end // 4
    values = rng.standard_cauchy(count).astype("<f4") ** 3
    if number % 2:
        before = values_of(number - 1)
        large = np.abs(before) > 1
        values[large] = -before[large]
    return values


def write_file(path: Path, layout: tuple[TensorInfo, ...], values: np.ndarray) -> None:
    path.write_bytes(header_bytes(layout) + values.tobytes())


def read_and_add(paths: list[Path]) -> None:
    """The floor: the same bytes, the same blocks, a float32 sum that stays in memory."""
    starts = [read_file_header(path).data_start for path in paths]
    files = [path.open("rb", buffering=0) for path in paths]
    values = (paths[0].stat().st_size - starts[0]) // 4
    block, total = np.empty(BLOCK, dtype="<f4"), np.zeros(values, dtype="<f4")
    for begin in range(0, values, BLOCK):
        part = total[begin : begin + BLOCK]
        for file, start in zip(files, starts, strict=True):
            file.seek(start + begin * 4)
            file.readinto(block[: len(part)].data)
            part += block[: len(part)]
    for file in files:
        file.close()


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def updates_in(directory: Path) -> list[Update]:
    return [Update(f"d{i:02}", directory / f"d{i:02}", weight=20.0 + i // 2) for i in range(UPDATES)]


def peak_mib(directory: Path) -> float:
    """VmHWM of a fresh interpreter that aggregates the files in `directory`."""
    command = [sys.executable, __file__, "--aggregate-only", str(directory)]
    status = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def aggregate_only(directory: Path) -> None:
    aggregate(directory / "base", updates_in(directory), directory / "peak", model())
    print(Path("/proc/self/status").read_text())


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory, manifest = Path(name), model()
        updates = updates_in(directory)
        paths = [update.path for update in updates]
        layout = manifest.update_layout()
        write_file(directory / "base", layout, np.zeros(layout[-1].end // 4, dtype="<f4"))
        for number, path in enumerate(paths):
            write_file(path, layout, values_of(number))
        out = directory / "out"
        plain, ours, digests = [], [], set()
        for repeat in range(REPEATS + 1):
            random.Random(repeat).shuffle(updates)  # arrival
            timed = (
                seconds(lambda: read_and_add(paths)),
                seconds(lambda: aggregate(directory / "base", updates, out, manifest)),
            )
            if repeat:  # the first run warms the page cache
                plain.append(timed[0])
                ours.append(timed[1])
            if repeat < ORDERS:
                digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
        plain_s, ours_s = statistics.median(plain), statistics.median(ours)
        print(
            json.dumps(
                {
                    "ratio_to_read_add": round(plain_s / ours_s, 2),
                    "peak_mib": round(peak_mib(directory), 1),
                    "aggregate_s": round(ours_s, 3),
                    "read_add_s": round(plain_s, 3),
                    "identical": len(digests) == 1,
                }
            )
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--aggregate-only"]:
        aggregate_only(Path(sys.argv[2]))
    else:
        main()

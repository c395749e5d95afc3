"""What a round costs beside the training itself: ten local agents, a model of 1 MB, an empty training step.

    python benchmarks/round_overhead.py [--devices 10] [--holdout 2] [--rounds 10]

Each device holds 25 rows and trains for no epoch: its `train` job reads the model and writes, hashes, signs
and fsyncs an update of zeros, and its `evaluate` job measures base and candidate on 5 rows. The last line is
one JSON object: `cold_s` (a first command of one round, wall clock: push, golden run and the start of the
workers included), `warm_s` (median of the rounds of one later command) and `cpu_ms_per_device` (a round of
that command: daemon, worker and jobs, mean over all devices, without the workstation). `with_holdout` has
the same of a second fleet of that size in which some devices only evaluate and the others only train.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil
from local_fleet import local_fleet

from fedctl.core.home import Home
from fedctl.core.plan import RoundWishes
from fedctl.core.progress import RoundEnded
from fedctl.core.selector import Selector
from fedctl.ops import rounds as round_ops
from fedctl.ops.models import NewModel, create
from fedctl.store import Store
from fedctl_wire.messages import TrainSettings

MODEL = "weight"
ROWS = 25
FEATURES = 24
HIDDEN = 9259  # 27 parameters a unit: 1.0 MB of float32
SOURCE = 'kind = "npz"\npath = {path}\nfeatures = "x"\nlabel = "y"\ntest_fraction = 0.2\n'


def main() -> None:
    parser = argparse.ArgumentParser(description="What a round costs beside the training itself.")
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--holdout", type=int, default=2, help="of the second fleet, how many only evaluate")
    parser.add_argument("--rounds", type=int, default=10, help="warm ones")
    options = parser.parse_args()
    found = []
    for holdout in (0, options.holdout):
        with tempfile.TemporaryDirectory() as directory:
            found.append(measure(Path(directory), options.devices, holdout, options.rounds))
    print(json.dumps({**found[0], "with_holdout": found[1]}))


def measure(directory: Path, devices: int, holdout: int, rounds: int) -> dict[str, float]:
    sources = {name: source(directory, name, seed) for seed, name in enumerate(names(devices))}
    labels = {name: {"role": "holdout"} for name in names(holdout)}
    with local_fleet(directory, sources, labels) as (home, pids), Store.open(home) as store:
        model = NewModel(
            name=MODEL,
            builder="mlp",
            input_shape=(FEATURES,),
            hidden=(HIDDEN,),
            classes=2,
            scale="none",
            settings=TrainSettings(lr=1e-4, local_epochs=0, batch_size=32),
        )
        create(store, home, model)

        (cold,) = run_rounds(store, home, devices - holdout, 1)
        before = cpu_s(pids.values())
        warm = run_rounds(store, home, devices - holdout, rounds)
        used = cpu_s(pids.values()) - before
    print("warm rounds:", " ".join(f"{seconds:.3f}" for seconds in warm), "s")
    return {
        "warm_s": round(statistics.median(warm), 3),
        "cold_s": round(cold, 3),
        "cpu_ms_per_device": round(1000 * used / rounds / devices, 1),
    }


def run_rounds(store: Store, home: Home, train: int, rounds: int) -> list[float]:
    """One command; returns each round's wall-clock seconds, the first with the connections it makes."""
    marks = [time.monotonic()]

    def observe(event: object) -> None:
        if isinstance(event, RoundEnded):
            marks.append(time.monotonic())

    wishes = RoundWishes(quorum=train, tolerance=1.0)
    selector = Selector.parse((), ())
    run = round_ops.start(store, home, MODEL, selector, wishes=wishes, rounds=rounds, observer=observe)
    for summary in run.rounds:
        assert summary.phase == "published", summary.reason
        assert summary.contributors == train, summary.dropped
    assert len(marks) == rounds + 1
    return [end - start for start, end in itertools.pairwise(marks)]


def names(devices: int) -> list[str]:
    return [f"dev-{number:02d}" for number in range(1, devices + 1)]


def source(directory: Path, name: str, seed: int) -> str:
    """Write a device's rows; returns its source file."""
    rng = np.random.default_rng(seed)
    path = directory / f"{name}.npz"
    np.savez(
        path,
        x=rng.normal(size=(ROWS, FEATURES)).astype(np.float32),
        y=rng.integers(0, 2, ROWS).astype(np.uint8),
    )
    return SOURCE.format(path=json.dumps(str(path)))


def cpu_s(daemons: Iterable[int]) -> float:
    """Processor time of the daemons and all their descendants, those that ended included."""
    total = 0
    for daemon in daemons:
        process = psutil.Process(daemon)
        for pid in (daemon, *(child.pid for child in process.children(recursive=True))):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return total / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

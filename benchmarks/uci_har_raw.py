"""Accuracy of federated training on UCI HAR's raw signals: a 1-D CNN over windows of nine channels.

    FEDCTL_TEST_DATA=DIR python benchmarks/uci_har_raw.py [--rounds 50] [--seeds 0]

Thirty real agents, one person each: 21 train, the official nine take no part and evaluate. Windows of 9
channels and 128 samples, scaled by channel by what the `stats` task adds up; convolutions of 16 and 32
channels, kernel 5, each followed by a maximum over 2, then one dense layer: 9,478 parameters. SGD with lr
0.05, momentum 0.5, batch 32 and 2 local epochs. The last line is one JSON object: `accuracy` (mean over
seeds, after the last round, over all windows of the nine), and beside it `macro_f1`, `accuracy_by_seed`,
`first_round_at_88` (of each seed), `rounds` and `seconds`.

Data: "Human Activity Recognition Using Smartphones", UCI id 240, https://archive.ics.uci.edu/dataset/240,
one `uci_har/person_NN.npz` a person with `x_raw_i16` int16 (n, 9, 128), in 1/4096 g or rad/s, and `y`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from local_fleet import local_fleet

from fedctl.core.plan import RoundWishes
from fedctl.core.round_records import RoundSummary
from fedctl.core.selector import Selector
from fedctl.models import Convolutions
from fedctl.ops import rounds as round_ops
from fedctl.ops.models import NewModel, create
from fedctl.store import Store
from fedctl_wire.messages import TrainSettings

HOLDOUT = {2, 4, 9, 10, 12, 13, 18, 20, 24}
PEOPLE = range(1, 31)
MODEL = "har"
UNIT = np.float32(1 / 4096)
SOURCE = 'kind = "npz"\npath = {path}\nfeatures = "x"\nlabel = "y"\ntest_fraction = 0.0\n'
SETTINGS = TrainSettings(lr=0.05, momentum=0.5, local_epochs=2, batch_size=32)
GOAL = 0.88


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of federated training on UCI HAR's raw signals.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seeds", default="0")
    options = parser.parse_args()
    data = Path(os.environ.get("FEDCTL_TEST_DATA", "")) / "uci_har"
    if not os.environ.get("FEDCTL_TEST_DATA") or not data.is_dir():
        sys.exit("set FEDCTL_TEST_DATA to a directory with uci_har/, see this file's first lines")
    began = time.monotonic()
    runs = {}
    for seed in options.seeds.split(","):
        with tempfile.TemporaryDirectory() as directory:
            runs[seed] = run(Path(directory), data.resolve(), rounds=options.rounds, seed=int(seed))
    accuracy = {seed: round(done[-1].accuracy or 0.0, 4) for seed, done in runs.items()}
    f1 = [done[-1].macro_f1 or 0.0 for done in runs.values()]
    figures = {
        "accuracy": round(sum(accuracy.values()) / len(accuracy), 4),
        "macro_f1": round(sum(f1) / len(f1), 4),
        "accuracy_by_seed": accuracy,
        "first_round_at_88": {seed: first_at(done) for seed, done in runs.items()},
        "rounds": options.rounds,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(figures))


def run(directory: Path, data: Path, *, rounds: int, seed: int) -> list[RoundSummary]:
    """The rounds of one fleet, each measured over the nine people's windows."""
    names = {number: f"person-{number:02d}" for number in PEOPLE}
    sources = {
        name: SOURCE.format(path=json.dumps(str(directory / f"{name}.npz"))) for name in names.values()
    }
    labels = {name: {"role": "holdout" if number in HOLDOUT else "train"} for number, name in names.items()}
    for number, name in names.items():
        with np.load(data / f"person_{number:02d}.npz") as person:
            np.savez(directory / f"{name}.npz", x=person["x_raw_i16"] * UNIT, y=person["y"])
    model = NewModel(
        name=MODEL,
        builder="cnn",
        input_shape=(9, 128),
        window=Convolutions(channels=(16, 32), kernel=5, pool=2),
        classes=6,
        seed=seed,
        settings=SETTINGS,
    )
    with local_fleet(directory, sources, labels) as (home, _), Store.open(home) as store:
        create(store, home, model)
        wishes = RoundWishes(seed=seed, deadline_s=300.0)
        done = list(
            round_ops.start(store, home, MODEL, Selector.parse((), ()), wishes=wishes, rounds=rounds).rounds
        )
    for number, summary in enumerate(done, 1):
        print(f"seed {seed}  round {number:2}  loss {summary.loss:.4f}  accuracy {summary.accuracy:.4f}")
    assert done[-1].phase == "published", done[-1].reason
    assert len(done) == rounds
    return done


def first_at(done: list[RoundSummary]) -> int | None:
    """The number of the first round that reached the goal."""
    return next((n for n, summary in enumerate(done, 1) if (summary.accuracy or 0.0) >= GOAL), None)


if __name__ == "__main__":
    main()

"""Accuracy of federated training on UCI HAR: 21 people train, the official nine take no part.

    FEDCTL_TEST_DATA=DIR python benchmarks/uci_har.py [--rounds 20] [--seeds 0,1,2]

Thirty real agents, one person each, `test_fraction` 0; MLP 237-64-6, scaled by what the `stats` task adds
up; SGD with lr 0.05, batch 32 and 2 local epochs. The last line is one JSON object: `accuracy_mean`,
`accuracy_by_seed` (after the last round, over all windows of the nine), and beside them `rounds` and
`seconds`.

Data: "Human Activity Recognition Using Smartphones", UCI id 240, https://archive.ics.uci.edu/dataset/240,
one `uci_har/person_NN.npz` a person with `x_feat` float32 (n, 237) and `y` uint8 (n,).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from local_fleet import local_fleet

from fedctl.core.plan import RoundWishes
from fedctl.core.selector import Selector
from fedctl.ops import rounds as round_ops
from fedctl.ops.models import NewModel, create
from fedctl.store import Store
from fedctl_wire.messages import TrainSettings

HOLDOUT = {2, 4, 9, 10, 12, 13, 18, 20, 24}
PEOPLE = range(1, 31)
MODEL = "har"
SOURCE = 'kind = "npz"\npath = {path}\nfeatures = "x_feat"\nlabel = "y"\ntest_fraction = 0.0\n'
SETTINGS = TrainSettings(lr=0.05, momentum=0.0, local_epochs=2, batch_size=32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of federated training on UCI HAR.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    data = Path(os.environ.get("FEDCTL_TEST_DATA", "")) / "uci_har"
    if not os.environ.get("FEDCTL_TEST_DATA") or not data.is_dir():
        sys.exit("set FEDCTL_TEST_DATA to a directory with uci_har/, see this file's first lines")
    began = time.monotonic()
    accuracy = {}
    for seed in map(int, options.seeds.split(",")):
        with tempfile.TemporaryDirectory() as directory:
            accuracy[str(seed)] = run(Path(directory), data.resolve(), rounds=options.rounds, seed=seed)
    figures = {
        "accuracy_mean": round(sum(accuracy.values()) / len(accuracy), 4),
        "accuracy_by_seed": accuracy,
        "rounds": options.rounds,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(figures))


def run(directory: Path, data: Path, *, rounds: int, seed: int) -> float:
    """Accuracy over the nine people's windows after the last round."""
    names = {number: f"person-{number:02d}" for number in PEOPLE}
    sources = {
        name: SOURCE.format(path=json.dumps(str(data / f"person_{number:02d}.npz")))
        for number, name in names.items()
    }
    labels = {name: {"role": "holdout" if number in HOLDOUT else "train"} for number, name in names.items()}
    model = NewModel(
        name=MODEL,
        builder="mlp",
        input_shape=(237,),
        hidden=(64,),
        classes=6,
        seed=seed,
        settings=SETTINGS,
    )
    with local_fleet(directory, sources, labels) as (home, _), Store.open(home) as store:
        create(store, home, model)
        wishes = RoundWishes(seed=seed, deadline_s=120.0)
        done = round_ops.start(
            store, home, MODEL, Selector.parse((), ()), wishes=wishes, rounds=rounds
        ).rounds
    for number, summary in enumerate(done, 1):
        print(f"seed {seed}  round {number:2}  loss {summary.loss:.4f}  accuracy {summary.accuracy:.4f}")
    last = done[-1]
    assert last.phase == "published", last.reason
    assert len(done) == rounds
    assert last.accuracy is not None
    return round(last.accuracy, 4)


if __name__ == "__main__":
    main()

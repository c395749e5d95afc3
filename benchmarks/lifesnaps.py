"""AUROC of federated training on LifeSnaps: is today a day of elevated resting heart rate?

    FEDCTL_TEST_DATA=DIR python benchmarks/lifesnaps.py [--rounds 30] [--splits 0,1,2,3,4]

For each of the five splits 62 real agents, one person each: 45 train, 17 take no part and evaluate.
Logistic regression, 134 parameters; 1 local epoch, batch 16, lr 0.02, weight decay 1e-3; the features are
scaled within each person already, so the model scales nothing. The last line is one JSON object:
`auroc_mean` (over the splits, after the last round, over all days of a split's 17 people), and beside it
`auroc_by_split`, `rounds` and `seconds`.

Data: LifeSnaps (Yfantidou et al. 2022, doi 10.1038/s41597-022-01764-x), one `lifesnaps/person_NN.npz` a
person with `x` float32 (n, 66) and `y` uint8 (n,), and `lifesnaps/splits.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from local_fleet import local_fleet

from fedctl.core.plan import RoundWishes
from fedctl.core.selector import Selector
from fedctl.ops import rounds as round_ops
from fedctl.ops.models import NewModel, create
from fedctl.store import Store
from fedctl_wire.messages import TrainSettings

MODEL = "rhr"
SOURCE = 'kind = "npz"\npath = {path}\nfeatures = "x"\nlabel = "y"\ntest_fraction = 0.0\n'
SETTINGS = TrainSettings(lr=0.02, local_epochs=1, batch_size=16, weight_decay=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description="AUROC of federated training on LifeSnaps.")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--splits", default="0,1,2,3,4")
    options = parser.parse_args()
    data = Path(os.environ.get("FEDCTL_TEST_DATA", "")) / "lifesnaps"
    if not os.environ.get("FEDCTL_TEST_DATA") or not data.is_dir():
        sys.exit("set FEDCTL_TEST_DATA to a directory with lifesnaps/, see this file's first lines")
    splits = json.loads((data / "splits.json").read_text())["splits"]
    began = time.monotonic()
    auroc = {}
    for number in map(int, options.splits.split(",")):
        with tempfile.TemporaryDirectory() as directory:
            auroc[str(number)] = run(Path(directory), data.resolve(), splits[number], rounds=options.rounds)
    figures = {
        "auroc_mean": round(sum(auroc.values()) / len(auroc), 4),
        "auroc_by_split": auroc,
        "rounds": options.rounds,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(figures))


def run(directory: Path, data: Path, split: dict[str, Any], *, rounds: int) -> float:
    """AUROC over all days of the people who take no part, after the last round."""
    people = {f"person-{number:02d}": number for number in (*split["train"], *split["test"])}
    sources = {
        name: SOURCE.format(path=json.dumps(str(data / f"person_{number:02d}.npz")))
        for name, number in people.items()
    }
    unseen = set(split["test"])
    labels = {name: {"role": "holdout" if number in unseen else "train"} for name, number in people.items()}
    model = NewModel(
        name=MODEL,
        builder="logreg",
        input_shape=(66,),
        classes=2,
        scale="none",
        seed=split["split"],
        settings=SETTINGS,
    )
    with local_fleet(directory, sources, labels) as (home, _), Store.open(home) as store:
        create(store, home, model)
        wishes = RoundWishes(seed=split["split"], deadline_s=120.0)
        done = round_ops.start(
            store, home, MODEL, Selector.parse((), ()), wishes=wishes, rounds=rounds
        ).rounds
    for number, summary in enumerate(done, 1):
        print(f"split {split['split']}  round {number:2}  loss {summary.loss:.4f}  AUROC {summary.auroc:.4f}")
    last = done[-1]
    assert last.phase == "published", last.reason
    assert len(done) == rounds
    assert not last.dropped, last.dropped
    assert last.auroc is not None
    return round(last.auroc, 4)


if __name__ == "__main__":
    main()

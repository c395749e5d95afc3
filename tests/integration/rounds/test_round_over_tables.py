"""Rounds over text files and databases that lack cells and classes, and with a device that does not fit."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fleet import FEATURES, MODEL, TestAgent, TestFleet, fleet

NAMES = [f"f{i}" for i in range(FEATURES)]
SOURCE = f'path = "../watch"\nfeatures = {json.dumps(NAMES)}\nlabel = "y"\ntest_fraction = 0.0\n'


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[TestFleet]:
    """dev-1: text, cells missing; dev-2: a database, one class; dev-3: 20 rows; dev-4: other columns."""
    with fleet(tmp_path, train=5, holdout=1) as ready:
        with_csv(ready.agents["dev-1"], rows(150, seed=1, missing=0.3))
        with_sqlite(ready.agents["dev-2"], [row for row in rows(200, seed=2) if row[-1]])
        with_csv(ready.agents["dev-3"], rows(20, seed=3))
        with_csv(ready.agents["dev-4"], rows(150, seed=4))
        toml = ready.agents["dev-4"].state / "sources" / "recorder.toml"
        toml.write_text(toml.read_text().replace('"f5"', '"f5", "f6"'))
        yield ready


def rows(count: int, *, seed: int, missing: float = 0.0) -> list[list[Any]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, FEATURES))
    y = (x[:, 0] - x[:, 1] > 0).astype(int)
    hidden = rng.random(x.shape) < missing
    return [
        [None if hide else float(cell) for cell, hide in zip(cells, gone, strict=True)] + [int(label)]
        for cells, gone, label in zip(x, hidden, y, strict=True)
    ]


def with_csv(agent: TestAgent, table: list[list[Any]], order: list[str] | None = None) -> None:
    """Write a table; `order` is that of the columns in the file and in what the source file lists."""
    watch = agent.state / "watch"
    watch.mkdir()
    with (watch / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*(order or NAMES), "y"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(dict(zip([*NAMES, "y"], row, strict=True)) for row in table)
    listed = SOURCE.replace(json.dumps(NAMES), json.dumps(order or NAMES))
    (agent.state / "sources" / "recorder.toml").write_text('kind = "csv"\n' + listed)


def with_sqlite(agent: TestAgent, table: list[list[Any]]) -> None:
    recorder = sqlite3.connect(agent.state / "watch")
    recorder.execute(f"CREATE TABLE beats ({', '.join([*NAMES, 'y'])})")
    recorder.executemany(f"INSERT INTO beats VALUES ({','.join('?' * (FEATURES + 1))})", table)  # noqa: S608
    recorder.commit()
    recorder.close()
    (agent.state / "sources" / "recorder.toml").write_text('kind = "sqlite"\ntable = "beats"\n' + SOURCE)


def test_who_fits_trains_and_who_does_not_declines(odd: TestFleet) -> None:
    done = odd.cli("round", "start", MODEL, "--rounds", "2", "--quorum", "4", "-o", "json", timeout_s=120)
    assert done.returncode == 0, done.stderr
    shown = odd.cli("round", "show", "2", "-o", "json")
    devices = {device["device"]: device for device in json.loads(shown.stdout)["devices"]}
    assert {name for name, device in devices.items() if device["stage"] == "aggregated"} == {
        "dev-1", "dev-2", "dev-3", "dev-5",
    }  # fmt: skip
    assert devices["dev-4"]["stage"] == "dropped"
    assert "gives 7 features, the model takes 6 features" in devices["dev-4"]["reason"]
    state = odd.agents["dev-4"].state  # which declined before it was sent a byte of the model
    assert not [*(state / "models").iterdir(), *(state / "blobs").iterdir()]
    assert devices["dev-3"]["examples"] == 20
    published = np.frombuffer(
        (odd.home.bundle(MODEL, 3) / "weights.safetensors").read_bytes()[-64:], np.float32
    )
    assert np.isfinite(published).all()


def test_columns_are_the_models_whatever_order_a_device_lists_them_in(tmp_path: Path) -> None:
    orders = {"dev-1": NAMES, "dev-2": NAMES[::-1], "dev-3": NAMES[:5], "dev-4": NAMES[3:] + NAMES[:3]}
    mixed = published(tmp_path / "mixed", orders)
    sorted_ = published(tmp_path / "sorted", {**orders, "dev-2": NAMES, "dev-4": NAMES})
    assert mixed == sorted_


def published(path: Path, orders: dict[str, list[str]]) -> bytes:
    """The weights after two rounds of a model that names its columns; dev-3 lacks one of them."""
    path.mkdir()
    with fleet(path, train=3, holdout=1) as ready:
        for seed, (name, order) in enumerate(orders.items()):
            with_csv(ready.agents[name], rows(150, seed=seed), order)
        words = ["--columns", ",".join(NAMES), "--hidden", "8", "--classes", "2"]
        made = ready.cli("model", "create", "named", *words)
        assert made.returncode == 0, made.stderr
        checked = ready.cli("data", "check", "--model", "named")
        assert "does not fit named@1: it lacks f5" in checked.stdout
        done = ready.cli(
            "round", "start", "named", "--rounds", "2", "--seed", "3", "--quorum", "2", timeout_s=120
        )
        assert done.returncode == 0, done.stderr
        shown = json.loads(ready.cli("round", "show", "2", "-o", "json").stdout)
        reasons = {d["device"]: d["reason"] for d in shown["devices"] if d["stage"] == "dropped"}
        assert list(reasons) == ["dev-3"]
        assert "lacks the features f5, which the model takes" in reasons["dev-3"]
        kept = json.loads(ready.cli("model", "show", "named", "-o", "json").stdout)["manifest"]
        assert (kept["model_version"], kept["columns"]) == (4, NAMES)
        weights: bytes = (ready.home.bundle("named", 4) / "weights.safetensors").read_bytes()
        return weights

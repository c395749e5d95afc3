"""Jobs over tables as they are: missing cells and classes, constant columns, tiny devices, real people."""

from __future__ import annotations

import csv
import gzip
import os
import sqlite3
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedctl.models import Convolutions, build
from fedctl_agent.sources import load, read_source
from fedctl_agent.trainers import run
from fedctl_agent.trainers.tensorfile import read_tensors
from fedctl_wire.manifest import Preprocessing
from fedctl_wire.messages import DataNeeds, TaskKind
from tests.unit.trainers.jobs import SETTINGS, Bench, write_bundle

SOURCE = 'kind = "csv"\npath = "../data"\nfeatures = ["a", "b", "c"]\nlabel = "y"\n'
SCALING = Preprocessing((2.0, 2.0, 2.0), (5.0, 5.0, 5.0))
DATA = Path(os.environ.get("FEDCTL_TEST_DATA", "/nonexistent"))
real = pytest.mark.skipif(
    not (DATA / "lifesnaps").is_dir() or not (DATA / "uci_har").is_dir(),
    reason="set FEDCTL_TEST_DATA to a directory with uci_har/ and lifesnaps/",
)


def table(rows: int, kind: str) -> list[list[Any]]:
    rng = np.random.default_rng(5)
    lines: list[list[Any]] = []
    for _ in range(rows):
        cells: list[Any] = rng.normal(2, 5, 3).round(3).tolist()
        y: Any = int(cells[0] > cells[1])
        if kind == "missing cells":
            cells = [None if rng.random() < 0.4 else cell for cell in cells]
        if kind == "no cell at all":
            cells = [None] * 3
        if kind == "an empty column":
            cells[1] = ""
        if kind == "a constant column":
            cells[1] = 7.7
        if kind == "a missing class":
            y = 1
        if kind == "huge":
            cells[1] *= 1e37
        lines.append([*cells, y])
    return lines


@pytest.mark.parametrize("scale", ["none", "person"])
@pytest.mark.parametrize("rows", [1, 2, 60])
@pytest.mark.parametrize(
    "kind",
    [
        "whole",
        "missing cells",
        "no cell at all",
        "an empty column",
        "a constant column",
        "a missing class",
        "huge",
    ],
)
def test_whatever_the_table_lacks_no_figure_is_lost(bench: Bench, kind: str, rows: int, scale: str) -> None:
    bench.source(SOURCE + f'scale = "{scale}"\ntest_fraction = 0.1\n')
    with (bench.data / "a.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["a", "b", "c", "y"], *table(rows, kind)])
    bench.manifest = write_bundle(bench.root / "model", bench.built, scaling=SCALING)
    jobs = (
        (TaskKind.STATS, {}),
        (TaskKind.TRAIN, {"settings": replace(SETTINGS, lr=0.01)}),
        (TaskKind.EVALUATE, {"holdout": ["someone"]}),
    )
    for task, changes in jobs:
        outcome = run(bench.context(task, policy_min_examples=1, **changes))
        assert outcome.examples in {rows, rows - int(rows * 0.1)}
        if outcome.candidate is not None:
            assert np.isfinite(outcome.candidate.loss_sum)
        else:
            arrays = read_tensors(bench.root / "result.safetensors")
            assert all(np.isfinite(array).all() for array in arrays.values())
            assert outcome.loss is None or np.isfinite(outcome.loss)


# ------------------------------------------------------------------ real people


@real
@pytest.mark.parametrize("person", [0, 3, 17])  # 3 has no labelled day
def test_a_wristbands_days_from_text_files(bench: Bench, person: int) -> None:
    held = np.load(DATA / "lifesnaps" / f"person_{person:02d}.npz")
    with gzip.open(DATA / "lifesnaps" / f"person_{person:02d}.csv.gz", "rt", newline="") as stream:
        header, *rows = csv.reader(stream)
    first = date.fromisoformat(rows[0][0])
    labels = {str(first + timedelta(int(day))): int(y) for day, y in zip(held["day"], held["y"], strict=True)}
    with (bench.data / "days.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*header, "anomaly"])
        writer.writerows([*row, labels.get(row[0], "")] for row in reversed(rows))
    names = [name for name in header if name not in {"date", "resting_hr"}]
    quoted = str(names).replace("'", '"')
    settings = f'features = {quoted}\nlabel = "anomaly"\ntime = "date"\nscale = "person"\n'
    bench.source(f'kind = "csv"\npath = "../data"\n{settings}')
    built = build("mlp", input_shape=(len(names),), hidden=(4,), classes=2, seed=1)
    bench.manifest = write_bundle(bench.root / "model", built, scale="none")
    needs = DataNeeds((len(names),), 2)
    if not labels:
        with pytest.raises(Exception, match="holds no examples"):
            load(read_source(bench.sources / "recorder.toml"), needs)
        return
    found = load(read_source(bench.sources / "recorder.toml"), needs)
    by_day = [row for row in sorted(rows) if row[0] in labels]
    assert found.y.tolist() == [labels[row[0]] for row in by_day]
    empty = np.array(
        [[cell == "" for name, cell in zip(header, row, strict=True) if name in names] for row in by_day]
    )
    np.testing.assert_array_equal(np.isnan(found.x), empty)
    part = found.x[: found.train]
    assert np.nanmax(np.abs(np.nanmean(part[:, ~empty.all(axis=0)], axis=0))) < 1e-4
    outcome = run(bench.context(TaskKind.TRAIN, policy_min_examples=1))
    assert outcome.loss is not None
    assert np.isfinite(outcome.loss)


@real
def test_raw_signals_from_a_recorders_database_are_cut_into_the_same_windows(bench: Bench) -> None:
    held = np.load(DATA / "uci_har" / "person_02.npz")
    x = (held["x_raw_i16"][:60].astype(np.float32) / 4096).astype(np.float32)
    channels = [f"c{i}" for i in range(9)]
    recorder = sqlite3.connect(bench.data / "signal.db")
    recorder.execute(f"CREATE TABLE signal (at REAL, bout INTEGER, y INTEGER, {', '.join(channels)})")
    rows = [
        (1.7e9 + bout * 1e3 + sample / 50, bout, int(held["y"][bout]), *map(float, x[bout, :, sample]))
        for bout in range(60)
        for sample in range(128)
    ]
    recorder.executemany(f"INSERT INTO signal VALUES ({', '.join('?' * 12)})", rows)  # noqa: S608
    recorder.commit()
    recorder.close()
    quoted = str(channels).replace("'", '"')
    bench.source(
        f'kind = "sqlite"\npath = "../data/signal.db"\ntable = "signal"\nfeatures = {quoted}\nlabel = "y"\n'
        'time = "at"\ngroup = "bout"\nwindow = 128\nstride = 64\ntest_fraction = 0.2\n'
    )
    found = load(read_source(bench.sources / "recorder.toml"), DataNeeds((9, 128), 6))
    np.testing.assert_array_equal(found.x, x)
    np.testing.assert_array_equal(found.y, held["y"][:60])
    built = build("cnn", input_shape=(9, 128), classes=6, seed=1, window=Convolutions(channels=(4,)))
    bench.manifest = write_bundle(bench.root / "model", built, scale="none")
    stats = run(bench.context(TaskKind.STATS))
    assert stats.examples == 48
    trained = run(bench.context(TaskKind.TRAIN))
    assert trained.loss is not None
    assert np.isfinite(trained.loss)

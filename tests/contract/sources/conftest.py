"""The same table of rows written for each kind of source, so that one suite serves them all."""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedctl_agent.sources import LocalData, Source, load, read_source
from fedctl_wire.messages import DataNeeds

NOON = 1_790_000_000.0  # in September 2026
NAN = float("nan")
Column = Sequence[Any]


@dataclass
class Table:
    """What a recorder wrote; a None among the features is a cell without a value."""

    x: Sequence[Sequence[float | None]]
    y: Sequence[int | None]
    at: Sequence[float] | None = None
    person: Sequence[int] | None = None
    names: Sequence[str] = ()
    extra: dict[str, Column] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = self.names or [f"x{i}" for i in range(len(self.x[0]))]

    def columns(self) -> dict[str, Column]:
        found: dict[str, Column] = dict(self.extra)  # first, so that no kind may take columns by their place
        found.update(zip(self.names, zip(*self.x, strict=True), strict=True))
        found["y"] = self.y
        if self.at is not None:
            found["at"] = self.at
        if self.person is not None:
            found["person"] = self.person
        return found


class Kind:
    """Writes tables as one kind of source, and loads them."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.data = root / "data"

    def write(self, table: Table) -> None:
        self.data.mkdir(exist_ok=True)
        {"npz": self._npz, "csv": self._csv, "sqlite": self._sqlite}[self.name](table)

    def source(self, table: Table, settings: str = "") -> Source:
        names = '"x"' if self.name == "npz" else str(list(table.names)).replace("'", '"')
        path = "data/recorder.db" if self.name == "sqlite" else "data"
        text = f'kind = "{self.name}"\npath = "{path}"\nfeatures = {names}\nlabel = "y"\n'
        text += 'table = "samples"\n' if self.name == "sqlite" else ""
        text += 'time = "at"\n' if table.at is not None else ""
        text += 'group = "person"\n' if table.person is not None else ""
        (self.root / "recorder.toml").write_text(text + settings)
        return read_source(self.root / "recorder.toml")

    def load(
        self, table: Table, settings: str = "", *, needs: DataNeeds | None = None, now: float = NOON
    ) -> LocalData:
        self.write(table)
        return self.load_again(table, settings, needs=needs, now=now)

    def load_again(
        self, table: Table, settings: str = "", *, needs: DataNeeds | None = None, now: float = NOON
    ) -> LocalData:
        source = self.source(table, settings)
        wanted = (len(table.names), source.spec.window) if source.spec.window else (len(table.names),)
        return load(source, needs or DataNeeds(wanted, 2), now=now)

    def _npz(self, table: Table) -> None:
        x = np.array([[NAN if cell is None else cell for cell in row] for row in table.x], np.float32)
        y = np.array([-1 if label is None else label for label in table.y], np.int64)
        arrays = {"x": x.reshape(len(y), -1), "y": y}
        if table.at is not None:
            arrays["at"] = np.array(table.at, np.float64)
        if table.person is not None:
            arrays["person"] = np.array(table.person, np.int64)
        np.savez(self.data / "a.npz", **arrays)

    def _csv(self, table: Table) -> None:
        columns = table.columns()
        with (self.data / "a.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def _sqlite(self, table: Table) -> None:
        columns = table.columns()
        names = ", ".join(f'"{name}"' for name in columns)
        marks = ", ".join("?" * len(columns))
        database = sqlite3.connect(self.data / "recorder.db")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("DROP TABLE IF EXISTS samples")
        database.execute(f"CREATE TABLE samples ({names})")
        insert = f"INSERT INTO samples VALUES ({marks})"  # noqa: S608 - the test's own names
        database.executemany(insert, zip(*columns.values(), strict=True))
        database.commit()
        database.close()


@pytest.fixture(params=["npz", "csv", "sqlite"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    return Kind(request.param, tmp_path)

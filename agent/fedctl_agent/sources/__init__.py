"""Where local data comes from: `sources/NAME.toml`, written by someone at the device.

`fedctl_wire.sources` says what such a file may hold. Each kind is one module that reads rows
(`SourceKind`); what is made of the rows, `arrange` decides for all kinds alike: age, order, windows,
missing cells, the test part, scaling. Reading this package loads no NumPy; `load` does.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from fedctl_agent.sources.source import Source, choose_source, read_source
from fedctl_agent.trainers.contract import JobError, refuse
from fedctl_wire.manifest import Manifest
from fedctl_wire.messages import DataNeeds
from fedctl_wire.sources import KINDS, MAX_TOML_BYTES, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedctl_agent.sources.rows import Rows

__all__ = [
    "KINDS",
    "MAX_TOML_BYTES",
    "LocalData",
    "Part",
    "Source",
    "SourceKind",
    "choose_source",
    "kind_of",
    "load",
    "local_data",
    "read_source",
    "shown",
]

_MODULES = {"npz": "npz", "csv": "csv_table", "sqlite": "sqlite_table"}


class SourceKind(Protocol):
    """A kind of source: how its rows are read. Each module of `_MODULES` is one."""

    def read(self, source: Source, needs: DataNeeds | None, oldest: float | None) -> Rows:
        """All rows of the source, in its own order.

        Args:
            source: Of this kind.
            needs: What the model takes; None: as much as the file says.
            oldest: Unix seconds; rows before it may be left out, if counted.

        Raises:
            JobError: `source` and `data`, naming the file; refused, `schema` or `no_data`.
        """

    def shape(self, source: Source) -> tuple[int, ...] | None:
        """The shape of one example, by a look at the data's names and headers; None: no data yet.

        Raises:
            JobError: As `read`; refused, `schema`, when a column or array that the file names is not there.
        """


@dataclass(frozen=True, slots=True)
class Part:
    """Examples in memory."""

    x: NDArray[np.float32]  # (n, features) or (n, features, window); NaN where a cell is missing
    y: NDArray[np.int64]  # (n,)


@dataclass(frozen=True, slots=True)
class LocalData:
    """All examples of a source, and where its training part ends."""

    source: str
    x: NDArray[np.float32]  # (n, features) or (n, features, window); NaN where a cell is missing
    y: NDArray[np.int64]  # (n,)
    train: int  # the first so many are the training part

    def training(self, min_examples: int) -> Part:
        """The training part.

        Raises:
            JobError: Refused, `policy`, when it has fewer than `min_examples`; `no_data` when none.
        """
        return self._checked(Part(self.x[: self.train], self.y[: self.train]), min_examples, self.train)

    def test(self, min_examples: int) -> Part:
        """The part that is never trained on.

        Raises:
            JobError: Refused, `no_data`, when there is none; `policy` when the whole source has
                fewer than `min_examples`.
        """
        return self._checked(Part(self.x[self.train :], self.y[self.train :]), min_examples, len(self.y))

    def everything(self, min_examples: int) -> Part:
        """All examples; see `test`."""
        return self._checked(Part(self.x, self.y), min_examples, len(self.y))

    def _checked(self, part: Part, min_examples: int, counted: int) -> Part:
        if not len(part.y):
            raise refuse("no_data", f"source {self.source!r} has no examples for this task")
        if counted < min_examples:
            raise refuse("policy", f"source {self.source!r} has fewer than {min_examples} examples")
        return part


def local_data(directory: Path, manifest: Manifest) -> LocalData:
    """Load the data that a model is trained or tested on, their columns in the model's order if it has names.

    Args:
        directory: Of the source files.
        manifest: Of the model.

    Raises:
        JobError: See `choose_source` and `load`.
    """
    source = choose_source(directory, str(manifest.model))
    return load(source, DataNeeds(manifest.input_shape, manifest.classes, manifest.columns))


def load(source: Source, needs: DataNeeds, *, now: float | None = None) -> LocalData:
    """Load a source as a model needs it.

    Args:
        source: Of any kind.
        needs: What the model takes.
        now: Unix seconds, for the age of rows; default: the device's clock.

    Raises:
        JobError: With code `data` when a file is not what it should be, `source` when it is not there;
            refused, `schema`, when the model needs other data, `no_data` when there are no examples.
    """
    from fedctl_agent.sources.arrange import arrange, oldest_row

    oldest = oldest_row(source.spec, time.time() if now is None else now)
    rows = kind_of(source).read(source, needs, oldest)
    if int(rows.y.max()) >= needs.classes:
        name = shown(source.spec.label)
        raise JobError(
            "data", f"source {source.name!r}: {name!r} has labels outside 0 to {needs.classes - 1}"
        )
    return arrange(rows, source, oldest)


def kind_of(source: Source) -> SourceKind:
    """The module that reads this kind of source."""
    return cast("SourceKind", importlib.import_module(f"fedctl_agent.sources.{_MODULES[source.spec.kind]}"))

"""The source kind `csv`: text files with a header row, read line by line.

A line with too few or too many cells, which a recorder has not finished or a power cut tore, is left
out and counted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import IO, Any

from fedctl_agent.sources.files import data_files
from fedctl_agent.sources.rows import RowBuilder, Rows, asked_columns
from fedctl_agent.sources.source import Source, no_fit, selected_features
from fedctl_agent.trainers.contract import JobError
from fedctl_wire.limits import MIB
from fedctl_wire.messages import DataNeeds
from fedctl_wire.sources import shown

_ENDING = ".csv"
_LINE_CHARS = 1 * MIB  # a file without an end of line must not fill the memory


def read(source: Source, needs: DataNeeds | None, oldest: float | None) -> Rows:
    """Read all files, sorted by name, as one table; see `SourceKind`."""
    features = selected_features(source, needs)
    builder = RowBuilder(source, features, oldest)
    for path in data_files(source, _ENDING):
        try:
            with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
                _read_file(stream, path.name, source, (*features, *asked_columns(source.spec)), builder)
        except (OSError, csv.Error) as error:
            cause = error.strerror if isinstance(error, OSError) else error
            raise JobError("data", f"{path.name} cannot be read: {shown(cause)}") from error
    return builder.finish()


def shape(source: Source) -> tuple[int, ...] | None:
    """What the file says, once the header of its last file has all the columns; see `SourceKind`."""
    path = data_files(source, _ENDING)[-1]
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            header = next(csv.reader(_lines(stream, path.name), delimiter=source.spec.delimiter), None)
    except (OSError, csv.Error) as error:
        raise JobError("data", f"{path.name} cannot be read: {shown(error)}") from error
    if header is None:
        return None
    _places(header, path.name, source, (*source.spec.features, *asked_columns(source.spec)))
    return source.spec.shape


def _read_file(
    stream: IO[str], name: str, source: Source, columns: Sequence[str], builder: RowBuilder
) -> None:
    reader = csv.reader(_lines(stream, name), delimiter=source.spec.delimiter)
    header = next(reader, None)
    if header is None:  # made, but nothing written yet
        return
    pick = _picker(_places(header, name, source, columns))
    width = len(header)
    for number, row in enumerate(reader, start=2):
        if len(row) == width:
            builder.add(pick(row), name, number)
        elif row:  # an empty line is none
            builder.skip(name, number, f"it has {len(row)} cells, the header {width}")


def _places(header: Sequence[str], name: str, source: Source, columns: Sequence[str]) -> list[int]:
    """Where the columns are.

    Raises:
        JobError: Refused, `schema`, when one is not there; `data` when it is there twice.
    """
    titles = [title.strip() for title in header]
    for column in columns:
        if column not in titles:
            raise no_fit(source, f"names the column {shown(column)!r}, which {name} does not have")
        if titles.count(column) > 1:
            raise JobError("data", f"{name} has the column {shown(column)!r} twice")
    return [titles.index(column) for column in columns]


def _picker(places: Sequence[int]) -> Any:
    return itemgetter(*places)  # a tuple, since there are always a feature and a label


def _lines(stream: IO[str], name: str) -> Iterator[str]:
    while line := stream.readline(_LINE_CHARS):
        if len(line) == _LINE_CHARS:
            raise JobError("data", f"{name} has a line of more than {_LINE_CHARS} characters")
        yield line

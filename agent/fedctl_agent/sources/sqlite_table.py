"""The source kind `sqlite`: one table or view of a database that a recorder may be writing to.

Opened read-only, never `immutable`, so that its writer's locks and log count. No text of the source
file becomes SQL: table and columns are looked up in the database and quoted. All rows come from one
statement, so from one state of the database. A recorder in WAL mode is not held up by it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from fedctl_agent.sources.files import data_file
from fedctl_agent.sources.rows import RowBuilder, Rows, asked_columns
from fedctl_agent.sources.source import Source, no_fit, selected_features
from fedctl_agent.trainers.contract import JobError
from fedctl_wire.messages import DataNeeds
from fedctl_wire.sources import shown

_BUSY_S = 30.0  # for a writer to let go
_FETCH_ROWS = 256
_COLUMNS = "SELECT name FROM pragma_table_xinfo(?)"
_WITHOUT_LOG = "SQLITE_CANTOPEN"


def read(source: Source, needs: DataNeeds | None, oldest: float | None) -> Rows:
    """Read the table or view; see `SourceKind`."""
    features = selected_features(source, needs)
    builder = RowBuilder(source, features, oldest)
    columns = (*features, *asked_columns(source.spec))
    with _opened(source) as database:
        table = _check(database, source, columns)
        picked = ", ".join(map(_quoted, columns))
        found = database.execute(f"SELECT {picked} FROM {_quoted(table)}")  # noqa: S608 - looked up, quoted
        found.arraysize = _FETCH_ROWS
        number = 0
        while rows := found.fetchmany():
            for row in rows:
                number += 1
                builder.add(row, table, number)
    return builder.finish()


def shape(source: Source) -> tuple[int, ...] | None:
    """What the file says, once the table has all the columns; see `SourceKind`."""
    with _opened(source) as database:
        _check(database, source, (*source.spec.features, *asked_columns(source.spec)))
    return source.spec.shape


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[sqlite3.Connection]:
    path = data_file(source)
    where = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(where, uri=True, timeout=_BUSY_S)) as database:
            database.execute("PRAGMA query_only = ON")
            database.execute("PRAGMA trusted_schema = OFF")  # a view runs none of its schema's functions
            yield database
    except sqlite3.Error as error:
        raise JobError("data", f"{path.name} cannot be read: {_cause(error)}") from error


def _cause(error: sqlite3.Error) -> str:
    if getattr(error, "sqlite_errorname", "").startswith(_WITHOUT_LOG):
        return (
            f"{shown(error)}; in WAL mode the agent's user must be able to write to its directory, or the"
            " recorder must have it open"
        )
    return shown(error)


def _check(database: sqlite3.Connection, source: Source, columns: Sequence[str]) -> str:
    """The table's name, once it is there with these columns.

    SQLite takes a quoted name that is no column as a text, so a wrong name would be a constant.
    """
    table = source.spec.table or ""
    names = {name for (name,) in database.execute(_COLUMNS, (table,))}
    if not names:
        raise no_fit(source, f"names the table {shown(table)!r}, which {source.path.name} does not have")
    lacking = [column for column in columns if column not in names]
    if lacking:
        raise no_fit(source, f"names the column {shown(lacking[0])!r}, which table {shown(table)!r} lacks")
    return table


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

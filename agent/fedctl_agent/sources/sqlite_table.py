"""The source kind `sqlite`: one table or view of a database that a recorder may be writing to.

Opened read-only, so that its writer's locks and log count. No text of the source file becomes SQL: table
and columns are looked up in the database and quoted. All rows come from one statement, so from one state
of the database. A recorder in WAL mode is not held up by it.

A database in WAL mode that nobody has open cannot be read so by a user who may not write to its directory:
SQLite would have to make its log there. It is then read as the file that it is, and the rows count only if
the file is still the same afterwards.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from fedctl_agent.sources.files import data_file
from fedctl_agent.sources.rows import RowBuilder, Rows, asked_columns
from fedctl_agent.sources.source import Source, no_fit, selected_features
from fedctl_agent.trainers.contract import JobError
from fedctl_wire.limits import MIB
from fedctl_wire.messages import DataNeeds
from fedctl_wire.sources import shown

_BUSY_S = 30.0  # for a writer to let go
_FETCH_ROWS = 256
_VALUE_BYTES = 1 * MIB  # of a cell, as of a line of text: a blob must not fill the memory
_COLUMNS = "SELECT name FROM pragma_table_xinfo(?)"
_NOT_READABLE = ": let the agent's user write to its directory, or the recorder keep it open"


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
    before = _stamps(path)
    try:
        database, alone = _connect(path)
        with contextlib.closing(database):
            yield database
    except sqlite3.Error as error:
        raise JobError("data", f"{path.name} cannot be read: {shown(error)}{_way_out(error)}") from error
    if alone and _stamps(path) != before:
        raise JobError("data", f"{path.name} was written to while it was read{_NOT_READABLE}")


def _connect(path: Path) -> tuple[sqlite3.Connection, bool]:
    """An open database, and whether it is read as a file that nobody writes to."""
    where = f"file:{quote(str(path.absolute()))}?mode=ro"
    database = sqlite3.connect(where, uri=True, timeout=_BUSY_S)
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_BYTES)
    try:
        return _restricted(database), False
    except sqlite3.Error as error:
        database.close()
        if not _without_log(error) or _stamps(path)[1] is not None:
            raise
    database = sqlite3.connect(f"{where}&immutable=1", uri=True)
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_BYTES)
    try:
        return _restricted(database), True
    except sqlite3.Error:
        database.close()
        raise


def _restricted(database: sqlite3.Connection) -> sqlite3.Connection:
    """The database once it could be read, from now on without any power to write or to call out."""
    database.execute("PRAGMA query_only = ON")
    database.execute("PRAGMA trusted_schema = OFF")  # a view runs none of its schema's functions
    database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return database


def _stamps(path: Path) -> tuple[tuple[int, int, int] | None, tuple[int, int, int] | None]:
    """What changes when the database, or its log, is written to."""
    return _stamp(path), _stamp(path.with_name(f"{path.name}-wal"))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _without_log(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))


def _way_out(error: sqlite3.Error) -> str:
    if getattr(error, "sqlite_errorname", "") == "SQLITE_TOOBIG":
        return f": it has a value of more than {_VALUE_BYTES} bytes"
    return _NOT_READABLE if _without_log(error) else ""


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

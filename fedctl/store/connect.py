"""Opening the database file, and turning what SQLite says into errors with a way out."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedctl.core.errors import ConfigError
from fedctl.store import schema

BUSY_TIMEOUT_S = 30.0  # 200 processes writing at once all get their turn within it

# What went wrong and the way out, by the primary name of SQLite's result code.
_CAUSES = {
    "SQLITE_CORRUPT": ("is damaged", "restore it from a backup, or move it away and run: fedctl init"),
    "SQLITE_NOTADB": (
        "is not a state database",
        "restore it from a backup, or move it away and run: fedctl init",
    ),
    "SQLITE_FULL": ("cannot grow: the disk is full", "free some space and run the command again"),
    "SQLITE_READONLY": (
        "cannot be written",
        "make the directory and its files writable for this user, or set FEDCTL_HOME to another",
    ),
    "SQLITE_CANTOPEN": (
        "cannot be opened",
        "check the permissions of the directory and its files, or set FEDCTL_HOME to another",
    ),
    "SQLITE_PERM": (
        "cannot be opened",
        "check the permissions of the directory and its files, or set FEDCTL_HOME to another",
    ),
    "SQLITE_IOERR": ("cannot be read or written", "check the disk and its free space, then run it again"),
    "SQLITE_CONSTRAINT": (
        "refused a row that contradicts another",
        "run it again with -v and report what it says",
    ),
    "SQLITE_BUSY": (
        f"has been locked by another process for {BUSY_TIMEOUT_S:.0f} s",
        "wait for the other command to end and run this one again",
    ),
}
_OTHER = ("gave an unexpected answer", "run it again with -v and report what it says")


def explain(error: sqlite3.Error, path: Path) -> ConfigError:
    """The error to raise for `error`: names the file, the cause and the way out."""
    name = getattr(error, "sqlite_errorname", None) or ""  # e.g. SQLITE_IOERR_WRITE
    primary = "_".join(name.split("_")[:2])
    what, hint = _CAUSES.get(primary, _OTHER)
    code = primary.removeprefix("SQLITE_").lower() or "database"
    return ConfigError(f"state database {path} {what} ({error})", hint=hint, subject=str(path), code=code)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Let no exception of SQLite out of the block.

    Raises:
        ConfigError: In its place.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, path) from error


def connect_for_writing(path: Path) -> sqlite3.Connection:
    """Open or create the file for reading and writing; transactions are begun explicitly.

    Raises:
        ConfigError: When it cannot be opened, is damaged, or nobody may write to it.
    """
    with explained(path):
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection


def connect_for_reading(path: Path) -> sqlite3.Connection:
    """Open the file read-only, also when its directory cannot be written or its disk is full.

    Raises:
        ConfigError: When it cannot be opened or is damaged.
    """
    with explained(path):
        try:
            return _open_uri(path, "mode=ro")
        except sqlite3.OperationalError as error:
            # Reading a WAL database needs its -shm file, which cannot be made here. When there is no
            # write-ahead log either, the main file alone is the whole truth and may be read as it is.
            makes_files = _is_allowed(path.parent, os.W_OK) and not _lacks_room(error)
            if makes_files or not _is_allowed(path, os.R_OK) or _has_log(path):
                raise
            return _open_uri(path, "mode=ro&immutable=1")


def _open_uri(path: Path, options: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{options}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA user_version")  # opens the file, which connect() does not
    except BaseException:
        connection.close()
        raise
    return connection


def _is_allowed(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=True)


def _lacks_room(error: sqlite3.Error) -> bool:
    name = getattr(error, "sqlite_errorname", None) or ""
    return name.startswith("SQLITE_IOERR_SHM")


def _has_log(path: Path) -> bool:
    log = path.with_name(path.name + "-wal")
    return log.exists() and log.stat().st_size > 0


def user_version(connection: sqlite3.Connection, path: Path) -> int:
    """How many migrations the database has seen; 0 for one that holds no fleet yet.

    Raises:
        ConfigError: When a newer fedctl has written it.
    """
    with explained(path):
        found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    known = schema.latest_version()
    if found > known:
        raise ConfigError(
            f"state database {path} has version {found}; this fedctl reads up to version {known}",
            hint="upgrade fedctl to the version that wrote it",
            subject=str(path),
            code="newer_database",
        )
    return found


@contextmanager
def immediate(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction that takes the write lock at once; inside another, a part of it that can fail alone.

    A deferred transaction that reads first and writes later fails at once, not after the busy timeout,
    when another process wrote in between.
    """
    begin, commit, rollback = "BEGIN IMMEDIATE", "COMMIT", ["ROLLBACK"]
    if connection.in_transaction:
        begin, commit, rollback = "SAVEPOINT part", "RELEASE part", ["ROLLBACK TO part", "RELEASE part"]
    try:
        connection.execute(begin)
        yield
        connection.execute(commit)
    except BaseException:
        if connection.in_transaction:  # SQLite ends it itself after some errors, a full disk among them
            for statement in rollback:
                connection.execute(statement)
        raise


def no_fleet(path: Path) -> ConfigError:
    """The error for a home whose database is missing, or empty because its `init` was killed."""
    return ConfigError(
        f"there is no fleet in {path.parent}",
        hint="create one with: fedctl init   (or look around with: fedctl demo)",
        subject=str(path.parent),
        code="no_fleet",
    )


def lost_fleet(path: Path) -> ConfigError:
    """The error for a database that has every table, and no row that says whose it is."""
    return ConfigError(
        f"state database {path} has lost its fleet: somebody deleted that row",
        hint=f"restore it from a backup, or move {path.parent} away and run: fedctl init",
        subject=str(path),
        code="corrupt",
    )


def no_file(path: Path) -> ConfigError:
    """The error for something else in the database's place."""
    return ConfigError(
        f"state database {path} is a directory",
        hint="move it away and restore the file from a backup, or set FEDCTL_HOME to another directory",
        subject=str(path),
        code="cantopen",
    )


def bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    """Apply the migrations that a fleet's database lacks, all in one transaction.

    Raises:
        ConfigError: When it holds no fleet, a newer fedctl has written it, or it cannot be written.
    """
    if is_current(connection, path):
        return
    with explained(path), immediate(connection):
        # Another process may have migrated it while this one waited for the lock.
        if not is_current(connection, path):
            schema.migrate(connection)


def is_current(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether a fleet's database has seen every migration.

    Raises:
        ConfigError: When it holds no fleet, or a newer fedctl has written it.
    """
    version = user_version(connection, path)
    if version == 0:
        raise no_fleet(path)
    return version == schema.latest_version()

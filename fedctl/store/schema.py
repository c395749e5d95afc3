"""The tables, as a list of migrations. A migration is never edited once landed: append the next one.

`PRAGMA user_version` holds the number of migrations a database has seen, so that a command which
finds it up to date need not import sqlite-utils (200 ms of CPU where NumPy is installed).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

_FLEET_AND_DEVICES = (
    """CREATE TABLE fleet (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        uuid TEXT NOT NULL,
        root_key TEXT NOT NULL,
        operator_key TEXT NOT NULL,
        roster_serial INTEGER NOT NULL,
        last_serial INTEGER NOT NULL DEFAULT 0,
        demo INTEGER NOT NULL
    )""",
    """CREATE TABLE device (
        name TEXT PRIMARY KEY,
        url TEXT NOT NULL,
        host_key TEXT,
        identity_key TEXT NOT NULL,
        serial INTEGER NOT NULL,
        arch TEXT,
        python TEXT,
        agent_version TEXT,
        state TEXT NOT NULL,
        enrolled_at TEXT NOT NULL,
        last_seen TEXT,
        facts TEXT NOT NULL,
        notes TEXT NOT NULL
    )""",
    # A removed device stays as a row for the history of its rounds; its address is free again.
    "CREATE UNIQUE INDEX device_url ON device (url) WHERE state <> 'removed'",
    """CREATE TABLE device_label (
        device TEXT NOT NULL REFERENCES device (name),
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (device, key)
    )""",
)

_MODELS = (
    """CREATE TABLE model (
        name TEXT PRIMARY KEY,
        created_at TEXT NOT NULL,
        published_version INTEGER
    )""",
    """CREATE TABLE model_version (
        model TEXT NOT NULL REFERENCES model (name),
        version INTEGER NOT NULL CHECK (version > 0),
        sha256 TEXT NOT NULL UNIQUE,
        parent TEXT,
        round_id INTEGER,
        state TEXT NOT NULL,
        created_at TEXT NOT NULL,
        metrics TEXT NOT NULL,
        PRIMARY KEY (model, version)
    )""",
    """CREATE TABLE deployment (
        device TEXT NOT NULL REFERENCES device (name),
        model TEXT NOT NULL,
        version INTEGER NOT NULL,
        slot TEXT NOT NULL,
        active INTEGER NOT NULL,
        at TEXT NOT NULL,
        PRIMARY KEY (device, model, slot),
        FOREIGN KEY (model, version) REFERENCES model_version (model, version)
    )""",
)

_ROUNDS = (
    "CREATE TABLE plan (sha256 TEXT PRIMARY KEY, envelope BLOB NOT NULL, source_toml TEXT)",
    """CREATE TABLE round (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        uuid TEXT NOT NULL UNIQUE,
        model TEXT NOT NULL,
        base_version INTEGER NOT NULL,
        plan TEXT NOT NULL REFERENCES plan (sha256),
        phase TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        started_at TEXT NOT NULL,
        deadline_at TEXT NOT NULL,
        ended_at TEXT,
        result_version INTEGER,
        reason TEXT,
        metrics TEXT NOT NULL,
        FOREIGN KEY (model, base_version) REFERENCES model_version (model, version)
    )""",
    # Two unfinished rounds of one model cannot exist, whatever became of the lock file.
    """CREATE UNIQUE INDEX round_unfinished ON round (model)
        WHERE phase IN ('planned', 'running', 'aggregating', 'evaluating')""",
    """CREATE TABLE round_device (
        round_id INTEGER NOT NULL REFERENCES round (id),
        device TEXT NOT NULL REFERENCES device (name),
        role TEXT NOT NULL,
        stage TEXT NOT NULL,
        reason TEXT,
        update_sha256 TEXT,
        norm REAL,
        examples INTEGER,
        PRIMARY KEY (round_id, device)
    )""",
    """CREATE TABLE task (
        task_id TEXT PRIMARY KEY,
        round_id INTEGER REFERENCES round (id),
        device TEXT NOT NULL REFERENCES device (name),
        kind TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        state TEXT NOT NULL,
        reason TEXT,
        bytes_up INTEGER NOT NULL,
        bytes_down INTEGER NOT NULL,
        cpu_ms INTEGER NOT NULL,
        wall_ms INTEGER NOT NULL,
        peak_rss_bytes INTEGER NOT NULL,
        metrics TEXT NOT NULL
    )""",
    "CREATE INDEX task_round ON task (round_id, device)",
)

_LOG = (
    """CREATE TABLE op (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        argv TEXT NOT NULL,
        selector TEXT,
        started_at TEXT NOT NULL,
        finished_at TEXT,
        exit_code INTEGER
    )""",
    """CREATE TABLE event (
        seq INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        actor TEXT NOT NULL,
        verb TEXT NOT NULL,
        subject TEXT NOT NULL,
        result TEXT NOT NULL,
        detail TEXT NOT NULL,
        op_id INTEGER REFERENCES op (id),
        prev_hash TEXT NOT NULL,
        hash TEXT NOT NULL
    )""",
    """CREATE TRIGGER event_never_changes BEFORE UPDATE ON event
        BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END""",
    """CREATE TRIGGER event_never_goes BEFORE DELETE ON event
        BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END""",
)


def _first_tables(db: Database) -> None:
    for statement in (*_FLEET_AND_DEVICES, *_MODELS, *_ROUNDS, *_LOG):
        db.execute(statement)


MIGRATIONS: tuple[Callable[[Database], None], ...] = (_first_tables,)


def latest_version() -> int:
    """The `user_version` of a database that has seen every migration."""
    return len(MIGRATIONS)


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the migrations that `connection` has not seen.

    Call it inside a BEGIN IMMEDIATE transaction: sqlite-utils then nests its own as savepoints, so
    that all of them and `user_version` become visible together or not at all.
    """
    from sqlite_utils import Database
    from sqlite_utils.migrations import Migrations

    migrations = Migrations("fedctl")
    for step in MIGRATIONS:
        migrations()(step)
    migrations.apply(Database(connection, execute_plugins=False))
    connection.execute(f"PRAGMA user_version = {latest_version()}")

"""Names that a shell offers at a TAB: plain queries, one short-lived connection, no waiting for a lock.

A TAB has nowhere to say what is wrong, so whatever is missing or damaged gives no names.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

_BUSY_S = 0.2  # longer, and whoever pressed the key believes that the terminal hangs
_ROUNDS = 50  # the newest so many

Names = list[tuple[str, str]]  # each with a few words about it

_DEVICES = "SELECT name, url FROM device WHERE state <> 'removed' ORDER BY name"
_MODELS = """SELECT name, 'version ' || (SELECT max(version) FROM model_version WHERE model = name)
    FROM model ORDER BY name"""
_VERSIONS = "SELECT model || '@' || version, state FROM model_version ORDER BY model, version DESC"
_PUBLISHED = """SELECT name || '@published', 'version ' || published_version
    FROM model WHERE published_version IS NOT NULL ORDER BY name"""
_NEWEST_ROUNDS = "SELECT id, model || ', ' || phase FROM round ORDER BY id DESC LIMIT ?"
_LABELS = """SELECT key || '=' || value, count(*) || ' devices'
    FROM device_label JOIN device ON device.name = device_label.device
    WHERE state <> 'removed' GROUP BY key, value ORDER BY key, value"""


def names(database: Path, kind: str, prefix: str = "") -> Names:
    """What could stand where the shell's cursor is.

    Args:
        database: The state database.
        kind: One of `KINDS`; any other gives nothing.
        prefix: What has been typed; only names that begin with it are given.
    """
    query = _QUERIES.get(kind)
    if query is None or not database.exists():
        return []
    try:
        with closing(_connected(database)) as connection:
            found = query(connection, prefix)
    except sqlite3.Error:
        return []
    return [(str(name), str(about or "")) for name, about in found if str(name).startswith(prefix)]


def _connected(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)


def _devices(connection: sqlite3.Connection, _prefix: str) -> Names:
    return connection.execute(_DEVICES).fetchall()


def _models(connection: sqlite3.Connection, prefix: str) -> Names:
    """Models, and once the `@` has been typed their versions."""
    if "@" not in prefix:
        return connection.execute(_MODELS).fetchall()
    return connection.execute(_PUBLISHED).fetchall() + connection.execute(_VERSIONS).fetchall()


def _model_names(connection: sqlite3.Connection, _prefix: str) -> Names:
    return connection.execute(_MODELS).fetchall()


def _rounds(connection: sqlite3.Connection, _prefix: str) -> Names:
    return connection.execute(_NEWEST_ROUNDS, [_ROUNDS]).fetchall()


def _labels(connection: sqlite3.Connection, prefix: str) -> Names:
    """The labels of devices; behind a comma or a `!` the next term of a selector."""
    first, comma, term = prefix.rpartition(",")
    found = connection.execute(_LABELS).fetchall()
    if "!" in term:
        found = [(name.replace("=", "!=", 1), about) for name, about in found]
    return [(f"{first}{comma}{name}", about) for name, about in found]


_QUERIES: dict[str, Callable[[sqlite3.Connection, str], Names]] = {
    "devices": _devices,
    "models": _models,
    "model-names": _model_names,
    "rounds": _rounds,
    "labels": _labels,
}
KINDS = frozenset(_QUERIES)

"""Reading the state database: plain `sqlite3`, read-only, no import that a listing would wait for."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from stat import S_ISDIR
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fedctl.core.errors import ConfigError, NotFoundError, reason_of
from fedctl.core.home import Home
from fedctl.core.records import Device, Fleet
from fedctl.core.selector import near_misses
from fedctl.store import rows
from fedctl.store.connect import (
    bring_up_to_date,
    connect_for_reading,
    connect_for_writing,
    explained,
    is_current,
    lost_fleet,
    no_file,
    no_fleet,
)

if TYPE_CHECKING:  # each would cost a listing of devices more than reading the database
    from fedctl.core.model_records import Deployment, Model, ModelVersion
    from fedctl.core.round_records import Round, RoundDevice, Task, Totals
    from fedctl.store.events import Event
    from fedctl_wire.signing import Envelope

T = TypeVar("T")
Parameters = Sequence[Any] | Mapping[str, Any]

_DEVICE = """SELECT name, url, host_key, identity_key, serial, arch, python, agent_version, state,
    enrolled_at, last_seen, facts, notes,
    (SELECT json_group_object(key, value) FROM (
        SELECT key, value FROM device_label WHERE device = device.name ORDER BY key)) AS labels
    FROM device WHERE state <> 'removed'"""
_MODEL = """SELECT name, created_at, published_version,
    (SELECT coalesce(max(version), 0) FROM model_version WHERE model = name) AS latest_version FROM model"""
_VERSION = "SELECT model, version, sha256, parent, round_id, state, created_at, metrics FROM model_version"
_ROUND = """SELECT id, uuid, model, base_version, plan, phase, attempt, started_at, deadline_at, ended_at,
    result_version, reason, metrics FROM round"""
_TASK = """SELECT task_id, round_id, device, kind, attempt, state, reason, bytes_up, bytes_down, cpu_ms,
    wall_ms, peak_rss_bytes, metrics FROM task"""
_EVENT = "SELECT seq, at, actor, verb, subject, result, detail, op_id, prev_hash, hash FROM event"
_NO_LIMIT = -1  # what LIMIT takes for "all"


class ReadStore:
    """What the home directory's database says, each method one consistent answer.

    May be used by several threads; every method raises `ConfigError` (10) when the file is damaged or
    cannot be read. Close it, or use it as a context manager.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Use `open` instead."""
        self._path = path
        self._connection = connection
        self._lock = threading.RLock()

    @classmethod
    def open(cls, home: Home) -> Self:
        """Open the database read-only; one of an older fedctl is migrated first.

        Raises:
            ConfigError: When there is none, it is damaged, or a newer fedctl wrote it.
        """
        path = existing_database(home)
        connection = connect_for_reading(path)
        try:
            if not is_current(connection, path):
                with closing(connect_for_writing(path)) as writer:
                    bring_up_to_date(writer, path)
        except BaseException:
            connection.close()
            raise
        return cls(path, connection)

    def close(self) -> None:
        """Close the database; the object is of no use afterwards."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ fleet and devices

    def fleet(self) -> Fleet:
        """The fleet of this home."""
        query = "SELECT uuid, root_key, operator_key, roster_serial, demo FROM fleet"
        found = self._one(rows.to_fleet, query)
        if found is None:
            raise lost_fleet(self._path)
        return found

    def devices(self) -> tuple[Device, ...]:
        """Every device that is not removed, with its labels, by name."""
        return self._all(rows.to_device, f"{_DEVICE} ORDER BY name")

    def device(self, name: str) -> Device:
        """One device.

        Raises:
            NotFoundError: When it is not enrolled, with names that look alike.
        """
        found = self._one(rows.to_device, f"{_DEVICE} AND name = ?", [name])
        if found is not None:
            return found
        hint = near_misses(name, [d.name for d in self.devices()]) or "see: fedctl devices list"
        raise NotFoundError(f"there is no device {name!r}", hint=hint, subject=name)

    def removed_identity(self, name: str) -> str | None:
        """The identity key, hex, of a device that was removed under this name, or None."""
        query = "SELECT identity_key FROM device WHERE name = ? AND state = 'removed'"
        return self._one(lambda row: str(row["identity_key"]), query, [name])

    def deployments(self, *, device: str | None = None) -> tuple[Deployment, ...]:
        """Which model versions are in which slots, by device, model and slot."""
        query = """SELECT device, model, version, slot, active, at FROM deployment
            WHERE device = coalesce(?, device) ORDER BY device, model, slot"""
        return self._all(rows.to_deployment, query, [device])

    # ------------------------------------------------------------------ models and plans

    def models(self) -> tuple[Model, ...]:
        """Every model, by name."""
        return self._all(rows.to_model, f"{_MODEL} ORDER BY name")

    def model(self, name: str) -> Model:
        """One model.

        Raises:
            NotFoundError: When there is none, with names that look alike.
        """
        found = self._one(rows.to_model, f"{_MODEL} WHERE name = ?", [name])
        if found is not None:
            return found
        hint = near_misses(name, [m.name for m in self.models()]) or "see: fedctl model list"
        raise NotFoundError(f"there is no model {name!r}", hint=hint, subject=name)

    def versions(self, model: str) -> tuple[ModelVersion, ...]:
        """Every version of a model, oldest first; empty when there is no such model."""
        return self._all(rows.to_version, f"{_VERSION} WHERE model = ? ORDER BY version", [model])

    def version(self, model: str, version: int) -> ModelVersion:
        """One version of a model.

        Raises:
            NotFoundError: When the model or the version does not exist.
        """
        query = f"{_VERSION} WHERE model = ? AND version = ?"
        found = self._one(rows.to_version, query, [model, version])
        if found is not None:
            return found
        latest = self.model(model).latest_version
        hint = f"its latest version is {model}@{latest}" if latest else "it has no version yet"
        raise NotFoundError(f"there is no version {model}@{version}", hint=hint, subject=f"{model}@{version}")

    def plan(self, sha256: str) -> Envelope:
        """A plan's signed envelope by the hash of its payload.

        Raises:
            NotFoundError: When this home never made it.
        """
        from fedctl_wire.signing import Envelope

        found = self._one(
            lambda row: Envelope.from_bytes(row["envelope"], what=f"plan {sha256}"),
            "SELECT envelope FROM plan WHERE sha256 = ?",
            [sha256],
        )
        if found is None:
            raise NotFoundError(f"there is no plan {sha256}", subject=sha256)
        return found

    # ------------------------------------------------------------------ rounds

    def rounds(self, *, model: str | None = None, limit: int | None = None) -> tuple[Round, ...]:
        """Rounds, newest first; of one model, and at most `limit`, when given."""
        query = f"{_ROUND} WHERE model = coalesce(?, model) ORDER BY id DESC LIMIT ?"
        return self._all(rows.to_round, query, [model, _NO_LIMIT if limit is None else limit])

    def round(self, round_id: int) -> Round:
        """One round.

        Raises:
            NotFoundError: When there is none of that number.
        """
        found = self._one(rows.to_round, f"{_ROUND} WHERE id = ?", [round_id])
        if found is None:
            raise NotFoundError(
                f"there is no round {round_id}", hint="see: fedctl round list", subject=str(round_id)
            )
        return found

    def unfinished_round(self, model: str) -> Round | None:
        """The model's round that has not ended; there is at most one."""
        query = f"""{_ROUND} WHERE model = ?
            AND phase IN ('planned', 'running', 'aggregating', 'evaluating')"""
        return self._one(rows.to_round, query, [model])

    def round_devices(self, round_id: int) -> tuple[RoundDevice, ...]:
        """The cohort and hold-out devices of a round, by name: the order of aggregation."""
        query = """SELECT round_id, device, role, stage, reason, update_sha256, norm, examples
            FROM round_device WHERE round_id = ? ORDER BY device"""
        return self._all(rows.to_round_device, query, [round_id])

    def tasks(self, round_id: int) -> tuple[Task, ...]:
        """The tasks of a round, by device and in the order they were made."""
        return self._all(rows.to_task, f"{_TASK} WHERE round_id = ? ORDER BY device, rowid", [round_id])

    def task(self, task_id: str) -> Task | None:
        """One task, or None when it was never recorded."""
        return self._one(rows.to_task, f"{_TASK} WHERE task_id = ?", [task_id])

    def lingering_tasks(self, device: str) -> tuple[Task, ...]:
        """Tasks that the device may still hold although nobody needs them: their round is over.

        Tasks outside rounds (golden, stats) count as over: who makes them also waits for them.
        """
        query = f"""{_TASK} WHERE device = ? AND state <> 'released'
            AND coalesce(round_id NOT IN (
                SELECT id FROM round WHERE phase IN ('planned', 'running', 'aggregating', 'evaluating')
            ), TRUE)"""  # noqa: S608 - constants only
        return self._all(rows.to_task, query, [device])

    def round_totals(self, round_id: int) -> Totals:
        """What a round's tasks have sent so far."""
        query = """SELECT coalesce(sum(bytes_up), 0) AS bytes_up, coalesce(sum(bytes_down), 0) AS bytes_down
            FROM task WHERE round_id = ?"""
        (totals,) = self._all(rows.to_totals, query, [round_id])
        return totals

    # ------------------------------------------------------------------ log

    def events(self, *, limit: int | None = None) -> tuple[Event, ...]:
        """The audit log, oldest first; only the newest `limit` lines when given."""
        query = f"{_EVENT} ORDER BY seq DESC LIMIT ?"
        return self._all(rows.to_event, query, [_NO_LIMIT if limit is None else limit])[::-1]

    # ------------------------------------------------------------------ plumbing

    def _all(
        self, convert: Callable[[sqlite3.Row], T], query: str, parameters: Parameters = ()
    ) -> tuple[T, ...]:
        with self._lock, explained(self._path):
            found: Iterable[sqlite3.Row] = self._connection.execute(query, parameters).fetchall()
        try:
            return tuple(convert(row) for row in found)
        except ValueError as error:  # bad JSON, an unknown state, an envelope that does not parse
            raise ConfigError(
                f"state database {self._path} holds a row that cannot be read: {error}",
                hint="restore it from a backup",
                subject=str(self._path),
                code="corrupt",
            ) from error

    def _one(self, convert: Callable[[sqlite3.Row], T], query: str, parameters: Parameters = ()) -> T | None:
        return next(iter(self._all(convert, query, parameters)), None)


def existing_database(home: Home) -> Path:
    """The path of the home's database.

    Raises:
        ConfigError: When the home has none, or may not be looked into.
    """
    try:
        if S_ISDIR(home.database.stat().st_mode):
            raise no_file(home.database)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise no_fleet(home.database) from error
    except OSError as error:
        raise ConfigError(
            f"state database {home.database} cannot be opened: {reason_of(error)}",
            hint="check the permissions of the directory, or set FEDCTL_HOME to another",
            subject=str(home.database),
            code="cantopen",
        ) from error
    return home.database

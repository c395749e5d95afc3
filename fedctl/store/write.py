"""Writing the state database: every method is one transaction, or a part of the one it is called in.

The rule for whoever calls it: files durable first, then one row.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fedctl.core.clock import SYSTEM_CLOCK, Clock, rfc3339
from fedctl.core.errors import ConfigError, LockedError, UsageError, reason_of
from fedctl.core.home import Home
from fedctl.core.records import Device, DeviceState, Fleet
from fedctl.store import rows, schema, statements
from fedctl.store.connect import (
    bring_up_to_date,
    connect_for_writing,
    explained,
    immediate,
    user_version,
)
from fedctl.store.read import Parameters, ReadStore, existing_database
from fedctl_wire.codec import Json

if TYPE_CHECKING:  # see fedctl.store.read
    from fedctl.core.model_records import Deployment, ModelVersion, VersionState
    from fedctl.core.round_records import Round, RoundDevice, RoundPhase, Task
    from fedctl.store.events import Event
    from fedctl_wire.signing import Envelope


class Store(ReadStore):
    """The database with its writing methods; several threads of one command may share it.

    `with store.transaction():` makes several calls one step: all of it is on disk when the block ends,
    or nothing, also after SIGKILL or loss of power. Other threads and processes wait meanwhile, so no
    network belongs inside.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, clock: Clock = SYSTEM_CLOCK) -> None:
        """Use `open` or `create` instead."""
        super().__init__(path, connection)
        self._clock = clock

    @classmethod
    def open(cls, home: Home, *, clock: Clock = SYSTEM_CLOCK) -> Self:
        """Open the home's database for writing, migrating one of an older fedctl.

        Raises:
            ConfigError: When there is none, it is damaged, cannot be written, or a newer fedctl wrote it.
        """
        path = existing_database(home)
        connection = connect_for_writing(path)
        try:
            bring_up_to_date(connection, path)
        except BaseException:
            connection.close()
            raise
        return cls(path, connection, clock)

    @classmethod
    def create(cls, home: Home, fleet: Fleet, *, clock: Clock = SYSTEM_CLOCK) -> Self:
        """Make the home's database with its one fleet; killed half-way, it can simply be run again.

        Raises:
            ConfigError: When the home already holds a fleet, or cannot be written.
        """
        path = home.database
        try:
            home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"{home.path} cannot be created: {reason_of(error)}",
                hint="make its parent directory writable, or set FEDCTL_HOME to another",
                subject=str(home.path),
            ) from error
        store = cls(path, connect_for_writing(path), clock)
        try:
            with store.transaction():
                store._make_tables()
                store._write(statements.ADD_FLEET, rows.values(fleet))
        except BaseException:
            store.close()
            raise
        return store

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the calls inside one step; a nested block that fails is undone alone."""
        with self._lock, explained(self._path), immediate(self._connection):
            yield

    # ------------------------------------------------------------------ fleet and devices

    def next_serial(self) -> int:
        """A number that was never given out before in this fleet, for something the root signs."""
        with self.transaction():
            self._write("UPDATE fleet SET last_serial = max(last_serial, roster_serial) + 1")
            return self._number("SELECT last_serial FROM fleet")

    def set_roster_serial(self, serial: int) -> None:
        """Record the serial of the roster that was issued last; a lower one changes nothing."""
        self._write("UPDATE fleet SET roster_serial = max(roster_serial, ?)", [serial])

    def add_device(self, device: Device) -> None:
        """Add a device with its labels, in place of a removed one of the same name.

        Raises:
            UsageError: When a device of that name, or another with that URL, is enrolled.
        """
        with self.transaction():
            for other in self.devices():
                if device.name == other.name:
                    raise UsageError(f"device {device.name} is already enrolled", subject=device.name)
                if device.url == other.url:
                    raise UsageError(f"{device.url} is already device {other.name}", subject=device.name)
            self._write(statements.ADD_DEVICE, rows.values(device))
            self.set_labels(device.name, device.labels)

    def set_labels(self, device: str, changes: Mapping[str, str | None]) -> None:
        """Set labels, and remove those whose value is None; the others stay.

        Raises:
            NotFoundError: When the device is not enrolled.
        """
        with self.transaction():
            self.device(device)
            for key, value in changes.items():
                self._write("DELETE FROM device_label WHERE device = ? AND key = ?", [device, key])
                if value is not None:
                    self._write("INSERT INTO device_label VALUES (?, ?, ?)", [device, key, value])

    def set_device_state(self, device: str, state: DeviceState) -> None:
        """Set whether the device works or is in maintenance; `remove_device` removes it.

        Raises:
            NotFoundError: When the device is not enrolled.
        """
        with self.transaction():
            self.device(device)
            self._write("UPDATE device SET state = ? WHERE name = ?", [state, device])

    def set_device_notes(self, device: str, notes: str) -> None:
        """Replace what a person wrote about the device.

        Raises:
            NotFoundError: When the device is not enrolled.
        """
        with self.transaction():
            self.device(device)
            self._write("UPDATE device SET notes = ? WHERE name = ?", [notes, device])

    def set_host_key(self, device: str, host_key: str) -> None:
        """Pin another SSH host key: the device was set up anew, and its admin has compared the key.

        Raises:
            NotFoundError: When the device is not enrolled.
        """
        with self.transaction():
            self.device(device)
            self._write("UPDATE device SET host_key = ? WHERE name = ?", [host_key, device])

    def set_device_seen(
        self,
        device: str,
        *,
        at: str | None = None,
        agent_version: str | None = None,
        arch: str | None = None,
        python: str | None = None,
        facts: Mapping[str, Json] | None = None,
    ) -> None:
        """Record an authenticated answer (now, when `at` is None) and the facts it gave, if any.

        Raises:
            NotFoundError: When the device is not enrolled.
        """
        with self.transaction():
            known = self.device(device)
            seen = dataclasses.replace(
                known,
                last_seen=at or self._now(),
                agent_version=agent_version or known.agent_version,
                arch=arch or known.arch,
                python=python or known.python,
                facts={**known.facts, **(facts or {})},
            )
            self._write(statements.SET_DEVICE_SEEN, rows.values(seen))

    def remove_device(self, device: str) -> None:
        """Take a device out of the fleet; its rounds keep its name.

        Raises:
            NotFoundError: When the device is not enrolled.
        """
        with self.transaction():
            self.device(device)
            self._write("DELETE FROM device_label WHERE device = ?", [device])
            self._write("DELETE FROM deployment WHERE device = ?", [device])
            self._write("UPDATE device SET state = 'removed' WHERE name = ?", [device])

    def put_deployment(self, deployment: Deployment) -> None:
        """Record what a slot of a device holds; an active slot makes the model's other one inactive."""
        with self.transaction():
            if deployment.active:
                self._write(
                    "UPDATE deployment SET active = 0 WHERE device = ? AND model = ?",
                    [deployment.device, deployment.model],
                )
            self._write(statements.PUT_DEPLOYMENT, rows.values(deployment))

    # ------------------------------------------------------------------ models and plans

    def add_model(self, name: str) -> None:
        """Add a model without versions.

        Raises:
            UsageError: When there is one of that name.
        """
        with self.transaction():
            if any(model.name == name for model in self.models()):
                raise UsageError(
                    f"model {name} already exists", hint=f"see: fedctl model show {name}", subject=name
                )
            self._write("INSERT INTO model (name, created_at) VALUES (?, ?)", [name, self._now()])

    def add_version(self, version: ModelVersion) -> None:
        """Add a version whose bundle is on disk; again with the same hash it changes nothing.

        Raises:
            ConfigError: When that number holds another bundle, or the bundle has another number.
        """
        with self.transaction():
            same = "SELECT count(*) FROM model_version WHERE model = ? AND version = ? AND sha256 = ?"
            if not self._number(same, [version.model, version.version, version.sha256]):
                self._write(statements.ADD_VERSION, rows.values(version))

    def set_version_state(
        self,
        model: str,
        version: int,
        state: VersionState,
        *,
        metrics: Mapping[str, Json] | None = None,
    ) -> None:
        """Set where a version stands, and its metrics when given.

        Raises:
            NotFoundError: When there is no such version.
        """
        with self.transaction():
            self.version(model, version)
            text = None if metrics is None else rows.to_text(dict(metrics))
            self._write(
                """UPDATE model_version SET state = ?, metrics = coalesce(?, metrics)
                WHERE model = ? AND version = ?""",
                [state, text, model, version],
            )

    def publish(self, model: str, version: int) -> None:
        """Make a version the model's published one.

        Raises:
            NotFoundError: When there is no such version.
        """
        from fedctl.core.model_records import VersionState

        with self.transaction():
            self.set_version_state(model, version, VersionState.PUBLISHED)
            self._write("UPDATE model SET published_version = ? WHERE name = ?", [version, model])

    def add_plan(self, envelope: Envelope, *, source_toml: str | None = None) -> str:
        """Keep a signed plan and the plan file it came from; returns its hash, the plan's name."""
        self._write(
            "INSERT OR IGNORE INTO plan VALUES (?, ?, ?)", [envelope.sha256, envelope.to_bytes(), source_toml]
        )
        return envelope.sha256

    # ------------------------------------------------------------------ rounds

    def add_round(self, round_: Round, devices: Iterable[RoundDevice]) -> int:
        """Add a round with its devices and return its number; the `id`s in the arguments are not read.

        Raises:
            LockedError: When the model has an unfinished round.
        """
        with self.transaction():
            unfinished = self.unfinished_round(round_.model)
            if unfinished is not None and not round_.phase.final:
                raise LockedError(
                    f"round {unfinished.id} of {round_.model} has not ended",
                    hint="finish it with: fedctl round resume",
                    subject=round_.model,
                )
            round_id = self._write(statements.ADD_ROUND, rows.values(round_))
            for device in devices:
                self.set_round_device(dataclasses.replace(device, round_id=round_id))
            return round_id

    def set_round_phase(
        self,
        round_id: int,
        phase: RoundPhase,
        *,
        reason: str | None = None,
        result_version: int | None = None,
        ended_at: str | None = None,
        metrics: Mapping[str, Json] | None = None,
    ) -> None:
        """Move a round on; what is None stays as it was, and metrics are added to those it has.

        A final phase sets `ended_at` to now when it is not given.

        Raises:
            NotFoundError: When there is no such round.
        """
        with self.transaction():
            known = self.round(round_id)
            ended = ended_at or known.ended_at or (self._now() if phase.final else None)
            changed = dataclasses.replace(
                known,
                phase=phase,
                reason=known.reason if reason is None else reason,
                result_version=known.result_version if result_version is None else result_version,
                ended_at=ended,
                metrics={**known.metrics, **(metrics or {})},
            )
            self._write(statements.SET_ROUND, rows.values(changed))

    def set_round_device(self, device: RoundDevice) -> None:
        """Record what became of a device in a round, in place of what was known."""
        self._write(statements.SET_ROUND_DEVICE, rows.values(device))

    def put_task(self, task: Task) -> None:
        """Record a task, in place of what was known of it."""
        self._write(statements.PUT_TASK, rows.values(task))

    # ------------------------------------------------------------------ log

    def add_event(
        self,
        *,
        actor: str,
        verb: str,
        subject: str,
        result: str = "ok",
        detail: Mapping[str, Json] | None = None,
    ) -> Event:
        """Append a line to the audit log, chained to the one before."""
        from fedctl.store import events

        with self.transaction():
            last = self.events(limit=1)
            event = events.seal(
                events.Event(
                    seq=last[0].seq + 1 if last else 1,
                    at=self._now(),
                    actor=actor,
                    verb=verb,
                    subject=subject,
                    result=result,
                    detail=dict(detail or {}),
                    op_id=None,
                    prev_hash=last[0].hash if last else events.FIRST_HASH,
                    hash="",
                )
            )
            self._write(statements.ADD_EVENT, rows.values(event))
            return event

    # ------------------------------------------------------------------ plumbing

    def _make_tables(self) -> None:
        if user_version(self._connection, self._path) > 0:
            raise ConfigError(
                f"{self._path.parent} already holds a fleet",
                hint="set FEDCTL_HOME to another directory for a second fleet",
                subject=str(self._path.parent),
                code="exists",
            )
        schema.migrate(self._connection)

    def _now(self) -> str:
        return rfc3339(self._clock.now())

    def _write(self, statement: str, parameters: Parameters = ()) -> int:
        """Run one statement in a transaction; returns the row id of an insert."""
        with self.transaction():
            return self._connection.execute(statement, parameters).lastrowid or 0

    def _number(self, query: str, parameters: Sequence[Any] = ()) -> int:
        with self._lock, explained(self._path):
            return int(self._connection.execute(query, parameters).fetchone()[0])

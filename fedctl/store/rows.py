"""Rows of the database to records and back; the records without a home in `fedctl.core.records` are here."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from sqlite3 import Row
from typing import TYPE_CHECKING, Any

from fedctl.core.records import (
    Device,
    DeviceState,
    Fleet,
    Model,
    ModelVersion,
    Role,
    Round,
    RoundDevice,
    RoundPhase,
    Stage,
    Task,
    VersionState,
)
from fedctl_wire.codec import Json, dump_bytes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model version in a slot of a device, as the device last confirmed it."""

    device: str
    model: str
    version: int
    slot: str  # "A" or "B"
    active: bool
    at: str  # RFC 3339, UTC


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the append-only audit log; `hash` covers every other field, so also the line before."""

    seq: int
    at: str  # RFC 3339, UTC
    actor: str  # e.g. "alice@workstation"
    verb: str  # e.g. "device.add"
    subject: str
    result: str  # e.g. "ok"
    detail: dict[str, Json]
    op_id: int | None
    prev_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class Op:
    """One run of a command that changed something."""

    id: int
    argv: tuple[str, ...]
    selector: str | None
    started_at: str
    finished_at: str | None
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class Totals:
    """What the tasks of a round have cost so far, over all devices and attempts."""

    tasks: int = 0
    bytes_up: int = 0  # devices to workstation
    bytes_down: int = 0  # workstation to devices
    cpu_ms: int = 0


def values(record: DataclassInstance) -> dict[str, Any]:
    """A record's fields as named SQL parameters; maps become canonical JSON text."""
    plain = {f.name: getattr(record, f.name) for f in fields(record)}
    return {name: to_text(value) if isinstance(value, dict) else value for name, value in plain.items()}


def to_text(value: Json) -> str:
    """Canonical JSON, as every JSON column holds it."""
    return dump_bytes(value).decode()


def to_fleet(row: Row) -> Fleet:
    """A row of `fleet`."""
    return Fleet(**{**row, "demo": bool(row["demo"])})


def to_device(row: Row) -> Device:
    """A row of `device` with its labels as one JSON object."""
    state, facts, labels = DeviceState(row["state"]), json.loads(row["facts"]), json.loads(row["labels"])
    return Device(**{**row, "state": state, "facts": facts, "labels": labels})


def to_model(row: Row) -> Model:
    """A row of `model` with its latest version."""
    return Model(**row)


def to_version(row: Row) -> ModelVersion:
    """A row of `model_version`."""
    state, metrics = VersionState(row["state"]), json.loads(row["metrics"])
    return ModelVersion(**{**row, "state": state, "metrics": metrics})


def to_deployment(row: Row) -> Deployment:
    """A row of `deployment`."""
    return Deployment(**{**row, "active": bool(row["active"])})


def to_round(row: Row) -> Round:
    """A row of `round`."""
    return Round(**{**row, "phase": RoundPhase(row["phase"]), "metrics": json.loads(row["metrics"])})


def to_round_device(row: Row) -> RoundDevice:
    """A row of `round_device`."""
    return RoundDevice(**{**row, "role": Role(row["role"]), "stage": Stage(row["stage"])})


def to_task(row: Row) -> Task:
    """A row of `task`."""
    return Task(**{**row, "metrics": json.loads(row["metrics"])})


def to_event(row: Row) -> Event:
    """A row of `event`."""
    return Event(**{**row, "detail": json.loads(row["detail"])})


def to_op(row: Row) -> Op:
    """A row of `op`."""
    return Op(**{**row, "argv": tuple(json.loads(row["argv"]))})

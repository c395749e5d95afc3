"""Rows of the database to records and back; a record's module is imported with its first row."""

from __future__ import annotations

import json
from dataclasses import fields
from sqlite3 import Row
from typing import TYPE_CHECKING, Any

from fedctl.core.records import Device, DeviceState, Fleet, Role
from fedctl_wire.codec import Json, dump_bytes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from fedctl.core.model_records import Deployment, Model, ModelVersion
    from fedctl.core.round_records import Round, RoundDevice, Task, Totals
    from fedctl.store.events import Event


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
    from fedctl.core.model_records import Model

    return Model(**row)


def to_version(row: Row) -> ModelVersion:
    """A row of `model_version`."""
    from fedctl.core.model_records import ModelVersion, VersionState

    state, metrics = VersionState(row["state"]), json.loads(row["metrics"])
    return ModelVersion(**{**row, "state": state, "metrics": metrics})


def to_deployment(row: Row) -> Deployment:
    """A row of `deployment`."""
    from fedctl.core.model_records import Deployment

    return Deployment(**{**row, "active": bool(row["active"])})


def to_round(row: Row) -> Round:
    """A row of `round`."""
    from fedctl.core.round_records import Round, RoundPhase

    return Round(**{**row, "phase": RoundPhase(row["phase"]), "metrics": json.loads(row["metrics"])})


def to_round_device(row: Row) -> RoundDevice:
    """A row of `round_device`."""
    from fedctl.core.round_records import RoundDevice, Stage

    return RoundDevice(**{**row, "role": Role(row["role"]), "stage": Stage(row["stage"])})


def to_task(row: Row) -> Task:
    """A row of `task`."""
    from fedctl.core.round_records import Task

    return Task(**{**row, "metrics": json.loads(row["metrics"])})


def to_totals(row: Row) -> Totals:
    """The sums over a round's tasks."""
    from fedctl.core.round_records import Totals

    return Totals(**row)


def to_event(row: Row) -> Event:
    """A row of `event`."""
    from fedctl.store.events import Event

    return Event(**{**row, "detail": json.loads(row["detail"])})

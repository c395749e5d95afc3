"""What the database says of a round, as the machine's state and as facts for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from fedctl.core.gate import Measured
from fedctl.core.records import Role
from fedctl.core.round_machine import NOT_NEEDED, UNUSED, Member, RoundState
from fedctl.core.round_records import Round, RoundDevice, RoundPhase, RoundSummary, Stage, Task
from fedctl.models.metrics import auroc, macro_f1
from fedctl.ops.round_results import RoundDetail, RoundDeviceReport
from fedctl.store import ReadStore
from fedctl_wire.codec import Json, decode, from_json, to_json
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import Evaluation, Plan, TaskKind

EVALUATED = frozenset({"collected", "released"})  # task states in which an evaluation's numbers are here
CLOSED = EVALUATED | {"failed"}
_BLAMELESS = frozenset({UNUSED, NOT_NEEDED})  # reasons that are the round's, not the device's


def load_plan(store: ReadStore, round_: Round) -> Plan:
    """The plan of a round; the database is trusted, its signature was made here."""
    return decode(Plan, store.plan(round_.plan).payload, limit=LIMITS.json_body_bytes)


def load_state(store: ReadStore, round_: Round, quorum: int) -> RoundState:
    """Rebuild the machine's state: what a driver that finds the round must go on from."""
    rows = store.round_devices(round_.id)
    members = {row.device: Member(row.role, row.stage, row.reason) for row in rows}
    state = RoundState(round_.phase, quorum, members, reason=round_.reason)
    if round_.phase is not RoundPhase.EVALUATING:
        return state
    closed = {task.device for task in _evaluations(store, round_, CLOSED)}
    return state.awaiting(closed)


@dataclass(frozen=True, slots=True)
class Evaluations:
    """What came of the evaluation in a round's present attempt."""

    pairs: dict[str, tuple[Evaluation, Evaluation]]  # device to what it measured of base and candidate
    failures: dict[str, str]  # device to the stable word for why it did not


def load_evaluations(store: ReadStore, round_: Round) -> Evaluations:
    """What the devices measured, or why they did not."""
    pairs, failures = {}, {}
    for task in _evaluations(store, round_, CLOSED):
        if task.state in EVALUATED:
            base, candidate = (from_json(Evaluation, task.metrics[key]) for key in ("base", "candidate"))
            pairs[task.device] = base, candidate
        else:
            failures[task.device] = str(task.metrics.get("code", ""))
    return Evaluations(pairs, failures)


def measured_json(measured: Measured | None) -> Json:
    """A measurement as it is kept with a round or version, its counts turned into AUROC and macro-F1."""
    if measured is None:
        return None
    histogram, classes = measured.histogram, measured.classes
    return {
        "examples": measured.examples,
        "loss": measured.loss,
        "accuracy": measured.accuracy,
        "macro_f1": macro_f1(classes) if classes is not None else None,
        "auroc": auroc(histogram) if histogram is not None else None,
    }


def summarise(store: ReadStore, round_: Round) -> RoundSummary:
    """One round in one line."""
    rows = store.round_devices(round_.id)
    totals = store.round_totals(round_.id)
    base = round_.metrics.get("base") or {}
    candidate = round_.metrics.get("candidate") or {}
    return RoundSummary(
        id=round_.id,
        uuid=round_.uuid,
        model=round_.model,
        base_version=round_.base_version,
        result_version=round_.result_version,
        phase=round_.phase,
        reason=round_.reason,
        gate=round_.metrics.get("gate"),
        attempt=round_.attempt,
        plan=round_.plan,
        cohort=sum(row.role is Role.TRAIN for row in rows),
        holdout=sum(row.role is Role.HOLDOUT for row in rows),
        contributors=sum(row.stage is Stage.AGGREGATED for row in rows),
        evaluated=int(round_.metrics.get("evaluated", 0)),
        loss=candidate.get("loss"),
        loss_before=base.get("loss"),
        accuracy=candidate.get("accuracy"),
        auroc=candidate.get("auroc"),
        auroc_before=base.get("auroc"),
        macro_f1=candidate.get("macro_f1"),
        macro_f1_before=base.get("macro_f1"),
        bytes_up=totals.bytes_up,
        bytes_down=totals.bytes_down,
        started_at=round_.started_at,
        ended_at=round_.ended_at,
        duration_s=_duration_s(round_),
        dropped=tuple(row for row in rows if row.stage is Stage.DROPPED and row.reason not in _BLAMELESS),
    )


def detail(store: ReadStore, round_: Round) -> RoundDetail:
    """Everything about one round."""
    tasks: dict[str, list[Task]] = {}
    for task in store.tasks(round_.id):
        tasks.setdefault(task.device, []).append(task)
    devices = tuple(_report(row, tasks.get(row.device, [])) for row in store.round_devices(round_.id))
    plan: dict[str, Json] = to_json(load_plan(store, round_))
    return RoundDetail(summarise(store, round_), plan, devices)


def _report(row: RoundDevice, tasks: list[Task]) -> RoundDeviceReport:
    losses = [task.metrics.get("loss") for task in tasks if task.kind == TaskKind.TRAIN.value]
    return RoundDeviceReport(
        device=row.device,
        role=row.role,
        stage=row.stage,
        reason=row.reason,
        examples=row.examples,
        norm=row.norm,
        update_sha256=row.update_sha256,
        train_loss=losses[-1] if losses else None,
        bytes_up=sum(task.bytes_up for task in tasks),
        bytes_down=sum(task.bytes_down for task in tasks),
        cpu_ms=sum(task.cpu_ms for task in tasks),
        wall_ms=sum(task.wall_ms for task in tasks),
        peak_rss_bytes=max((task.peak_rss_bytes for task in tasks), default=0),
    )


def _evaluations(store: ReadStore, round_: Round, states: frozenset[str]) -> tuple[Task, ...]:
    return tuple(
        task
        for task in store.tasks(round_.id)
        if task.kind == TaskKind.EVALUATE.value and task.attempt == round_.attempt and task.state in states
    )


def _duration_s(round_: Round) -> float | None:
    if round_.ended_at is None:
        return None
    return (
        datetime.fromisoformat(round_.ended_at) - datetime.fromisoformat(round_.started_at)
    ).total_seconds()

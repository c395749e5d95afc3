"""The rounds of one run, under the model's lock: from a wish to a recorded plan, and on to its end."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from fedctl.core.clock import SYSTEM_CLOCK, rfc3339
from fedctl.core.errors import NotFoundError
from fedctl.core.plan import RoundWishes, quorum_of, round_plan
from fedctl.core.progress import Note, Observer, RoundEnded, RoundStarted
from fedctl.core.records import Device, Role
from fedctl.core.round_records import Round, RoundDevice, RoundPhase, RoundSummary, Stage
from fedctl.core.selector import Selector, without_maintenance
from fedctl.core.until import METRICS, Until
from fedctl.ops.models import resolve
from fedctl.ops.session import FleetSession
from fedctl.ops.training.driver import RoundDriver
from fedctl.ops.training.errand import errand_plan
from fedctl.ops.training.scaling import scaled_version
from fedctl.ops.training.site import RoundContext
from fedctl.ops.training.state import load_plan, summarise
from fedctl.release.bundle import Bundle, read_bundle
from fedctl.release.plan import sign_plan
from fedctl_wire.messages import Plan, TaskKind

RESUME_GRACE_S = 60.0  # a resumed round gives its devices at least so long, or its whole deadline


@dataclass(frozen=True, slots=True)
class Position:
    """Where a round stands in its run."""

    number: int = 1  # 1 for the first
    rounds: int = 1
    resumed: bool = False


FIRST = Position()


class Run:
    """The rounds of one `start`, under the model's lock."""

    def __init__(
        self, session: FleetSession, selector: Selector, wishes: RoundWishes, rounds: int, observer: Observer
    ) -> None:
        self._session = session
        self._store = session.store
        self._selector = selector
        self._wishes = wishes
        self._rounds = rounds
        self._observer = observer
        self._seed = secrets.randbits(48) if wishes.seed is None else wishes.seed

    def carry_out(self, reference: str, until: Until | None) -> tuple[list[RoundSummary], bool | None]:
        """Run the rounds; the second value says whether `until` was met, None without it."""
        self._say_who_is_left_out()
        base = self._base(reference)
        summaries: list[RoundSummary] = []
        for number in range(1, self._rounds + 1):
            round_ = self._plan(base, self._seed + number - 1)
            position = Position(number, self._rounds)
            summary = drive(self._session, round_, self._observer, position)
            summaries.append(summary)
            if summary.phase is not RoundPhase.PUBLISHED or summary.result_version is None:
                return summaries, None if until is None else False
            metrics = {metric: getattr(summary, metric) for metric in METRICS}
            if until is not None and until.met(metrics):
                return summaries, True
            base = _bundle(self._session, summary.model, summary.result_version)
        return summaries, None if until is None else False

    def _base(self, reference: str) -> Bundle:
        version = resolve(self._store, reference)
        base = _bundle(self._session, version.model, version.version)
        if not base.manifest.needs_scaling:
            return base
        train, _ = self._cohort()
        return scaled_version(
            self._session,
            base,
            train,
            quorum=quorum_of(self._wishes, len(train)),
            deadline_s=self._wishes.deadline_s,
            observer=self._observer,
        )

    def _cohort(self) -> tuple[tuple[Device, ...], tuple[Device, ...]]:
        """The devices that train, up to the selector's limit, and all that only evaluate."""
        chosen, _ = without_maintenance(self._selector.matches(self._store.devices()))
        train = self._selector.first(tuple(device for device in chosen if device.role is Role.TRAIN))
        if not train:
            raise NotFoundError(
                "the selector matches no device that trains",
                hint="add one: fedctl devices add NAME URL, or choose others; role=holdout only evaluates",
                subject="selector",
            )
        return train, tuple(device for device in chosen if device.role is Role.HOLDOUT)

    def _say_who_is_left_out(self) -> None:
        _, left_out = without_maintenance(self._selector.matches(self._store.devices()))
        if left_out:
            self._observer(Note(f"left out, in maintenance: {', '.join(d.name for d in left_out)}"))

    def _plan(self, base: Bundle, seed: int) -> Round:
        """Sign the plan and record the round with its devices, as one step."""
        train, holdout = self._cohort()
        round_uuid = str(uuid.uuid4())
        plan = round_plan(
            fleet=self._session.fleet.uuid,
            round_id=round_uuid,
            manifest=base.manifest,
            bundle=base.sha256,
            train=tuple(device.name for device in train),
            holdout=tuple(device.name for device in holdout),
            wishes=self._wishes,
            seed=seed,
        )
        envelope = sign_plan(plan, self._session.operator_key)
        now = SYSTEM_CLOCK.now()
        round_ = Round(
            id=0,
            uuid=round_uuid,
            model=base.manifest.model,
            base_version=base.manifest.model_version,
            plan=envelope.sha256,
            phase=RoundPhase.PLANNED,
            attempt=1,
            started_at=rfc3339(now),
            deadline_at=rfc3339(now + timedelta(seconds=self._wishes.deadline_s)),
            ended_at=None,
            result_version=None,
            reason=None,
        )
        rows = [RoundDevice(0, device.name, device.role, Stage.SELECTED) for device in (*train, *holdout)]
        with self._store.transaction():
            self._store.add_plan(envelope)
            return self._store.round(self._store.add_round(round_, rows))


def drive(
    session: FleetSession, round_: Round, observer: Observer, position: Position = FIRST
) -> RoundSummary:
    """Bring a recorded round to its end; the caller holds the model's lock."""
    store = session.store
    rows = store.round_devices(round_.id)
    session.home.round(round_.id).joinpath("updates").mkdir(parents=True, exist_ok=True)
    context = _context(session, round_, tuple(row.device for row in rows))
    observer(_started(round_, rows, position))
    enrolled = {device.name: device for device in store.devices()}
    devices = {row.device: enrolled[row.device] for row in rows if row.device in enrolled}
    remaining_s = _remaining_s(round_, context.plan, resumed=position.resumed)
    driver = RoundDriver(context, devices, remaining_s=remaining_s, observer=observer)
    summary = summarise(store, driver.run())
    observer(RoundEnded(round_.id, position.number, position.rounds, summary))
    return summary


def finish_unfinished(session: FleetSession, model: str, observer: Observer) -> tuple[RoundSummary, ...]:
    """Bring the model's unfinished round, if there is one, to its end by its own rules."""
    round_ = session.store.unfinished_round(model)
    if round_ is None:
        return ()
    rows = session.store.round_devices(round_.id)
    here = sum(row.stage in {Stage.COLLECTED, Stage.AGGREGATED} for row in rows)
    train = sum(row.role is Role.TRAIN for row in rows)
    observer(Note(f"round {round_.id} was {round_.phase.value}: {here} of {train} updates are here"))
    return (drive(session, round_, observer, Position(resumed=True)),)


def _context(session: FleetSession, round_: Round, names: tuple[str, ...]) -> RoundContext:
    base = _bundle(session, round_.model, round_.base_version)
    return RoundContext(
        session=session,
        round=round_,
        plan=load_plan(session.store, round_),
        envelope=session.store.plan(round_.plan),
        golden=errand_plan(session, base, TaskKind.GOLDEN, names),
        base=base,
    )


def _started(round_: Round, rows: tuple[RoundDevice, ...], position: Position) -> RoundStarted:
    return RoundStarted(
        round_id=round_.id,
        model=round_.model,
        base_version=round_.base_version,
        plan=round_.plan,
        train=tuple(row.device for row in rows if row.role is Role.TRAIN),
        holdout=tuple(row.device for row in rows if row.role is Role.HOLDOUT),
        number=position.number,
        rounds=position.rounds,
        resumed=position.resumed,
    )


def _remaining_s(round_: Round, plan: Plan, *, resumed: bool) -> float:
    """How long collection may still take. A resumed round whose time is up still asks once more."""
    deadline_s = plan.rules.deadline_s if plan.rules else RESUME_GRACE_S
    if not resumed:
        return deadline_s
    left_s = (datetime.fromisoformat(round_.deadline_at) - SYSTEM_CLOCK.now()).total_seconds()
    return min(deadline_s, max(left_s, RESUME_GRACE_S))


def _bundle(session: FleetSession, model: str, version: int) -> Bundle:
    return read_bundle(session.home.bundle(model, version), session.fleet.operator_key)

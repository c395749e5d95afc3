"""Rounds, as an admin asks for them: start, resume, cancel, list, show, watch."""

from __future__ import annotations

import secrets
import time
import uuid
from datetime import datetime, timedelta

from fedctl.core.clock import SYSTEM_CLOCK, rfc3339
from fedctl.core.errors import LockedError, NotFoundError, UsageError
from fedctl.core.home import Home
from fedctl.core.plan import RoundWishes, check_wishes, quorum_of, round_plan, task_plan
from fedctl.core.progress import DeviceProgress, Note, Observer, RoundEnded, RoundStarted, silent
from fedctl.core.records import Device, Role, Round, RoundDevice, RoundPhase, Stage
from fedctl.core.selector import Selector
from fedctl.core.until import Until
from fedctl.ops.models import resolve
from fedctl.ops.round_driver import RoundDriver, cancel_file
from fedctl.ops.round_results import RoundDetail, RoundSummary, RunResult
from fedctl.ops.round_state import detail, load_plan, summarise
from fedctl.ops.scaling import scaled_version
from fedctl.ops.session import FleetSession
from fedctl.ops.site import RoundContext
from fedctl.release.bundle import Bundle, read_bundle
from fedctl.release.plan import sign_plan
from fedctl.store import ReadStore, Store
from fedctl.store.lock import hold_lock, holder
from fedctl_wire.messages import TaskKind

DEFAULT_WISHES = RoundWishes()
RESUME_GRACE_S = 60.0  # a resumed round gives its devices at least so long, or its whole deadline
_CANCEL_WAIT_S = 30.0  # how long `cancel` waits for the process that drives the round
_WATCH_S = 0.5


def start(
    store: Store,
    home: Home,
    model: str | None,
    selector: Selector,
    *,
    wishes: RoundWishes = DEFAULT_WISHES,
    rounds: int = 1,
    skip_if_running: bool = False,
    observer: Observer = silent,
) -> RunResult:
    """Finish what is unfinished for the model, then run `rounds` rounds of it.

    A run ends early when `wishes.until` is met, or with the first round that is not published.

    Args:
        store: The state database.
        home: The fleet's home.
        model: `NAME` or `NAME@VERSION`; None when there is only one model.
        selector: Which devices take part, of the whole fleet.
        wishes: What differs from the defaults.
        rounds: At least one.
        skip_if_running: Return at once when another run holds the model.
        observer: Told what happens, from the calling thread.

    Raises:
        NotFoundError: The model does not exist, or the selector matches no training device.
        UsageError: A wish is out of range.
        LockedError: Another run holds the model.
        NotMetError: The model could not be scaled.
    """
    check_wishes(wishes)
    if rounds < 1:
        raise UsageError(f"--rounds is {rounds}; it must be at least 1")
    reference = model or _only_model(store)
    name = resolve(store, reference).model
    until = Until.parse(wishes.until) if wishes.until else None
    try:
        with hold_lock(home, model=name), FleetSession(store, home) as session:
            resumed = _finish_unfinished(session, name, observer)
            run = _Run(session, selector, wishes, rounds, observer)
            summaries, met = run.carry_out(reference, until)
    except LockedError:
        if not skip_if_running:
            raise
        return RunResult(rounds=(), skipped=True)
    return RunResult(tuple(summaries), resumed, wishes.until, met)


def resume(
    store: Store, home: Home, round_id: int | None = None, *, observer: Observer = silent
) -> tuple[RoundSummary, ...]:
    """Finish one unfinished round, or all of them; a round that has ended stays as it is.

    Raises:
        NotFoundError: There is no such round.
        LockedError: Another run drives it.
    """
    chosen = [store.round(round_id)] if round_id is not None else _unfinished(store)
    summaries = []
    for round_ in chosen:
        if round_.phase.final:
            summaries.append(summarise(store, round_))
            continue
        with hold_lock(home, model=round_.model), FleetSession(store, home) as session:
            summaries += _finish_unfinished(session, round_.model, observer)
    return tuple(summaries)


def cancel(store: Store, home: Home, round_id: int | None = None) -> RoundSummary:
    """End an unfinished round; nothing of it is published. A round that has ended stays as it is.

    Raises:
        NotFoundError: There is no such round, or none is unfinished.
        UsageError: Several are unfinished and none was named.
        LockedError: The process that drives the round did not end it in time.
    """
    round_ = store.round(round_id) if round_id is not None else _only_unfinished(store)
    if round_.phase.final:
        return summarise(store, round_)
    marker = cancel_file(home, round_.id)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    deadline = time.monotonic() + _CANCEL_WAIT_S
    while True:
        try:
            with hold_lock(home, model=round_.model), FleetSession(store, home) as session:
                _finish_unfinished(session, round_.model, silent)
        except LockedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_WATCH_S)
        if store.round(round_.id).phase.final:
            return summarise(store, store.round(round_.id))


def list_rounds(store: ReadStore, *, model: str | None = None, limit: int = 50) -> tuple[RoundSummary, ...]:
    """The latest rounds, newest first.

    Raises:
        NotFoundError: There is no such model.
    """
    if model is not None:
        store.model(model)
    return tuple(summarise(store, round_) for round_ in store.rounds(model=model, limit=limit))


def show(store: ReadStore, round_id: int) -> RoundDetail:
    """Everything about one round.

    Raises:
        NotFoundError: There is no such round.
    """
    return detail(store, store.round(round_id))


def watch(
    store: ReadStore, home: Home, round_id: int | None = None, *, observer: Observer = silent
) -> RoundSummary:
    """Follow a round that another process drives, from the database, until it ends or nobody drives it.

    Raises:
        NotFoundError: There is no such round, or none at all.
    """
    round_ = store.round(round_id) if round_id is not None else _newest(store)
    seen: dict[str, RoundDevice] = {}
    while True:
        round_ = store.round(round_.id)
        for row in store.round_devices(round_.id):
            if seen.get(row.device) != row:
                seen[row.device] = row
                observer(DeviceProgress(row.device, row.stage.value, row.reason or ""))
        if round_.phase.final:
            return summarise(store, round_)
        if holder(home, model=round_.model) is None:
            observer(Note(f"nobody drives round {round_.id}; go on with: fedctl round resume {round_.id}"))
            return summarise(store, round_)
        time.sleep(_WATCH_S)


class _Run:
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
        base = self._base(reference)
        summaries: list[RoundSummary] = []
        for number in range(1, self._rounds + 1):
            round_ = self._plan(base, self._seed + number - 1)
            summary = drive(self._session, round_, self._observer, number=number, rounds=self._rounds)
            summaries.append(summary)
            if summary.phase is not RoundPhase.PUBLISHED or summary.result_version is None:
                return summaries, None if until is None else False
            metrics = {"loss": summary.loss, "accuracy": summary.accuracy, "auroc": summary.auroc}
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
        chosen = self._selector.select(self._store.devices())
        train = tuple(device for device in chosen if device.role is Role.TRAIN)
        if not train:
            raise NotFoundError(
                "the selector matches no device that trains",
                hint="add one: fedctl devices add NAME URL, or choose others; role=holdout only evaluates",
                subject="selector",
            )
        return train, tuple(device for device in chosen if device.role is Role.HOLDOUT)

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
    session: FleetSession,
    round_: Round,
    observer: Observer,
    *,
    number: int = 1,
    rounds: int = 1,
    resumed: bool = False,
) -> RoundSummary:
    """Bring a recorded round to its end; the caller holds the model's lock."""
    store = session.store
    plan = load_plan(store, round_)
    rows = store.round_devices(round_.id)
    enrolled = {device.name: device for device in store.devices()}
    session.home.round(round_.id).joinpath("updates").mkdir(parents=True, exist_ok=True)
    base = _bundle(session, round_.model, round_.base_version)
    golden = str(uuid.uuid4())
    golden_plan = task_plan(
        fleet=session.fleet.uuid,
        round_id=golden,
        manifest=base.manifest,
        bundle=base.sha256,
        kind=TaskKind.GOLDEN,
        devices=tuple(row.device for row in rows),
    )
    context = RoundContext(
        session=session,
        round=round_,
        plan=plan,
        envelope=store.plan(round_.plan),
        golden=(golden, sign_plan(golden_plan, session.operator_key)),
        base=base,
    )
    observer(
        RoundStarted(
            round_id=round_.id,
            model=round_.model,
            base_version=round_.base_version,
            plan=round_.plan,
            train=tuple(row.device for row in rows if row.role is Role.TRAIN),
            holdout=tuple(row.device for row in rows if row.role is Role.HOLDOUT),
            number=number,
            rounds=rounds,
            resumed=resumed,
        )
    )
    deadline_s = plan.rules.deadline_s if plan.rules else RESUME_GRACE_S
    left_s = (datetime.fromisoformat(round_.deadline_at) - SYSTEM_CLOCK.now()).total_seconds()
    remaining_s = min(deadline_s, max(left_s, RESUME_GRACE_S)) if resumed else deadline_s
    devices = {row.device: enrolled[row.device] for row in rows if row.device in enrolled}
    driver = RoundDriver(context, devices, remaining_s=remaining_s, observer=observer)
    summary = summarise(store, driver.run())
    observer(RoundEnded(round_.id, number, rounds, summary))
    return summary


def _finish_unfinished(session: FleetSession, model: str, observer: Observer) -> tuple[RoundSummary, ...]:
    """Bring the model's unfinished round, if there is one, to its end by its own rules."""
    round_ = session.store.unfinished_round(model)
    if round_ is None:
        return ()
    rows = session.store.round_devices(round_.id)
    here = sum(row.stage in {Stage.COLLECTED, Stage.AGGREGATED} for row in rows)
    train = sum(row.role is Role.TRAIN for row in rows)
    observer(Note(f"round {round_.id} was {round_.phase.value}: {here} of {train} updates are here"))
    return (drive(session, round_, observer, resumed=True),)


def _bundle(session: FleetSession, model: str, version: int) -> Bundle:
    return read_bundle(session.home.bundle(model, version), session.fleet.operator_key)


def _only_model(store: ReadStore) -> str:
    models = store.models()
    if len(models) == 1:
        return models[0].name
    if not models:
        raise NotFoundError(
            "there is no model yet", hint="make one: fedctl model create NAME --builder mlp …"
        )
    names = ", ".join(model.name for model in models)
    raise UsageError("there are several models; name one", hint=f"models: {names}")


def _unfinished(store: ReadStore) -> list[Round]:
    found = [store.unfinished_round(model.name) for model in store.models()]
    return [round_ for round_ in found if round_ is not None]


def _only_unfinished(store: ReadStore) -> Round:
    unfinished = _unfinished(store)
    if len(unfinished) == 1:
        return unfinished[0]
    if not unfinished:
        raise NotFoundError("no round is unfinished", hint="see: fedctl round list")
    numbers = ", ".join(f"{round_.id} ({round_.model})" for round_ in unfinished)
    raise UsageError("several rounds are unfinished; name one", hint=f"unfinished: {numbers}")


def _newest(store: ReadStore) -> Round:
    rounds = store.rounds(limit=1)
    if not rounds:
        raise NotFoundError("there is no round yet", hint="start one: fedctl round start")
    return _unfinished(store)[-1] if _unfinished(store) else rounds[0]

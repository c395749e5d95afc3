"""Rounds, as an admin asks for them: start, resume, cancel, list, show, watch."""

from __future__ import annotations

import time

from fedctl.core.errors import LockedError, NotFoundError, UsageError
from fedctl.core.home import Home
from fedctl.core.plan import RoundWishes, check_wishes
from fedctl.core.progress import DeviceProgress, Note, Observer, silent
from fedctl.core.round_records import Round, RoundDevice, RoundSummary
from fedctl.core.selector import Selector
from fedctl.core.until import Until
from fedctl.ops.models import resolve
from fedctl.ops.models import show as show_model
from fedctl.ops.round_results import RoundDetail, RunResult
from fedctl.ops.session import FleetSession
from fedctl.ops.training.driver import cancel_file
from fedctl.ops.training.run import Run, finish_unfinished
from fedctl.ops.training.state import detail, summarise
from fedctl.store import ReadStore, Store
from fedctl.store.lock import hold_lock, holder

DEFAULT_WISHES = RoundWishes()
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
        UsageError: A wish is out of range, or the target is of a metric that the model does not have.
        LockedError: Another run holds the model.
        NotMetError: The model could not be scaled.
    """
    check_wishes(wishes)
    if rounds < 1:
        raise UsageError(f"--rounds is {rounds}; it must be at least 1")
    reference = _only_model(store) if model is None else model
    name = resolve(store, reference).model
    until = Until.parse(wishes.until) if wishes.until else None
    if until is not None:
        until.check_classes(show_model(store, home, reference).manifest.classes)
    try:
        with hold_lock(home, model=name), FleetSession(store, home) as session:
            resumed = finish_unfinished(session, name, observer)
            run = Run(session, selector, wishes, rounds, observer)
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
            summaries += finish_unfinished(session, round_.model, observer)
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
                finish_unfinished(session, round_.model, silent)
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
    unfinished = _unfinished(store)
    return unfinished[-1] if unfinished else rounds[0]

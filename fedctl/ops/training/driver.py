"""Drives one round: turns the machine's effects into work and the outcome of work into events.

The main thread owns the state, the round's rows and the observer; one thread a device exchanges with
its agent and posts what happened. What is drained from the queue together is written in one transaction,
files first, so a kill at any instant loses no more than work that is done again. A device's thread
acknowledges a result only after that transaction.
"""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from fedctl.core import round_machine as machine
from fedctl.core.clock import SYSTEM_CLOCK
from fedctl.core.errors import FedctlError
from fedctl.core.gate import Verdict, judge
from fedctl.core.home import Home
from fedctl.core.model_records import VersionState
from fedctl.core.progress import DeviceProgress, Note, Observer
from fedctl.core.records import Device
from fedctl.core.round_records import Round, RoundPhase, Stage, Task
from fedctl.ops.fleet import actor
from fedctl.ops.models import version_row
from fedctl.ops.training.candidate import candidate_bundle, make_candidate
from fedctl.ops.training.site import WAITING, Posted, RoundContext, Site, Wiring
from fedctl.ops.training.state import load_evaluations, load_state, measured_json
from fedctl.release.bundle import Bundle
from fedctl.transport import sweep
from fedctl_wire.manifest import GRAPH_FILE
from fedctl_wire.messages import TaskKind, task_id

EVALUATION_CONTACT_S = 30.0  # how long an evaluation waits for a device that does not answer
_TICK_S = 1.0  # how often the file that cancels a round is looked for
_SETTLE_S = 3.0  # how long a phase waits for acknowledgements of the one before


def cancel_file(home: Home, round_id: int) -> Path:
    """The file whose existence asks whoever drives the round to end it."""
    return home.round(round_id) / "cancel"


@dataclass(slots=True)
class _Batch:
    """What was drained together and is recorded in one transaction."""

    posted: list[tuple[Posted, threading.Event]] = field(default_factory=list)
    events: list[machine.Event] = field(default_factory=list)


class RoundDriver:
    """Drives one round to its end; use `run` once."""

    def __init__(
        self, context: RoundContext, devices: dict[str, Device], *, remaining_s: float, observer: Observer
    ) -> None:
        """Take over a round that is recorded as not final.

        Args:
            context: The round, its plan and base.
            devices: Those of the round's devices that are still enrolled.
            remaining_s: How long collection may still take.
            observer: Told what devices do, from the calling thread.
        """
        rules = context.plan.rules
        if rules is None:
            raise ValueError("the plan of a round has rules")
        self._rules = rules
        self._context = context
        self._store = context.session.store
        self._devices = devices
        self._observer = observer
        self._rows = {row.device: row for row in self._store.round_devices(context.round.id)}
        self._state = load_state(self._store, context.round, rules.quorum)
        self._deadline = time.monotonic() + remaining_s
        self._inbox: queue.SimpleQueue[tuple[Posted, threading.Event] | DeviceProgress | Exception] = (
            queue.SimpleQueue()
        )
        self._stop = threading.Event()  # of the sites at work now
        self._active: set[str] = set()  # devices whose site has not ended
        self._ended = threading.Condition()
        self._bundle: Bundle | None = None  # the candidate, once it is needed
        self._newborn = False  # whether this command made it
        self._silent: set[str] = set()  # devices that a note said do not answer

    def run(self) -> Round:
        """Drive the round to its end and return its row; an interruption leaves it resumable."""
        round_id = self._context.round.id
        try:
            effects = self._start()
            while not self._state.phase.final:
                for effect in effects:
                    self._perform(effect)
                effects = self._advance(self._drain())
        except BaseException:
            self._settle(wait_s=0)  # interrupted: what is not acknowledged is released at the next contact
            raise
        self._settle()
        self._advance(self._drain())  # what was acknowledged meanwhile
        self._release_late()
        shutil.rmtree(self._context.session.home.round(round_id), ignore_errors=True)
        return self._store.round(round_id)

    # ------------------------------------------------------------------ events

    def _start(self) -> tuple[machine.Effect, ...]:
        gone = [name for name in self._rows if name not in self._devices]
        batch = _Batch(events=[machine.Dropped(name, "no longer enrolled") for name in gone])
        if self._cancel_requested():
            batch.events.append(machine.Cancelled())
        if self._state.phase is RoundPhase.PLANNED:
            batch.events.insert(0, machine.Began())
            return self._advance(batch)
        phase = self._state.phase
        effects = self._advance(batch)
        return effects if self._state.phase is not phase else machine.resume(self._state)

    def _cancel_requested(self) -> bool:
        return cancel_file(self._context.session.home, self._context.round.id).exists()

    def _drain(self) -> _Batch:
        """Wait for something to happen, then take everything that has."""
        batch = _Batch()
        timeout = max(0.0, min(_TICK_S, self._deadline - time.monotonic()))
        if self._state.phase.final:
            timeout = 0.0
        try:
            self._take(self._inbox.get(timeout=timeout), batch)
            while True:
                self._take(self._inbox.get_nowait(), batch)
        except queue.Empty:
            pass
        if time.monotonic() >= self._deadline:
            batch.events.extend(self._out_of_time())
        if self._cancel_requested():
            batch.events.append(machine.Cancelled())
        return batch

    def _out_of_time(self) -> list[machine.Event]:
        if self._state.phase is RoundPhase.RUNNING:
            return [machine.DeadlinePassed()]
        return [machine.EvaluationFailed(name, machine.LATE, code="late") for name in self._state.awaited]

    def _take(self, item: tuple[Posted, threading.Event] | DeviceProgress | Exception, batch: _Batch) -> None:
        if isinstance(item, Exception):
            raise item
        if isinstance(item, DeviceProgress):
            self._tell(item)
            return
        batch.posted.append(item)
        if item[0].event is not None:
            batch.events.append(item[0].event)

    def _tell(self, progress: DeviceProgress) -> None:
        self._observer(progress)
        if progress.stage == WAITING and progress.device not in self._silent:
            self._silent.add(progress.device)
            left = timedelta(seconds=self._deadline - time.monotonic())
            until = (SYSTEM_CLOCK.now() + left).strftime("%H:%M:%S UTC")
            self._observer(Note(f"{progress.device} does not answer; waiting until {until}"))

    def _advance(self, batch: _Batch) -> tuple[machine.Effect, ...]:
        """Apply events and record what they change in one transaction."""
        before = state = self._state
        effects: list[machine.Effect] = []
        for event in batch.events:
            state, more = machine.step(state, event)
            effects.extend(more)
        with self._store.transaction():
            self._context.session.record_deployments()
            for posted, _ in batch.posted:
                self._record(posted)
            for event in batch.events:
                if isinstance(event, machine.EvaluationFailed) and event.device in before.awaited:
                    self._store.put_task(self._failed_evaluation(event))
            self._record_state(before, state)
        self._state = state
        for _, recorded in batch.posted:
            recorded.set()
        return tuple(effects)

    def _record(self, posted: Posted) -> None:
        if posted.task is not None:
            self._store.put_task(posted.task)
        if posted.golden is not None:
            self._record_golden(posted.device, posted.golden)
        if posted.update is not None and posted.device in self._state.uncollected:
            update = posted.update
            self._rows[posted.device] = replace(
                self._rows[posted.device],
                update_sha256=update.sha256,
                norm=update.norm,
                examples=update.examples,
            )

    def _record_golden(self, device: str, passed: dict[str, str]) -> None:
        known = self._store.device(device).facts.get("golden", {})
        graph = self._context.base.manifest.files[GRAPH_FILE].sha256
        self._store.set_device_seen(device, facts={"golden": {**known, graph: passed}})

    def _failed_evaluation(self, event: machine.EvaluationFailed) -> Task:
        round_ = self._context.round
        name = task_id(
            round_id=round_.uuid,
            attempt=round_.attempt,
            device=event.device,
            plan=self._context.envelope.sha256,
            kind=TaskKind.EVALUATE,
            bundle=self._candidate().sha256,
        )
        return Task(
            name,
            round_.id,
            event.device,
            TaskKind.EVALUATE.value,
            round_.attempt,
            "failed",
            reason=event.reason,
            metrics={"code": event.code},
        )

    def _record_state(self, before: machine.RoundState, after: machine.RoundState) -> None:
        for name, member in after.members.items():
            if member != before.members[name] or self._rows[name].stage is not member.stage:
                self._rows[name] = replace(self._rows[name], stage=member.stage, reason=member.reason)
                self._store.set_round_device(self._rows[name])
        if after.phase is before.phase:
            return
        round_ = self._context.round
        self._store.set_round_phase(round_.id, after.phase, reason=after.reason)
        if after.phase.final:
            self._record_end(after)

    def _record_end(self, state: machine.RoundState) -> None:
        """The decision and what it does to the model are one step."""
        round_ = self._store.round(self._context.round.id)
        if round_.result_version is not None:
            if state.phase is RoundPhase.PUBLISHED:
                self._store.publish(round_.model, round_.result_version)
            else:
                self._store.set_version_state(round_.model, round_.result_version, VersionState.REJECTED)
        self._store.add_event(
            actor=actor(),
            verb="round",
            subject=f"{round_.model}/{round_.id}",
            result=state.phase.value,
            detail={"plan": round_.plan, "version": round_.result_version, "reason": state.reason},
        )

    # ------------------------------------------------------------------ effects

    def _perform(self, effect: machine.Effect) -> None:
        match effect:
            case machine.Train(devices):
                self._send(devices, lambda site: site.train())
            case machine.Aggregate(contributors):
                self._aggregate(contributors)
            case machine.Evaluate(devices):
                candidate = self._candidate()
                self._deadline = time.monotonic() + self._rules.deadline_s
                self._send(
                    devices,
                    lambda site: site.evaluate(
                        candidate, newborn=self._newborn, contact_s=EVALUATION_CONTACT_S
                    ),
                )
            case machine.Judge():
                self._judge()
            case machine.End():
                self._stop.set()

    def _send(self, names: tuple[str, ...], work: Callable[[Site], None]) -> None:
        """Start the sites' threads, after those of an earlier phase have ended."""
        self._settle()
        self._stop = threading.Event()
        wiring = Wiring(self._post, self._inbox.put, self._stop, self._deadline)
        known = [self._devices[name] for name in names if name in self._devices]
        self._active = {device.name for device in known}

        def attend(device: Device) -> None:
            try:
                work(Site(self._context, device, wiring))
            finally:
                with self._ended:
                    self._active.discard(device.name)
                    self._ended.notify_all()
                self._context.session.reap(device.name)

        def dispatch() -> None:
            try:
                for _, outcome in sweep(known, attend):
                    if isinstance(outcome, FedctlError):  # nothing that a device could be dropped for
                        self._inbox.put(outcome)
            except Exception as error:  # noqa: BLE001 - a defect in a site is raised by the driver
                self._inbox.put(error)

        threading.Thread(target=dispatch, daemon=True, name="sites").start()

    def _settle(self, *, wait_s: float = _SETTLE_S) -> None:
        """Let sites finish what they acknowledge, and cut off those that the round gave up."""
        late = set(self._state.at(Stage.DROPPED))
        with self._ended:
            self._ended.wait_for(lambda: self._active <= late, timeout=wait_s)
            self._stop.set()
            for name in self._active:  # under the condition: each still has its `reap` before it
                self._context.session.abandon(name)

    def _release_late(self) -> None:
        """Free the task slots of devices that the round gave up, as far as they answer at once."""
        session = self._context.session
        late = [d for d in self._devices.values() if self._store.lingering_tasks(d.name)]

        def greet() -> None:
            for _ in sweep(late, session.release):
                pass

        if late:
            thread = threading.Thread(target=greet, daemon=True, name="release")
            thread.start()
            thread.join(_SETTLE_S)

    def _post(self, posted: Posted) -> threading.Event:
        recorded = threading.Event()
        self._inbox.put((posted, recorded))
        return recorded

    def _aggregate(self, contributors: tuple[str, ...]) -> None:
        try:
            bundle = make_candidate(self._context, [self._rows[name] for name in contributors])
        except FedctlError as error:
            if error.code != "non_finite":
                raise
            self._post(Posted("", machine.AggregateFailed(error.message)))
            return
        with self._store.transaction():
            self._store.add_version(
                version_row(bundle, VersionState.CANDIDATE, round_id=self._context.round.id)
            )
            self._store.set_round_phase(
                self._context.round.id,
                RoundPhase.AGGREGATING,
                result_version=bundle.manifest.model_version,
            )
        self._bundle, self._newborn = bundle, True
        self._post(Posted("", machine.Aggregated()))

    def _candidate(self) -> Bundle:
        if self._bundle is None:
            self._bundle = candidate_bundle(self._context)
        return self._bundle

    def _judge(self) -> None:
        round_ = self._context.round
        evaluations = load_evaluations(self._store, round_)
        verdict = judge(evaluations.pairs, tolerance=self._rules.tolerance)
        diverged = [device for device, code in evaluations.failures.items() if code == "non_finite"]
        if diverged:
            reason = f"the candidate's loss is not finite on {', '.join(sorted(diverged))}"
            verdict = replace(verdict, passed=False, reason=reason)
        self._record_verdict(verdict, len(evaluations.pairs))
        self._post(Posted("", machine.Judged(verdict.passed, verdict.reason)))

    def _record_verdict(self, verdict: Verdict, evaluated: int) -> None:
        round_ = self._context.round
        version = self._candidate().manifest.model_version
        gate = "failed" if not verdict.passed else "none" if verdict.candidate is None else "passed"
        measured = measured_json(verdict.candidate)
        metrics = {
            "gate": gate,
            "base": measured_json(verdict.base),
            "candidate": measured,
            "evaluated": evaluated,
        }
        with self._store.transaction():
            self._store.set_round_phase(round_.id, RoundPhase.EVALUATING, metrics=metrics)
            self._store.set_version_state(
                round_.model, version, VersionState.CANDIDATE, metrics=measured or {}
            )

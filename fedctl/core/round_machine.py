"""The round as a pure state machine: `(state, event) -> (state, effects)`.

No clock, socket, file or randomness in here: whoever drives it turns effects into work and the
outcome of work into events, in any order and any number of times. The state is exactly what the
database holds of a round, so that a driver killed anywhere rebuilds it and asks `resume` what to do.

Invariants, per attempt, for every sequence of events:
- a final phase is never left, and a final stage of a device is never left;
- no update is counted twice, and none that arrives after collection ended;
- collection ends once: when every training device is collected or dropped, or at the deadline;
- `Aggregate` is asked for only with at least `quorum` contributors, in the order of device names;
- when the round ends, every device is in a final stage;
- a published round had its quorum, and its gate passed or there was nobody to evaluate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from fedctl.core.records import Role
from fedctl.core.round_records import RoundPhase, Stage

_ORDER = (Stage.SELECTED, Stage.SENT, Stage.TRAINING, Stage.READY, Stage.COLLECTED)
_FINAL = frozenset({Stage.AGGREGATED, Stage.EVALUATED, Stage.DROPPED})

LATE = "late: not here when collection ended"
NOT_NEEDED = "not needed: the round ended before it was asked"
UNUSED = "delivered, but nothing was published"


@dataclass(frozen=True, slots=True)
class Member:
    """One device of the round."""

    role: Role
    stage: Stage = Stage.SELECTED
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RoundState:
    """Everything that decides how the round goes on."""

    phase: RoundPhase
    quorum: int
    members: Mapping[str, Member]
    awaited: frozenset[str] = frozenset()  # devices whose evaluation is still open
    reason: str | None = None

    def in_role(self, role: Role) -> tuple[str, ...]:
        """Names of the devices in that role, sorted."""
        return tuple(sorted(name for name, member in self.members.items() if member.role is role))

    def at(self, *stages: Stage) -> tuple[str, ...]:
        """Names of the devices at any of these stages, sorted."""
        return tuple(sorted(name for name, member in self.members.items() if member.stage in stages))

    @property
    def judges(self) -> tuple[str, ...]:
        """Who measures the candidate: the hold-out devices, or the contributors where there are none."""
        holdout = self.in_role(Role.HOLDOUT)
        return holdout or self.at(Stage.COLLECTED, Stage.AGGREGATED)

    def awaiting(self, closed: Collection[str] = ()) -> RoundState:
        """The state in which all judges but the `closed` ones still owe their evaluation."""
        return replace(self, awaited=frozenset(self.judges) - frozenset(closed))

    @property
    def uncollected(self) -> tuple[str, ...]:
        """Training devices whose update is neither here nor given up, sorted."""
        return tuple(
            name
            for name in self.in_role(Role.TRAIN)
            if self.members[name].stage not in _FINAL | {Stage.COLLECTED}
        )


# ------------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Began:
    """The plan is signed and the devices may be told."""


@dataclass(frozen=True, slots=True)
class Advanced:
    """A device got as far as `stage`: sent, training or ready. An earlier stage is ignored."""

    device: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class Collected:
    """A verified update of the device is durably here."""

    device: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """The device is given up in this attempt."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """Collection has taken as long as it may."""


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The candidate version is durably here."""


@dataclass(frozen=True, slots=True)
class AggregateFailed:
    """No usable candidate comes of these updates."""

    reason: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The device measured base and candidate."""

    device: str


@dataclass(frozen=True, slots=True)
class EvaluationFailed:
    """The device will not measure them; `code` is a stable word for why."""

    device: str
    reason: str
    code: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """The gate compared candidate and base."""

    passed: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A person asked for the round to stop."""


Event = (
    Began
    | Advanced
    | Collected
    | Dropped
    | DeadlinePassed
    | Aggregated
    | AggregateFailed
    | Evaluated
    | EvaluationFailed
    | Judged
    | Cancelled
)


# ----------------------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Train:
    """Bring these devices from where they are to `collected`."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Make the candidate from these devices' updates, in this order."""

    contributors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Have these devices measure base and candidate."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judge:
    """Compare what came back; with nobody to evaluate, judge that."""


@dataclass(frozen=True, slots=True)
class End:
    """The round is over; the phase says how. Running tasks may be cancelled."""


Effect = Train | Aggregate | Evaluate | Judge | End
Step = tuple[RoundState, tuple[Effect, ...]]


def step(state: RoundState, event: Event) -> Step:
    """Apply one event. Events that come too late or twice change nothing."""
    if state.phase.final:
        return state, ()
    after: Step = (state, ())
    match event:
        case Cancelled():
            after = _end(state, RoundPhase.CANCELLED, "cancelled")
        case Began() if state.phase is RoundPhase.PLANNED:
            running = replace(state, phase=RoundPhase.RUNNING)
            after = running, resume(running)
        case Advanced(device, stage):
            after = _advance(state, device, stage), ()
        case Collected() | Dropped() | DeadlinePassed() if state.phase is RoundPhase.RUNNING:
            after = _collect(state, event)
        case Aggregated() if state.phase is RoundPhase.AGGREGATING:
            after = _begin_evaluation(state)
        case AggregateFailed(reason) if state.phase is RoundPhase.AGGREGATING:
            after = _end(state, RoundPhase.REJECTED, reason)
        case Evaluated() | EvaluationFailed() if event.device in state.awaited:
            after = _evaluate(state, event)
        case Judged(passed, why) if state.phase is RoundPhase.EVALUATING and not state.awaited:
            after = _end(state, RoundPhase.PUBLISHED if passed else RoundPhase.REJECTED, why)
    return after


def resume(state: RoundState) -> tuple[Effect, ...]:
    """What a driver that finds the round in this state must do next."""
    match state.phase:
        case RoundPhase.RUNNING:
            return (Train(state.uncollected),)
        case RoundPhase.AGGREGATING:
            return (Aggregate(state.at(Stage.COLLECTED)),)
        case RoundPhase.EVALUATING:
            return (Evaluate(tuple(sorted(state.awaited))),) if state.awaited else (Judge(),)
        case _:
            return ()


def _set(state: RoundState, device: str, stage: Stage, reason: str | None = None) -> RoundState:
    member = replace(state.members[device], stage=stage, reason=reason)
    return replace(state, members={**state.members, device: member})


def _advance(state: RoundState, device: str, stage: Stage) -> RoundState:
    member = state.members[device]
    if member.stage in _FINAL or stage not in _ORDER[:-1]:
        return state
    if _ORDER.index(stage) <= _ORDER.index(member.stage):
        return state
    return _set(state, device, stage)


def _collect(state: RoundState, event: Collected | Dropped | DeadlinePassed) -> Step:
    match event:
        case Collected(device) if device in state.uncollected:
            state = _set(state, device, Stage.COLLECTED)
        case Dropped(device, reason) if device in state.uncollected:
            state = _set(state, device, Stage.DROPPED, reason)
        case DeadlinePassed():
            for device in state.uncollected:
                state = _set(state, device, Stage.DROPPED, LATE)
        case _:
            return state, ()
    return (state, ()) if state.uncollected else _close_collection(state)


def _close_collection(state: RoundState) -> Step:
    contributors = state.at(Stage.COLLECTED)
    if len(contributors) < state.quorum:
        cohort = len(state.in_role(Role.TRAIN))
        reason = f"quorum {state.quorum} not met: {len(contributors)} of {cohort} devices delivered"
        return _end(state, RoundPhase.FAILED, reason)
    state = replace(state, phase=RoundPhase.AGGREGATING)
    return state, resume(state)


def _begin_evaluation(state: RoundState) -> Step:
    for device in state.at(Stage.COLLECTED):
        state = _set(state, device, Stage.AGGREGATED)
    state = replace(state, phase=RoundPhase.EVALUATING).awaiting()
    return state, resume(state)


def _evaluate(state: RoundState, event: Evaluated | EvaluationFailed) -> Step:
    state = replace(state, awaited=state.awaited - {event.device})
    if state.members[event.device].role is Role.HOLDOUT:
        if isinstance(event, EvaluationFailed):
            state = _set(state, event.device, Stage.DROPPED, event.reason)
        else:
            state = _set(state, event.device, Stage.EVALUATED)
    return (state, ()) if state.awaited else (state, (Judge(),))


def _end(state: RoundState, phase: RoundPhase, reason: str | None) -> Step:
    why = {Stage.SELECTED: NOT_NEEDED, Stage.COLLECTED: UNUSED}
    for name, member in state.members.items():
        if member.stage not in _FINAL:
            state = _set(state, name, Stage.DROPPED, why.get(member.stage, reason or NOT_NEEDED))
    return replace(state, phase=phase, awaited=frozenset(), reason=reason), (End(),)

"""Every sequence of events keeps the invariants that the round machine states."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.core import round_machine as machine
from fedctl.core.records import Role
from fedctl.core.round_machine import Member, RoundState, resume, step
from fedctl.core.round_records import RoundPhase, Stage

TRAIN = ("anna", "bert", "carl")
HOLDOUT = ("dora", "emil")
FINAL = {Stage.AGGREGATED, Stage.EVALUATED, Stage.DROPPED}

devices = st.sampled_from(TRAIN + HOLDOUT)
events = st.one_of(
    st.just(machine.Began()),
    st.just(machine.DeadlinePassed()),
    st.just(machine.Aggregated()),
    st.just(machine.AggregateFailed("nan")),
    st.just(machine.Cancelled()),
    st.builds(machine.Judged, st.booleans()),
    st.builds(machine.Advanced, devices, st.sampled_from(list(Stage))),
    st.builds(machine.Collected, devices),
    st.builds(machine.Dropped, devices, st.just("gone")),
    st.builds(machine.Evaluated, devices),
    st.builds(machine.EvaluationFailed, devices, st.just("gone")),
)


@st.composite
def rounds(draw: st.DrawFn) -> RoundState:
    holdout = draw(st.sampled_from([(), HOLDOUT]))
    members = {name: Member(Role.TRAIN) for name in TRAIN} | {name: Member(Role.HOLDOUT) for name in holdout}
    return RoundState(RoundPhase.PLANNED, draw(st.integers(1, len(TRAIN))), members)


def known(state: RoundState, event: machine.Event) -> bool:
    return getattr(event, "device", None) in {None, *state.members}


@settings(max_examples=400, deadline=None)
@given(state=rounds(), happened=st.lists(events, max_size=40))
def test_invariants_hold_for_every_sequence_of_events(
    state: RoundState, happened: list[machine.Event]
) -> None:
    aggregated: list[tuple[str, ...]] = []
    ended = 0
    for event in filter(lambda e: known(state, e), happened):
        before = state
        collected_before = before.at(Stage.COLLECTED)
        state, effects = step(before, event)
        if before.phase.final:
            assert state == before
            assert not effects
        for name, member in before.members.items():
            if member.stage in FINAL:
                assert state.members[name] == member
        for effect in effects:
            if isinstance(effect, machine.Aggregate):
                aggregated.append(effect.contributors)
                assert len(effect.contributors) >= state.quorum
                assert list(effect.contributors) == sorted(set(effect.contributors))
                assert set(collected_before) <= set(effect.contributors)
            ended += isinstance(effect, machine.End)
        if state.phase.final:
            assert all(member.stage in FINAL for member in state.members.values())
        if state.phase is RoundPhase.PUBLISHED:
            assert set(state.at(Stage.AGGREGATED)) == set(aggregated[0])
            assert not state.awaited
    assert len(aggregated) <= 1
    assert ended == state.phase.final


@settings(max_examples=200, deadline=None)
@given(state=rounds(), happened=st.lists(events, max_size=30), order=st.randoms(use_true_random=False))
def test_every_round_can_be_brought_to_an_end(
    state: RoundState, happened: list[machine.Event], order: object
) -> None:
    for event in filter(lambda e: known(state, e), happened):
        state, _ = step(state, event)
    state = _drive_to_the_end(state)
    assert state.phase.final


def _drive_to_the_end(state: RoundState) -> RoundState:
    """What a driver does that finds the round in this state and sees no device answer."""
    for _ in range(20):
        if state.phase is RoundPhase.PLANNED:
            state, _ = step(state, machine.Began())
        for effect in resume(state):
            match effect:
                case machine.Train():
                    state, _ = step(state, machine.DeadlinePassed())
                case machine.Aggregate():
                    state, _ = step(state, machine.Aggregated())
                case machine.Evaluate(devices):
                    for device in devices:
                        state, _ = step(state, machine.EvaluationFailed(device, "gone"))
                case machine.Judge():
                    state, _ = step(state, machine.Judged(passed=True))
    return state

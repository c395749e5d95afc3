"""The road of one round, event by event."""

from __future__ import annotations

from fedctl.core import round_machine as machine
from fedctl.core.records import Role
from fedctl.core.round_machine import Member, RoundState, resume, step
from fedctl.core.round_records import RoundPhase, Stage


def planned(*train: str, holdout: tuple[str, ...] = (), quorum: int = 1) -> RoundState:
    members = {name: Member(Role.TRAIN) for name in train} | {name: Member(Role.HOLDOUT) for name in holdout}
    return RoundState(RoundPhase.PLANNED, quorum, members)


def play(state: RoundState, *events: machine.Event) -> tuple[RoundState, list[machine.Effect]]:
    effects: list[machine.Effect] = []
    for event in events:
        state, more = step(state, event)
        effects.extend(more)
    return state, effects


def test_a_round_with_hold_out_devices_goes_from_plan_to_published() -> None:
    state, effects = play(
        planned("a", "b", holdout=("h",)),
        machine.Began(),
        machine.Advanced("b", Stage.SENT),
        machine.Collected("b"),
        machine.Collected("a"),
        machine.Aggregated(),
        machine.Evaluated("h"),
        machine.Judged(passed=True),
    )
    assert state.phase is RoundPhase.PUBLISHED
    assert effects == [
        machine.Train(("a", "b")),
        machine.Aggregate(("a", "b")),
        machine.Evaluate(("h",)),
        machine.Judge(),
        machine.End(),
    ]
    assert state.at(Stage.AGGREGATED) == ("a", "b")
    assert state.at(Stage.EVALUATED) == ("h",)


def test_without_hold_out_devices_the_contributors_evaluate() -> None:
    state, effects = play(
        planned("a", "b", "c", quorum=2),
        machine.Began(),
        machine.Collected("a"),
        machine.Dropped("b", "gone"),
        machine.Collected("c"),
        machine.Aggregated(),
    )
    assert effects[-1] == machine.Evaluate(("a", "c"))
    state, _ = play(state, machine.EvaluationFailed("a", "gone"), machine.Evaluated("c"))
    assert state.members["a"].stage is Stage.AGGREGATED  # its update stays in the model


def test_the_deadline_ends_collection_with_those_that_are_here() -> None:
    state, effects = play(
        planned("a", "b", quorum=1), machine.Began(), machine.Collected("a"), machine.DeadlinePassed()
    )
    assert state.phase is RoundPhase.AGGREGATING
    assert effects[-1] == machine.Aggregate(("a",))
    assert state.members["b"] == Member(Role.TRAIN, Stage.DROPPED, machine.LATE)


def test_a_missed_quorum_fails_the_round_and_says_how_many_came() -> None:
    state, effects = play(
        planned("a", "b", "c", quorum=2), machine.Began(), machine.Collected("a"), machine.DeadlinePassed()
    )
    assert state.phase is RoundPhase.FAILED
    assert state.reason == "quorum 2 not met: 1 of 3 devices delivered"
    assert effects[-1] == machine.End()


def test_an_update_after_the_decision_is_not_counted() -> None:
    before, _ = play(planned("a", "b"), machine.Began(), machine.Collected("a"), machine.DeadlinePassed())
    after, effects = step(before, machine.Collected("b"))
    assert after == before
    assert not effects


def test_the_same_update_twice_counts_once() -> None:
    state, _ = play(planned("a", "b"), machine.Began(), machine.Collected("a"))
    assert step(state, machine.Collected("a")) == (state, ())


def test_a_stage_never_goes_back() -> None:
    state, _ = play(
        planned("a"), machine.Began(), machine.Advanced("a", Stage.READY), machine.Advanced("a", Stage.SENT)
    )
    assert state.members["a"].stage is Stage.READY


def test_a_failed_gate_rejects_with_its_reason() -> None:
    state, _ = play(
        planned("a", holdout=("h",)),
        machine.Began(),
        machine.Collected("a"),
        machine.Aggregated(),
        machine.Evaluated("h"),
        machine.Judged(passed=False, reason="loss rose"),
    )
    assert (state.phase, state.reason) == (RoundPhase.REJECTED, "loss rose")


def test_cancelling_leaves_no_device_in_between() -> None:
    state, effects = play(planned("a", holdout=("h",)), machine.Began(), machine.Cancelled())
    assert state.phase is RoundPhase.CANCELLED
    assert state.at(Stage.DROPPED) == ("a", "h")
    assert effects[-1] == machine.End()


def test_resume_asks_for_what_is_left() -> None:
    state, _ = play(planned("a", "b"), machine.Began(), machine.Collected("a"))
    assert resume(state) == (machine.Train(("b",)),)
    state, _ = step(state, machine.Collected("b"))
    assert resume(state) == (machine.Aggregate(("a", "b")),)
    state, _ = step(state, machine.Aggregated())
    assert resume(state) == (machine.Evaluate(("a", "b")),)
    state, _ = play(state, machine.Evaluated("a"), machine.Evaluated("b"))
    assert resume(state) == (machine.Judge(),)

import pytest

from fedctl_wire.codec import from_json
from fedctl_wire.errors import WireError
from fedctl_wire.messages import Cohort, Policy, TaskKind, TaskState, job_seed, task_id

BASE = {"round_id": "r", "attempt": 1, "device": "a", "plan": "p", "kind": TaskKind.TRAIN, "bundle": "b"}


def test_a_task_id_changes_with_each_of_its_parts() -> None:
    others = [
        {"round_id": "s"},
        {"attempt": 2},
        {"device": "c"},
        {"plan": "q"},
        {"kind": TaskKind.STATS},
        {"bundle": "d"},
    ]
    ids = {task_id(**{**BASE, **change}) for change in [{}, *others]}
    assert len(ids) == 1 + len(others)
    assert task_id(**BASE) == task_id(**BASE)


def test_a_job_seed_differs_by_device_and_kind_and_fits_64_bits() -> None:
    seeds = {job_seed(s, d, k) for s in (1, 2) for d in ("a", "b") for k in TaskKind}
    assert len(seeds) == 2 * 2 * len(TaskKind)
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_a_cohort_hides_names_and_ignores_their_order() -> None:
    assert Cohort.of(["b", "a"]) == Cohort.of(("a", "b"))
    assert Cohort.of(["a", "b"]) != Cohort.of(["ab"])
    assert Cohort.of([]).size == 0


def test_two_states_are_not_final() -> None:
    assert {state for state in TaskState if not state.final} == {TaskState.QUEUED, TaskState.RUNNING}


def test_a_policy_with_an_unknown_kind_or_key_is_refused_not_ignored() -> None:
    policy = {"fleet": "f", "device": "a", "serial": 1}
    assert from_json(Policy, policy).min_examples == 20
    for change in ({"allow": ["train", "exfiltrate"]}, {"min_exampels": 50}):
        with pytest.raises(WireError):
            from_json(Policy, {**policy, **change})

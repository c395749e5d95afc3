"""Threads that add devices meet for one roster, and none waits for one that cannot come."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from fedctl.core.errors import ConfigError, FedctlError, TrustError
from fedctl.core.records import Device
from fedctl.ops.enrolment.enrol import Candidate
from fedctl.ops.enrolment.gathering import Gathering
from fedctl.transport import sweep


class Registry:
    """Makes members of whoever is brought, but for the names that refuse."""

    def __init__(self, *refusing: str, broken: bool = False) -> None:
        self.rosters: list[list[str]] = []
        self._refusing = refusing
        self._broken = broken

    def __call__(self, candidates: Sequence[Candidate]) -> Mapping[str, Device | FedctlError]:
        names = sorted(str(candidate.name) for candidate in candidates)
        self.rosters.append(names)
        if self._broken:
            raise ConfigError("disk full", hint="free some")
        return {name: self._answer(name) for name in names}

    def _answer(self, name: str) -> Device | FedctlError:
        return TrustError(f"{name} refused") if name in self._refusing else cast("Device", f"member {name}")


def candidate(name: str) -> Candidate:
    return cast("Candidate", SimpleNamespace(name=name))


def run(gathering: Gathering, names: Sequence[str], *, threads: int, absent: Sequence[str] = ()) -> Any:
    def work(name: str) -> Device | None:
        try:
            return None if name in absent else gathering.join(candidate(name))
        finally:
            gathering.leave()

    return dict(sweep(names, work, parallel=threads))


def test_all_that_come_share_one_roster() -> None:
    registry, names = Registry("c"), ["a", "b", "c", "d", "e"]
    found = run(Gathering(5, 8, registry), names, threads=8, absent=["b"])
    assert registry.rosters == [["a", "c", "d", "e"]]
    assert (found["a"], found["b"]) == ("member a", None)
    assert isinstance(found["c"], TrustError)


def test_more_rows_than_threads_make_a_roster_a_turn_and_never_wait_for_ever() -> None:
    registry, names = Registry(), [f"n{number:02d}" for number in range(10)]
    found = run(Gathering(10, 4, registry), names, threads=4, absent=["n01", "n08"])
    assert sorted(name for roster in registry.rosters for name in roster) == sorted({*names} - {"n01", "n08"})
    assert [len(roster) for roster in registry.rosters] == [4, 4]
    assert found["n09"] == "member n09"


def test_a_roster_that_cannot_be_made_is_everybodys_error_each_with_its_own() -> None:
    found = run(Gathering(2, 2, Registry(broken=True)), ["a", "b"], threads=2)
    assert [error.message for error in found.values()] == ["disk full"] * 2
    assert [error.hint for error in found.values()] == ["free some"] * 2
    assert found["a"] is not found["b"]


def test_a_slow_one_is_not_waited_for_longer_than_patience() -> None:
    registry, slow = Registry(), threading.Event()
    gathering = Gathering(2, 2, registry, patience_s=0.01)

    def work(name: str) -> Device:
        if name == "slow":
            slow.wait()
        try:
            return gathering.join(candidate(name))
        finally:
            gathering.leave()
            slow.set()

    found = dict(sweep(["slow", "quick"], work))
    assert registry.rosters == [["quick"], ["slow"]]
    assert found == {"quick": "member quick", "slow": "member slow"}


def test_the_last_one_leaving_lets_the_others_go() -> None:
    registry = Registry()
    gathering = Gathering(2, 2, registry)
    thread = threading.Thread(target=lambda: gathering.join(candidate("a")), daemon=True)
    thread.start()
    gathering.leave()
    thread.join(20)
    assert registry.rosters == [["a"]]

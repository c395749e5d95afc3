"""The state database as the operations use it: real SQLite files, one per test."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError, LockedError, NotFoundError, TrustError, UsageError
from fedctl.core.home import Home
from fedctl.core.model_records import Deployment, ModelVersion, VersionState
from fedctl.core.records import Device, DeviceState, Fleet, Role
from fedctl.core.round_records import Round, RoundDevice, RoundPhase, Stage, Task, Totals
from fedctl.store import ReadStore, Store
from fedctl.store.events import check_chain
from fedctl_wire.signing import Envelope, Signature

NOW = "2026-07-04T12:00:00.000Z"
FLEET = Fleet(uuid="3f2a", root_key="aa", operator_key="bb", roster_serial=0, demo=False)
PLAN = Envelope("application/vnd.fedctl.plan+json", b'{"version":1}', (Signature("k", "c2ln"),))


class FixedClock:
    def now(self) -> datetime:
        return datetime(2026, 7, 4, 12, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0


def device(name: str, **changes: object) -> Device:
    plain = Device(
        name=name,
        url=f"unix:///run/{name}.sock",
        host_key=None,
        identity_key="cc",
        serial=1,
        arch="x86_64",
        python="3.11",
        agent_version="0.1.0",
        state=DeviceState.ENROLLED,
        enrolled_at=NOW,
        last_seen=None,
        facts={"memory": 1},
        labels={"role": "train"},
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def version(number: int, sha256: str | None = None) -> ModelVersion:
    sha256 = sha256 or f"{number:064x}"
    return ModelVersion("har", number, sha256, None, None, VersionState.CANDIDATE, NOW)


def a_round(uuid: str = "r1", phase: RoundPhase = RoundPhase.PLANNED) -> Round:
    return Round(0, uuid, "har", 1, PLAN.sha256, phase, 1, NOW, NOW, None, None, None)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    with Store.create(home, FLEET, clock=FixedClock()) as store:
        yield store


@pytest.fixture
def ready(store: Store) -> Store:
    """A fleet of two devices with one model version and a plan."""
    for name in ("watch-02", "watch-01"):
        store.add_device(device(name))
    store.add_model("har")
    store.add_version(version(1))
    store.add_plan(PLAN, source_toml="rounds = 1")
    return store


def test_what_was_written_is_read_by_a_separate_read_only_connection(home: Home, ready: Store) -> None:
    with ReadStore.open(home) as reader:
        assert reader.fleet() == FLEET
        assert reader.devices() == (device("watch-01"), device("watch-02"))
        assert reader.device("watch-02") == device("watch-02")
        assert reader.versions("har") == (version(1),)
        assert reader.plan(PLAN.sha256) == PLAN
        assert not hasattr(reader, "add_device")


def test_reading_never_imports_sqlite_utils(home: Home, ready: Store) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from fedctl.core.home import Home; from fedctl.store import ReadStore\n"
        "with ReadStore.open(Home(Path(sys.argv[1]))) as store: store.devices()\n"
        "print({'sqlite_utils', 'numpy', 'cryptography'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program, str(home.path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "set()\n"


def test_every_serial_is_new_and_above_the_roster(store: Store) -> None:
    assert [store.next_serial(), store.next_serial()] == [1, 2]
    store.set_roster_serial(7)
    store.set_roster_serial(3)
    assert store.fleet().roster_serial == 7
    assert store.next_serial() == 8


def test_a_second_fleet_in_one_home_is_refused(home: Home, store: Store) -> None:
    with pytest.raises(ConfigError, match="already holds a fleet") as caught:
        Store.create(home, FLEET)
    assert caught.value.code == "exists"


@pytest.mark.parametrize(
    ("added", "what"),
    [
        (device("watch-01"), "already enrolled"),
        (device("other", url="unix:///run/watch-01.sock"), "is already device watch-01"),
    ],
)
def test_a_device_is_added_once(ready: Store, added: Device, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        ready.add_device(added)
    assert len(ready.devices()) == 2


def test_a_removed_device_leaves_its_history_and_frees_name_and_url(ready: Store) -> None:
    number = ready.add_round(a_round(), [RoundDevice(0, "watch-01", Role.TRAIN, Stage.SELECTED)])
    ready.remove_device("watch-01")
    assert [d.name for d in ready.devices()] == ["watch-02"]
    assert ready.round_devices(number)[0].device == "watch-01"
    with pytest.raises(NotFoundError):
        ready.device("watch-01")
    with pytest.raises(NotFoundError):
        ready.remove_device("watch-01")
    again = device("watch-01", identity_key="dd", labels={"site": "lab"})
    ready.add_device(again)
    assert ready.device("watch-01") == again


def test_labels_change_one_by_one(ready: Store) -> None:
    ready.set_labels("watch-01", {"site": "lab", "role": "holdout"})
    assert ready.device("watch-01").role is Role.HOLDOUT
    ready.set_labels("watch-01", {"role": None, "never-there": None})
    assert ready.device("watch-01").labels == {"site": "lab"}
    with pytest.raises(NotFoundError):
        ready.set_labels("nobody", {"a": "b"})


def test_seeing_a_device_keeps_what_it_did_not_say(ready: Store) -> None:
    ready.set_device_seen("watch-01", facts={"cpus": 4})
    seen = ready.device("watch-01")
    assert (seen.last_seen, seen.facts, seen.arch) == (NOW, {"memory": 1, "cpus": 4}, "x86_64")
    ready.set_device_seen("watch-01", at="2026-07-05T00:00:00.000Z", agent_version="0.2.0")
    assert ready.device("watch-01").agent_version == "0.2.0"


def test_an_active_slot_makes_the_other_inactive(ready: Store) -> None:
    ready.add_version(version(2))
    ready.put_deployment(Deployment("watch-01", "har", 1, "A", active=True, at=NOW))
    ready.put_deployment(Deployment("watch-01", "har", 2, "B", active=True, at=NOW))
    assert [(d.slot, d.active) for d in ready.deployments(device="watch-01")] == [("A", False), ("B", True)]
    assert ready.deployments(device="watch-02") == ()
    assert len(ready.deployments()) == 2


def test_unknown_names_are_named_with_near_misses(ready: Store) -> None:
    with pytest.raises(NotFoundError, match="'wach-01'") as caught:
        ready.device("wach-01")
    assert "watch-01" in caught.value.hint
    with pytest.raises(NotFoundError, match="'hra'"):
        ready.model("hra")
    with pytest.raises(NotFoundError, match="har@9") as caught:
        ready.version("har", 9)
    assert "har@1" in caught.value.hint
    with pytest.raises(NotFoundError):
        ready.round(41)
    with pytest.raises(NotFoundError):
        ready.plan("0" * 64)


def test_publishing_sets_the_version_and_the_model(ready: Store) -> None:
    assert ready.model("har").published_version is None
    ready.publish("har", 1)
    assert ready.model("har").published_version == 1
    assert ready.version("har", 1).state is VersionState.PUBLISHED
    ready.add_version(version(2))
    ready.set_version_state("har", 2, VersionState.REJECTED, metrics={"loss": 0.5})
    ready.set_version_state("har", 2, VersionState.REJECTED)
    assert ready.version("har", 2).metrics == {"loss": 0.5}
    assert ready.model("har").latest_version == 2
    with pytest.raises(NotFoundError):
        ready.publish("har", 3)


def test_the_same_version_again_is_no_change_and_another_bundle_is_an_error(ready: Store) -> None:
    ready.publish("har", 1)
    ready.add_version(version(1))
    assert ready.version("har", 1).state is VersionState.PUBLISHED
    with pytest.raises(ConfigError) as caught:
        ready.add_version(version(1, sha256="f" * 64))
    assert caught.value.code == "constraint"
    with pytest.raises(UsageError, match="har already exists"):
        ready.add_model("har")


def test_a_round_goes_through_its_phases(ready: Store) -> None:
    cohort = [RoundDevice(0, n, Role.TRAIN, Stage.SELECTED) for n in ("watch-02", "watch-01")]
    number = ready.add_round(a_round(), cohort)
    assert [d.device for d in ready.round_devices(number)] == ["watch-01", "watch-02"]
    ready.set_round_phase(number, RoundPhase.RUNNING, metrics={"up": 1})
    assert ready.unfinished_round("har") == replace(
        a_round(phase=RoundPhase.RUNNING), id=number, metrics={"up": 1}
    )
    collected = RoundDevice(number, "watch-01", Role.TRAIN, Stage.COLLECTED, None, "ab", 1.5, 20)
    ready.set_round_device(collected)
    assert ready.round_devices(number)[0] == collected
    ready.set_round_phase(number, RoundPhase.FAILED, reason="quorum", metrics={"down": 2})
    ended = ready.round(number)
    assert (ended.reason, ended.ended_at, ended.metrics) == ("quorum", NOW, {"up": 1, "down": 2})
    assert ready.unfinished_round("har") is None


def test_a_model_has_one_unfinished_round(ready: Store) -> None:
    first = ready.add_round(a_round("r1"), [])
    with pytest.raises(LockedError, match=f"round {first} of har"):
        ready.add_round(a_round("r2"), [])
    ready.set_round_phase(first, RoundPhase.CANCELLED)
    second = ready.add_round(a_round("r2"), [])
    assert [r.id for r in ready.rounds(model="har")] == [second, first]
    assert [r.id for r in ready.rounds(limit=1)] == [second]
    assert ready.rounds(model="other") == ()


def test_a_round_with_an_unknown_device_is_not_half_added(ready: Store) -> None:
    with pytest.raises(ConfigError):
        ready.add_round(a_round(), [RoundDevice(0, "nobody", Role.TRAIN, Stage.SELECTED)])
    assert ready.rounds() == ()


def test_tasks_are_replaced_in_place_and_summed(ready: Store) -> None:
    number = ready.add_round(a_round(), [])
    task = Task("t1", number, "watch-01", "train", 1, "queued")
    done = replace(task, state="done", bytes_up=10, bytes_down=5, cpu_ms=7, metrics={"loss": 0.5})
    other = Task("t2", number, "watch-01", "evaluate", 1, "done", bytes_up=1)
    for one in (task, other, done):
        ready.put_task(one)
    assert ready.tasks(number) == (done, other)
    assert ready.task("t1") == done
    assert ready.task("t3") is None
    assert ready.round_totals(number) == Totals(bytes_up=11, bytes_down=5)
    assert ready.round_totals(99) == Totals()
    ready.put_task(Task("t4", None, "watch-02", "golden", 1, "done"))


def test_several_calls_are_one_step(ready: Store) -> None:
    def half_a_publication() -> None:
        with ready.transaction():
            ready.add_version(version(2))
            ready.publish("har", 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_a_publication()
    assert ready.model("har").latest_version == 1
    assert ready.model("har").published_version is None


def test_a_part_that_fails_is_undone_alone(ready: Store) -> None:
    with ready.transaction():
        ready.add_version(version(2))
        with pytest.raises(UsageError):
            ready.add_device(device("watch-01"))
        with pytest.raises(ConfigError):
            ready.add_round(a_round(), [RoundDevice(0, "nobody", Role.TRAIN, Stage.SELECTED)])
    assert ready.model("har").latest_version == 2
    assert ready.rounds() == ()


def test_nobody_sees_half_a_transaction(home: Home, ready: Store) -> None:
    with ReadStore.open(home) as reader, ready.transaction():
        ready.add_version(version(2))
        assert reader.model("har").latest_version == 1


def test_threads_of_one_command_share_a_store(ready: Store) -> None:
    ready.set_device_seen("watch-01", facts={"count": 0})

    def count() -> None:
        for _ in range(20):
            with ready.transaction():
                now = ready.device("watch-01").facts["count"]
                ready.set_device_seen("watch-01", facts={"count": now + 1})

    threads = [threading.Thread(target=count) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ready.device("watch-01").facts["count"] == 100


def test_the_event_log_is_a_chain(ready: Store) -> None:
    first = ready.add_event(actor="alice", verb="device.add", subject="watch-01")
    second = ready.add_event(actor="alice", verb="round.start", subject="1", detail={"model": "har"})
    assert second.prev_hash == first.hash
    assert ready.events() == (first, second)
    assert ready.events(limit=1) == (second,)
    assert check_chain(ready.events()) == second.hash


def test_the_event_log_cannot_be_edited_by_accident_nor_unseen(ready: Store) -> None:
    for subject in "abc":
        ready.add_event(actor="alice", verb="test", subject=subject)
    for statement in ("UPDATE event SET subject = 'x'", "DELETE FROM event"):
        with pytest.raises(ConfigError, match="append-only"):
            ready._write(statement)
    ready._write("DROP TRIGGER event_never_goes")
    ready._write("DELETE FROM event WHERE seq = 2")
    with pytest.raises(TrustError, match="line 3"):
        check_chain(ready.events())
    ready._write("DROP TRIGGER event_never_changes")
    ready._write("UPDATE event SET actor = 'mallory' WHERE seq = 1")
    with pytest.raises(TrustError, match="line 1"):
        check_chain(ready.events())

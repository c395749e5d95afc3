"""Enrolling real agents at Unix sockets, pinging, labelling and removing them."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError, TrustError, UnreachableError, UsageError
from fedctl.core.home import Home
from fedctl.core.records import Device
from fedctl.ops import devices
from fedctl.ops.devices import NewDevice
from fedctl.ops.fleet import init
from fedctl.ops.roster import stored_roster
from fedctl.store import Store
from fedctl.transport import AgentClient, connect
from fedctl_wire.codec import decode
from fedctl_wire.messages import Health, Roster
from fedctl_wire.signing import fingerprint
from tests.integration.enrolment.conftest import Agent, MakeAgent


def add(store: Store, home: Home, agent: Agent, name: str = "watch-1", **labels: str) -> devices.AddResult:
    return devices.add(store, home, NewDevice(name=name, url=agent.url, labels=labels))


def roster_names(home: Home) -> list[str]:
    envelope = stored_roster(home)
    assert envelope is not None
    return [str(member.name) for member in decode(Roster, envelope.payload, limit=100_000).devices]


def test_an_agent_becomes_a_device_with_labels_roster_and_event(
    store: Store, home: Home, make_agent: MakeAgent
) -> None:
    agent = make_agent("a")
    result = add(store, home, agent, ward="3", role="holdout")
    device = store.device("watch-1")
    assert result.device == device
    assert result.changed
    assert (device.labels, device.role.value) == ({"ward": "3", "role": "holdout"}, "holdout")
    assert device.identity_key == (agent.state / "identity" / "key.pub").read_text().strip()
    assert roster_names(home) == ["watch-1"]
    assert [event.verb for event in store.events()] == ["fleet.init", "device.add"]
    with connect(device="watch-1", url=agent.url) as client:
        identity = client.identity()
    assert (identity.device, identity.fleet) == ("watch-1", store.fleet().uuid)
    assert identity.roster_serial == store.fleet().roster_serial


def test_adding_again_changes_nothing_and_says_so(store: Store, home: Home, make_agent: MakeAgent) -> None:
    agent = make_agent("a")
    first = add(store, home, agent, ward="3")
    serial = store.fleet().roster_serial
    again = add(store, home, agent, ward="3")
    assert (again.changed, again.steps, again.device) == (False, (), first.device)
    assert (store.fleet().roster_serial, len(store.events())) == (serial, 2)
    relabelled = add(store, home, agent, ward="4")
    assert relabelled.changed
    assert store.device("watch-1").labels == {"ward": "4"}
    assert store.fleet().roster_serial == serial


def test_a_dry_run_changes_nothing(store: Store, home: Home, make_agent: MakeAgent) -> None:
    agent = make_agent("a")
    result = devices.add(store, home, NewDevice(name="watch-1", url=agent.url), dry_run=True)
    assert (result.changed, result.dry_run, result.device) == (False, True, None)
    assert len(result.steps) == 1
    assert store.devices() == ()
    assert stored_roster(home) is None
    assert not (agent.state / "identity" / "root.json").exists()


def test_another_fleets_device_is_refused_and_stays_theirs(
    store: Store, home: Home, make_agent: MakeAgent, tmp_path: Path
) -> None:
    agent = make_agent("a")
    add(store, home, agent)
    other = Home(tmp_path / "other")
    init(other)
    with Store.open(other) as theirs:
        with pytest.raises(TrustError, match="enrolled in another fleet as watch-1") as error:
            add(theirs, other, agent, "stolen")
        assert error.value.code == "other_root"
        assert (theirs.devices(), theirs.fleet().roster_serial) == ((), 0)
    assert devices.ping(store, home, store.devices())[0].error is None


def test_the_agent_itself_refuses_another_root(
    store: Store, home: Home, make_agent: MakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a workstation checks or does not check beforehand."""
    agent = make_agent("a")
    add(store, home, agent)
    other = Home(tmp_path / "other")
    init(other)
    monkeypatch.setattr("fedctl.ops.enrolment.add.check_identity", lambda *_: None)
    with Store.open(other) as theirs:
        with pytest.raises(TrustError):
            add(theirs, other, agent)
        assert theirs.devices() == ()


def test_a_device_that_lost_its_state_is_enrolled_anew_under_its_name(
    store: Store, home: Home, make_agent: MakeAgent
) -> None:
    agent = make_agent("a")
    old = add(store, home, agent, ward="3").device
    agent.stop()
    shutil.rmtree(agent.state)
    agent.start()
    result = add(store, home, agent)
    assert result.changed
    assert old is not None
    assert result.device is not None
    assert result.device.identity_key != old.identity_key
    was, now = (fingerprint(device.identity_key) for device in (old, result.device))
    assert result.steps[0] == f"its identity key has changed: it was {was}, it is {now}"
    assert result.device.serial > old.serial
    assert result.device.labels == {"ward": "3"}
    assert roster_names(home) == ["watch-1"]


def test_a_row_that_a_crash_kept_from_being_written_is_made_up_for(
    store: Store, home: Home, make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent("a")
    with monkeypatch.context() as patched:

        def full(*_: object, **__: object) -> None:
            raise ConfigError("the disk is full")

        patched.setattr(Store, "add_device", full)
        with pytest.raises(ConfigError):
            add(store, home, agent)
    assert store.devices() == ()
    assert store.fleet().roster_serial == 0
    assert add(store, home, agent).changed
    assert devices.ping(store, home, store.devices())[0].error is None


def test_names_and_addresses_in_use_are_refused(store: Store, home: Home, make_agent: MakeAgent) -> None:
    first, second = make_agent("a"), make_agent("b")
    add(store, home, first)
    with pytest.raises(UsageError, match="watch-1 is enrolled already, at unix://") as error:
        add(store, home, second)
    assert error.value.code == "name_in_use"
    with pytest.raises(UsageError, match="is already device watch-1") as error:
        add(store, home, first, "watch-2")
    assert error.value.code == "url_in_use"
    assert len(store.devices()) == 1


def test_one_device_under_two_addresses_is_found_out(store: Store, home: Home, make_agent: MakeAgent) -> None:
    agent = make_agent("a")
    add(store, home, agent)
    alias = agent.state.parent / "alias.sock"
    alias.symlink_to(agent.socket)
    with pytest.raises(TrustError, match="already as watch-1, not as watch-2"):
        devices.add(store, home, NewDevice(name="watch-2", url=f"unix://{alias}"))


@pytest.mark.parametrize("name", ["", "Watch", "a b", "a/b", "..", "a'b", 'a"b', "-a", "a" * 64, "ä"])
def test_a_bad_name_is_refused_before_anything_happens(store: Store, home: Home, name: str) -> None:
    with pytest.raises(UsageError, match="device name"):
        devices.add(store, home, NewDevice(name=name, url="unix:///nowhere"))


def test_nobody_at_the_socket(store: Store, home: Home, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="watch-1"):
        devices.add(store, home, NewDevice(name="watch-1", url=f"unix://{tmp_path}/none.sock"))
    assert store.devices() == ()


def test_without_the_root_key_nothing_is_asked_of_the_device(store: Store, home: Home) -> None:
    (home.keys / "root").rename(home.path / "stick")
    with pytest.raises(ConfigError) as error:
        devices.add(store, home, NewDevice(name="watch-1", url="unix:///nowhere"))
    assert "--root-key" in error.value.hint


def test_a_source_cannot_be_copied_to_a_socket(store: Store, home: Home, tmp_path: Path) -> None:
    new = NewDevice(name="watch-1", url="unix:///nowhere", source=tmp_path / "s.toml")
    with pytest.raises(UsageError, match="--source"):
        devices.add(store, home, new)


def test_many_local_agents_share_one_roster(store: Store, home: Home, make_agent: MakeAgent) -> None:
    agents = [make_agent(f"a{i}") for i in range(4)]
    wanted = [NewDevice(name=f"d{i}", url=a.url, labels={"n": str(i)}) for i, a in enumerate(agents)]
    added = devices.add_local(store, home, wanted)
    assert [device.name for device in added] == ["d0", "d1", "d2", "d3"]
    serial = store.fleet().roster_serial
    outcomes = devices.ping(store, home, store.devices())
    assert [(o.health.roster_serial if o.health else 0, o.roster_pushed) for o in outcomes] == [
        (serial, False)
    ] * 4
    assert devices.add_local(store, home, wanted) == store.devices()
    assert store.fleet().roster_serial == serial


def test_one_absent_agent_keeps_all_of_them_out(store: Store, home: Home, make_agent: MakeAgent) -> None:
    agent = make_agent("a")
    wanted = [NewDevice(name="d0", url=agent.url), NewDevice(name="d1", url="unix:///nowhere")]
    with pytest.raises(UnreachableError):
        devices.add_local(store, home, wanted)
    assert store.devices() == ()
    assert not (agent.state / "identity" / "root.json").exists()


def test_two_commands_at_once_lose_nobody(store: Store, home: Home, make_agent: MakeAgent) -> None:
    agents = [make_agent(f"a{i}") for i in range(3)]

    def one(number: int) -> Device | None:
        with Store.open(home) as own:
            return add(own, home, agents[number], f"d{number}").device

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(one, range(3)))
    assert roster_names(home) == ["d0", "d1", "d2"]


# ------------------------------------------------------------------ ping


def test_a_ping_passes_the_roster_on_and_a_failure_is_a_value(
    store: Store, home: Home, make_agent: MakeAgent
) -> None:
    agents = [make_agent(f"a{i}") for i in range(3)]
    for number, agent in enumerate(agents):
        add(store, home, agent, f"d{number}")
    seen = store.device("d0").last_seen
    agents[2].stop()
    outcomes = devices.ping(store, home, store.devices())
    assert [outcome.device for outcome in outcomes] == ["d0", "d1", "d2"]
    assert [outcome.roster_pushed for outcome in outcomes] == [True, True, False]
    assert isinstance(outcomes[2].error, UnreachableError)
    assert outcomes[0].round_trip_ms
    assert (store.device("d0").last_seen or "") > (seen or "")
    again = devices.ping(store, home, store.devices()[:2])
    assert [outcome.roster_pushed for outcome in again] == [False, False]


def test_a_ping_times_an_open_connection(
    store: Store, home: Home, make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call connects and loads modules; `add` has done both when it measures."""
    add(store, home, make_agent("a"), "d0")
    health, calls = AgentClient.health, []

    def slow_at_first(client: AgentClient) -> Health:
        if not calls:
            time.sleep(0.5)
        calls.append(client)
        return health(client)

    monkeypatch.setattr(AgentClient, "health", slow_at_first)
    (outcome,) = devices.ping(store, home, store.devices())
    assert outcome.round_trip_ms is not None
    assert outcome.round_trip_ms < 500


def test_another_device_at_the_address_is_no_answer(store: Store, home: Home, make_agent: MakeAgent) -> None:
    first, second = make_agent("a"), make_agent("b")
    add(store, home, first, "d0")
    add(store, home, second, "d1")
    swapped = store.device("d0")
    second.stop()
    first.stop()
    first.state.rename(first.state.parent / "x")
    second.state.rename(first.state)
    first.start()
    (outcome,) = devices.ping(store, home, [swapped])
    assert isinstance(outcome.error, TrustError)
    assert "at the address of d0 answers d1" in outcome.error.message


# ------------------------------------------------------------------ label, remove


def test_labels_are_set_and_removed_for_all_or_none(store: Store, home: Home, make_agent: MakeAgent) -> None:
    add(store, home, make_agent("a"), "d0", ward="3")
    add(store, home, make_agent("b"), "d1", ward="3", old="x")
    changed = devices.label(store, store.devices(), {"ward": "4", "old": None})
    assert [device.labels for device in changed] == [{"ward": "4"}, {"ward": "4"}]
    assert store.device("d0") == changed[0]


def test_removing_strikes_from_roster_and_list_but_leaves_an_agent_that_was_there_before(
    store: Store, home: Home, make_agent: MakeAgent
) -> None:
    agents = [make_agent(f"a{i}") for i in range(3)]
    for number, agent in enumerate(agents):
        add(store, home, agent, f"d{number}")
    serial = store.fleet().roster_serial
    outcomes = devices.remove(store, home, [store.device("d0"), store.device("d2")])
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert "as it is" in outcomes[0].steps[0]
    assert [device.name for device in store.devices()] == ["d1"]
    assert roster_names(home) == ["d1"]
    assert store.fleet().roster_serial > serial
    assert agents[0].process is not None
    assert agents[0].process.poll() is None
    assert (agents[0].state / "identity" / "root.json").exists()


def test_a_removed_device_comes_back_under_its_name_and_no_other(
    store: Store, home: Home, make_agent: MakeAgent
) -> None:
    agent = make_agent("a")
    add(store, home, agent, "d0")
    devices.remove(store, home, store.devices())
    with pytest.raises(TrustError, match="already as d0, not as d1"):
        add(store, home, agent, "d1")
    assert add(store, home, agent, "d0").changed
    (outcome,) = devices.ping(store, home, store.devices())
    assert outcome.error is None
    assert roster_names(home) == ["d0"]

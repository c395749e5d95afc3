"""`devices add ssh://…` from nothing to a device that answers, and back; every failure leaves nothing."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedctl.core.errors import ConfigError, DeviceError, FedctlError, TrustError
from fedctl.core.home import Home
from fedctl.core.progress import DeviceProgress, Event
from fedctl.ops import devices
from fedctl.ops.devices import AddResult, NewDevice
from fedctl.ops.enrolment import install
from fedctl.ops.enrolment.add import Addition
from fedctl.ops.enrolment.shell import DeviceShell
from fedctl.ops.fleet import init
from fedctl.store import Store
from fedctl.transport import AgentClient
from tests.integration.install.conftest import Board
from tests.system import eventually

pytestmark = pytest.mark.system

SOURCE = 'kind = "npz"\npath = "data"\nfeatures = "x"\nlabel = "y"\n'


def add(store: Store, home: Home, board: Board, **options: Any) -> AddResult:
    new = NewDevice(name="watch-1", url=board.url, labels={"ward": "3"}, source=options.pop("source", None))
    return devices.add(store, home, new, admin=board.admin, **options)


def ping(store: Store, home: Home) -> FedctlError | None:
    (outcome,) = devices.ping(store, home, store.devices())
    return outcome.error


def test_from_nothing_to_a_device_that_answers_and_back(
    store: Store, home: Home, board: Board, tmp_path: Path
) -> None:
    fresh = board.listing()
    source = tmp_path / "recorder.toml"
    source.write_text(SOURCE)
    seen: list[Event] = []
    result = add(store, home, board, source=source, observer=seen.append)
    device = store.device("watch-1")
    assert result.device == device
    assert (device.host_key, device.url, device.labels) == (board.sshd.host_key, board.url, {"ward": "3"})
    assert device.arch
    assert device.python
    assert result.verdict
    assert {event.stage for event in seen if isinstance(event, DeviceProgress)} >= {"probed", "installing"}
    assert (board.state / "sources" / "recorder.toml").read_text() == SOURCE
    assert ping(store, home) is None
    check_key_line(board, fresh)
    check_idempotence(store, home, board)
    (tmp_path / "known_hosts").unlink(missing_ok=True)  # the pinned key is enough
    board.admin = replace(board.admin, ask=None)
    second = add(store, home, board, source=source)
    assert (second.changed, len(second.steps)) == (False, 1)
    assert "kept the source that is there: recorder.toml" in second.steps[0]
    check_removal(store, home, board, fresh)


def check_key_line(board: Board, fresh: dict[str, bytes]) -> None:
    before, after = fresh[".ssh/authorized_keys"], board.keys.read_bytes()
    assert after.startswith(before)
    (line,) = after[len(before) :].decode().splitlines()
    assert line.startswith(f'restrict,command="{board.prefix}/bin/fedctl-agent dial-stdio --socket ')
    assert line.endswith(" fedctl")
    assert board.keys.stat().st_mode & 0o777 == 0o600


def check_idempotence(store: Store, home: Home, board: Board) -> None:
    before, agents, row = board.listing(), {p.pid for p in board.agents()}, store.device("watch-1")
    again = add(store, home, board)
    assert (again.changed, again.steps) == (False, ())
    assert {name for name, data in board.listing().items() if before.get(name) != data} <= {
        ".local/share/fedctl/state/agent.log",
        ".local/share/fedctl/state/worker.log",
    }
    assert agents - {p.pid for p in board.agents()} == set()
    assert (store.device("watch-1"), len(store.events())) == (row, 2)


def check_removal(store: Store, home: Home, board: Board, fresh: dict[str, bytes]) -> None:
    data = board.own(board.state / "sources" / "data" / "day.npz", "precious")
    (outcome,) = devices.remove(store, home, store.devices(), admin=board.admin, purge=True)
    assert outcome.error is None
    assert any("kept" in step for step in outcome.steps)
    assert store.devices() == ()
    assert board.agents() == []
    assert data.read_text() == "precious"
    shutil.rmtree(board.home / ".local")
    assert board.listing() == fresh


def test_a_dry_run_changes_nothing_on_either_side(store: Store, home: Home, board: Board) -> None:
    before = board.listing()
    result = add(store, home, board, dry_run=True)
    assert board.listing() == before
    assert (store.devices(), len(store.events()), result.changed) == ((), 1, False)
    text = " ".join(result.steps)
    for word in ("Python", "install fedctl-agent", "numpy", "authorized_keys", "start", "enrol"):
        assert word in text


STEPS = {
    **{verb: (DeviceShell, "call", verb) for verb in ("unpack", "keygen", "add_source", "add_key", "start")},
    "enrolment": (AgentClient, "enrol", None),
    "row": (Store, "add_device", None),
}


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_after_any_step_leaves_nothing(
    store: Store, home: Home, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (tmp_path / "s.toml").write_text(SOURCE)
    before = board.listing()
    fail_after(monkeypatch, *STEPS[step])
    with pytest.raises(ConfigError, match="pulled the plug") as error:
        add(store, home, board, source=tmp_path / "s.toml")
    assert "left behind" not in error.value.hint
    assert board.listing() == before
    assert board.agents() == []
    assert (store.devices(), [event.verb for event in store.events()]) == ((), ["fleet.init"])


def fail_after(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, verb: str | None) -> None:
    """Let the real step happen, then fail: what a step did must be taken back too."""
    real = getattr(owner, method)

    def call(*words: Any, **options: Any) -> Any:
        answer = real(*words, **options)
        if verb is None or verb in words:
            raise ConfigError("pulled the plug")
        return answer

    monkeypatch.setattr(owner, method, call)


@pytest.mark.usefixtures("light")
def test_what_is_missing_is_repaired_and_a_failed_upgrade_goes_back(
    store: Store, home: Home, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add(store, home, board).device
    end_agents(board)
    board.keys.write_text("\n".join(board.keys.read_text().splitlines()[:2]) + "\n")
    repaired = add(store, home, board)
    assert repaired.steps == ("added the restricted login key", "started the agent")
    assert repaired.device == first
    assert ping(store, home) is None

    before = {name: data for name, data in board.listing().items() if "/agent/" in name}
    with monkeypatch.context() as patched:
        patched.setattr(install, "_START_PROGRAM", "raise SystemExit('a broken build')")
        with pytest.raises(DeviceError, match="keygen failed: a broken build"):
            add(store, home, board)
    assert {name: data for name, data in board.listing().items() if "/agent/" in name} == before
    assert ping(store, home) is None
    with monkeypatch.context() as patched:
        patched.setattr(install, "_START_PROGRAM", install._START_PROGRAM + "  ")
        upgraded = add(store, home, board)
    assert [step.split()[0] for step in upgraded.steps] == ["installed", "started"]
    assert first is not None
    assert upgraded.device is not None
    assert upgraded.device.identity_key == first.identity_key
    assert ping(store, home) is None


def end_agents(board: Board) -> None:
    for process in board.agents():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    eventually(lambda: not board.agents(), "the agent's processes end")


@pytest.mark.usefixtures("light")
def test_a_chatty_start_up_file_is_heard_out(store: Store, home: Home, board: Board) -> None:
    board.own(board.home / ".bashrc", "echo 'Welcome to the watch!'; echo warning >&2; printf 'no end'\n")
    assert add(store, home, board).changed
    assert ping(store, home) is None


@pytest.mark.usefixtures("light")
def test_another_fleet_takes_nothing_over_and_a_removed_device_keeps_its_identity(
    store: Store, home: Home, board: Board, tmp_path: Path
) -> None:
    first = add(store, home, board).device
    assert first is not None
    keys = board.keys.read_bytes()
    other = Home(tmp_path / "other")
    init(other)
    other.wheels.parent.mkdir()
    other.wheels.symlink_to(home.wheels)
    with Store.open(other) as theirs:
        with pytest.raises(TrustError, match="enrolled in another fleet as watch-1"):
            add(theirs, other, board)
        assert theirs.devices() == ()
    assert board.keys.read_bytes() == keys
    assert ping(store, home) is None

    devices.remove(store, home, store.devices(), admin=board.admin)
    assert not board.prefix.exists()
    assert (board.state / "identity" / "root.json").exists()
    again = add(store, home, board).device
    assert again is not None
    assert again.identity_key == first.identity_key
    assert ping(store, home) is None


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("readable", [True, False])
def test_a_device_that_another_fleet_left_enrolled_is_refused_and_nothing_runs(
    store: Store, home: Home, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, readable: bool
) -> None:
    """Its state directory says so before anything is installed; else the agent, which is stopped again."""
    add(store, home, board)
    devices.remove(store, home, store.devices(), admin=board.admin)
    before = board.listing()
    other = Home(tmp_path / "other")
    init(other)
    other.wheels.parent.mkdir()
    other.wheels.symlink_to(home.wheels)
    if not readable:
        monkeypatch.setattr(Addition, "_check_state", lambda _addition, _installation: None)
    seen: list[Event] = []
    with Store.open(other) as theirs, pytest.raises(TrustError) as error:
        add(theirs, other, board, observer=seen.append)
    assert (error.value.code, "as watch-1" in error.value.message) == ("other_root", True)
    assert "fedctl devices remove watch-1 --purge" in error.value.hint
    assert "left behind" not in error.value.hint
    assert board.agents() == []
    assert not board.prefix.exists()
    if readable:
        assert board.listing() == before
        assert str(board.state) in error.value.hint
        stages = {event.stage for event in seen if isinstance(event, DeviceProgress)}
        assert "installing" not in stages


def test_host_keys_are_strict(store: Store, home: Home, board: Board) -> None:
    before = board.listing()
    silent = replace(board.admin, ask=None)
    new = NewDevice(name="watch-1", url=board.url)
    with pytest.raises(TrustError) as error:
        devices.add(store, home, new, admin=silent, dry_run=True)
    assert "--accept-host-key SHA256:" in error.value.hint
    with pytest.raises(TrustError):
        devices.add(store, home, new, admin=replace(silent, accept_host_key="SHA256:wrong"))
    assert board.listing() == before
    assert store.devices() == ()


@pytest.mark.usefixtures("light")
def test_a_device_that_is_gone_is_removed_only_when_told_to_forget_it(
    store: Store, home: Home, board: Board
) -> None:
    add(store, home, board)
    board.sshd.stop()
    try:
        (outcome,) = devices.remove(store, home, store.devices(), admin=board.admin)
        assert outcome.error is not None
        assert "--forget" in outcome.error.hint
        assert len(store.devices()) == 1
        (outcome,) = devices.remove(store, home, store.devices(), admin=board.admin, forget=True)
        assert outcome.error is None
        assert store.devices() == ()
    finally:
        board.sshd.start()

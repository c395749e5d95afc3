"""`devices rekey`: the restricted line put back, replaced for the whole fleet, and by another's login."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedctl.cli import app
from fedctl.core.errors import DeviceError, FedctlError, TrustError, UsageError
from fedctl.core.home import Home
from fedctl.ops import devices
from fedctl.ops.devices import AdminLogin, NewDevice
from fedctl.ops.enrolment.rekey import RekeyOutcome, rekey
from fedctl.ops.enrolment.upgrade import upgrade
from fedctl.release.keys import login_path, login_public
from fedctl.release.login_key import previous_path, replace_login
from fedctl.store import Store
from fedctl.transport.sshlink import fingerprint
from tests.integration.install.conftest import Board
from tests.system import Sshd, eventually

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("light")]


@pytest.fixture
def fleet(store: Store, home: Home, board: Board) -> Store:
    """One enrolled device, `watch-1`."""
    devices.add(store, home, NewDevice(name="watch-1", url=board.url), admin=board.admin)
    return store


def answers(store: Store, home: Home) -> bool:
    (outcome,) = devices.ping(store, home, store.devices())
    return outcome.error is None


def lines(board: Board) -> list[str]:
    return [line for line in board.keys.read_text().splitlines() if "dial-stdio" in line]


def rekeyed(store: Store, home: Home, admin: AdminLogin, **options: bool) -> RekeyOutcome:
    (outcome,) = rekey(store, home, store.devices(), admin=admin, **options).outcomes
    return outcome


def test_a_lost_line_is_put_back(fleet: Store, home: Home, board: Board) -> None:
    before = board.keys.read_text()
    assert rekeyed(fleet, home, board.admin).steps == ("its line is there already",)
    assert board.keys.read_text() == before
    board.own(board.keys, "".join(f"{line}\n" for line in before.splitlines() if "dial-stdio" not in line))
    assert not answers(fleet, home)

    dry = rekeyed(fleet, home, board.admin, dry_run=True)
    assert (dry.changed, dry.steps) == (False, ("add the line of the login key to ~/.ssh/authorized_keys",))
    assert lines(board) == []
    assert rekeyed(fleet, home, board.admin).changed
    assert board.keys.read_text() == before
    assert answers(fleet, home)
    assert not rekeyed(fleet, home, board.admin).changed
    assert [event.verb for event in fleet.events()].count("device.rekey") == 1


def test_every_older_line_of_fedctl_s_goes_and_no_other(fleet: Store, home: Home, board: Board) -> None:
    (line,) = lines(board)
    old = line.replace(login_public(home).split()[1], "AAAAC3NzaC1lZDI1NTE5AAAAIOlder")
    edited = line.replace("dial-stdio", "stop")
    theirs = 'restrict,command="/usr/bin/backup" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBackup fedctl'
    board.own(board.keys, f"{old}\n{edited}\n{board.keys.read_text()}{theirs}\n# {old}")
    outcome = rekeyed(fleet, home, board.admin)
    assert outcome.steps == ("removed 2 older lines of fedctl's",)
    assert [found for found in lines(board) if not found.startswith("#")] == [line]
    assert theirs in board.keys.read_text()
    assert f"# {old}\n{line}\n" in board.keys.read_text()
    assert answers(fleet, home)


def test_a_new_key_reaches_the_devices_one_after_the_other(fleet: Store, home: Home, board: Board) -> None:
    """The device is away when the key is replaced: until it was reached, the key before opens it."""
    old = login_path(home).read_bytes()
    board.sshd.stop()
    try:
        result = rekey(fleet, home, fleet.devices(), admin=board.admin, new_key=True)
    finally:
        board.sshd.start()
    assert result.waiting == ("watch-1",)
    assert result.new_key == fingerprint(login_public(home))
    assert login_path(home).read_bytes() != old
    assert answers(fleet, home)
    with pytest.raises(UsageError, match="not on every device yet") as caught:
        rekey(fleet, home, fleet.devices(), admin=board.admin, new_key=True)
    assert "fedctl devices rekey watch-1" in caught.value.hint

    result = rekey(fleet, home, fleet.devices(), admin=board.admin)
    assert (result.outcomes[0].changed, result.waiting) == (True, ())
    assert not previous_path(home).exists()
    assert login_public(home) in lines(board)[0]
    assert answers(fleet, home)
    login_path(home).write_bytes(old)  # the thief's
    (outcome,) = devices.ping(fleet, home, fleet.devices())
    assert isinstance(outcome.error, TrustError)


def test_a_replacement_that_was_killed_is_run_again(fleet: Store, home: Home, board: Board) -> None:
    shutil.copy(login_path(home), previous_path(home))  # killed before the new key was made
    assert rekey(fleet, home, fleet.devices(), admin=board.admin, new_key=True).waiting == ()
    assert answers(fleet, home)
    public = home.keys / "login.pub"
    stale = public.read_bytes()
    replace_login(home)
    public.write_bytes(stale)  # killed before the public half was written
    assert rekeyed(fleet, home, board.admin).changed
    assert answers(fleet, home)
    assert not previous_path(home).exists()


def test_a_dry_run_of_a_new_key_makes_none(fleet: Store, home: Home, board: Board) -> None:
    before = login_path(home).read_bytes()
    keys = board.keys.read_text()
    outcome = rekeyed(fleet, home, board.admin, new_key=True, dry_run=True)
    assert outcome.steps == (
        "add the line of the login key to ~/.ssh/authorized_keys",
        "remove 1 older line of fedctl's",
    )
    assert (login_path(home).read_bytes(), board.keys.read_text()) == (before, keys)
    assert not previous_path(home).exists()


# ------------------------------------------------------------------ after a re-flash


def test_another_host_key_is_pinned_when_its_fingerprint_is_given(
    fleet: Store, home: Home, board: Board
) -> None:
    board.sshd.stop()
    board.sshd.new_host_key()
    board.sshd.start()
    assert not answers(fleet, home)
    refused = rekeyed(fleet, home, board.admin)
    assert isinstance(refused.error, TrustError)
    wrong = replace(board.admin, accept_host_key="SHA256:" + "A" * 43)
    assert isinstance(rekeyed(fleet, home, wrong).error, TrustError)
    accepted = replace(board.admin, accept_host_key=fingerprint(board.sshd.host_key))
    assert rekeyed(fleet, home, accepted).steps == ("pinned its new host key",)
    assert fleet.device("watch-1").host_key == board.sshd.host_key
    assert answers(fleet, home)


def test_a_device_without_its_agent_is_added_again_and_stays_a_member(
    fleet: Store, home: Home, board: Board
) -> None:
    shutil.rmtree(board.prefix)
    error = rekeyed(fleet, home, board.admin).error
    assert isinstance(error, DeviceError)
    assert error.code == "no_agent"
    again = f"fedctl devices add watch-1 {board.url} -F {board.admin.ssh_config}"
    assert error.hint == f"install it again: {again}"
    before = fleet.device("watch-1")
    devices.add(fleet, home, NewDevice(name="watch-1", url=board.url), admin=board.admin)
    after = fleet.device("watch-1")
    assert (after.identity_key, after.serial) == (before.identity_key, before.serial)
    assert answers(fleet, home)


def test_a_device_that_was_set_up_anew_has_to_be_forgotten_first(
    fleet: Store, home: Home, board: Board
) -> None:
    board.sshd.stop()
    board.sshd.new_host_key()
    board.sshd.start()
    shutil.rmtree(board.prefix)
    accepted = replace(board.admin, accept_host_key=fingerprint(board.sshd.host_key))
    error = rekeyed(fleet, home, accepted).error
    assert isinstance(error, DeviceError)
    forget, _, add = error.hint.removeprefix("install it again: ").partition(", then ")
    assert (forget, add) == (
        "fedctl devices remove watch-1 --forget",
        f"fedctl devices add watch-1 {board.url} -F {board.admin.ssh_config}",
    )
    new = NewDevice(name="watch-1", url=board.url)
    with pytest.raises(TrustError, match="another host key"):
        devices.add(fleet, home, new, admin=accepted)
    devices.remove(fleet, home, fleet.devices(), admin=accepted, forget=True)
    devices.add(fleet, home, new, admin=accepted)
    assert answers(fleet, home)


def test_the_way_it_was_typed_is_remembered_and_said(
    store: Store, home: Home, board: Board, tmp_path: Path
) -> None:
    """An alias that one file knows: without that file neither a command nor a hint leads to the device."""
    config = tmp_path / "of the belts"
    place = (
        f"Host belt-c\n  HostName {board.sshd.address}\n  Port {board.sshd.port}\n  User {board.bed.user}\n"
    )
    config.write_text(place + board.admin.ssh_config.read_text() if board.admin.ssh_config else place)
    typed = f"ssh://belt-c -F '{config}'"
    new = NewDevice(name="watch-1", url="ssh://belt-c")
    devices.add(store, home, new, admin=replace(board.admin, ssh_config=config))
    bare = AdminLogin()
    assert rekeyed(store, home, bare).steps == ("its line is there already",)
    assert upgrade(store, home, store.devices(), admin=bare)[0].error is None
    assert not devices.add(store, home, new, admin=bare).changed
    for process in board.agents():
        process.kill()
    eventually(lambda: not board.agents(), "the agent's processes end")
    (ping,) = devices.ping(store, home, store.devices())
    assert ping.error is not None
    assert ping.error.hint == f"`fedctl devices add watch-1 {typed}` repairs it (run it again)"
    shutil.rmtree(board.prefix)
    for error in (
        rekeyed(store, home, bare).error,
        upgrade(store, home, store.devices(), admin=bare)[0].error,
    ):
        assert error is not None
        assert error.hint == f"install it again: fedctl devices add watch-1 {typed}"


# ------------------------------------------------------------------ by another's login


@pytest.fixture
def by_root(board: Board, tmp_path: Path) -> Iterator[AdminLogin]:
    """The device's own host key, and a login as root; the user's own key is not let in any more."""
    directory = board.bed.new_directory("by-root") / "sshd"
    sshd = Sshd(board.bed.sshd.program, directory, address="127.0.0.9", directives=["PermitRootLogin yes"])
    for suffix in ("", ".pub"):
        shutil.copy(board.bed.directory / "device" / f"host_key{suffix}", directory / f"host_key{suffix}")
    sshd.authorized_keys.write_text((tmp_path / "admin.pub").read_text())
    sshd.start()
    try:
        yield replace(board.admin, via=f"ssh://root@{sshd.address}:{sshd.port}")
    finally:
        sshd.stop()


def test_root_puts_the_line_back_for_the_user(
    fleet: Store, home: Home, board: Board, by_root: AdminLogin
) -> None:
    shutil.rmtree(board.keys.parent)
    assert rekeyed(fleet, home, by_root).changed
    assert (board.keys.owner(), board.keys.stat().st_mode & 0o777) == (board.bed.user, 0o600)
    assert (board.keys.parent.owner(), board.keys.parent.stat().st_mode & 0o777) == (board.bed.user, 0o700)
    assert answers(fleet, home)


def test_root_installs_for_a_user(store: Store, home: Home, board: Board, by_root: AdminLogin) -> None:
    board.own(board.keys, "")
    new = NewDevice(name="watch-1", url=board.url)
    result = devices.add(store, home, new, admin=by_root)
    assert result.url == board.url
    assert board.state.owner() == board.bed.user
    assert {process.username() for process in board.agents()} == {board.bed.user}
    assert answers(store, home)
    assert not devices.add(store, home, new, admin=by_root).changed


def test_via_is_for_one_device(fleet: Store, home: Home, by_root: AdminLogin) -> None:
    (device,) = fleet.devices()
    with pytest.raises(UsageError, match="--via is an address of one device"):
        rekey(fleet, home, [device, replace(device, name="watch-2")], admin=by_root)


def test_a_user_who_is_not_there(fleet: Store, home: Home, by_root: AdminLogin, board: Board) -> None:
    (device,) = fleet.devices()
    url = board.url.replace(board.bed.user, "nobody-there")
    nobody = replace(device, url=url, facts={**device.facts, "admin_url": url})
    (outcome,) = rekey(fleet, home, [nobody], admin=by_root).outcomes
    assert isinstance(outcome.error, FedctlError)
    assert "root cannot act for nobody-there: su: user nobody-there does not exist" in outcome.error.message


# ------------------------------------------------------------------ the command


def test_the_command(
    fleet: Store,
    home: Home,
    board: Board,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FEDCTL_HOME", str(home.path))
    words = ["devices", "rekey", "watch-1", "-F", str(board.admin.ssh_config)]
    board.own(board.keys, board.keys.read_text().replace("dial-stdio", "nothing"))
    capsys.readouterr()
    assert app.run([*words, "--dry-run", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["dry_run"] is True
    assert app.run(words) == 0
    assert "rekeyed" in capsys.readouterr().out
    assert app.run([*words, "-o", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["devices"]
    assert (row["name"], row["changed"], row["error"]) == ("watch-1", False, None)
    assert answers(fleet, home)

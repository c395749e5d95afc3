"""A device behind a jump host, from nothing to a ping and back, by an alias of the admin's configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from fedctl.core.home import Home
from fedctl.ops import devices
from fedctl.ops.devices import AdminLogin, NewDevice
from fedctl.ops.enrolment.rekey import rekey
from fedctl.release.keys import login_public
from fedctl.store import Store
from fedctl.transport.jump import JUMP_HOSTS
from tests.integration.install.conftest import Board
from tests.system import Sshd

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("light")]


@pytest.fixture
def gate(board: Board) -> Iterator[Sshd]:
    sshd = Sshd(board.bed.sshd.program, board.bed.new_directory("gate") / "sshd", address="127.0.0.13")
    admin = board.keys.read_text().splitlines()[1]
    sshd.authorized_keys.write_text(f"restrict,port-forwarding {admin}\n")
    sshd.start()
    try:
        yield sshd
    finally:
        JUMP_HOSTS.close()
        sshd.stop()


@pytest.fixture
def admin(board: Board, gate: Sshd) -> AdminLogin:
    config = board.admin.ssh_config
    assert config is not None
    aliases = f"Host gate\n  HostName {gate.address}\n  Port {gate.port}\n  User {board.bed.user}\n"
    aliases += f"Host Ward-3\n  HostName {board.sshd.address}\n  Port {board.sshd.port}\n"
    aliases += f"  User {board.bed.user}\n  ProxyJump gate\n"
    config.write_text(aliases + config.read_text())
    return board.admin


def test_enrolled_reached_rekeyed_and_removed_through_it(
    store: Store, home: Home, board: Board, gate: Sshd, admin: AdminLogin
) -> None:
    new = NewDevice(name="watch-1", url="ssh://Ward-3")
    device = devices.add(store, home, new, admin=admin).device
    assert device is not None
    assert device.url == board.url
    assert device.facts["jump"] == [{"url": "ssh://gate", "host_key": gate.host_key}]
    assert device.facts["ssh_config"] == str(admin.ssh_config)
    (outcome,) = devices.ping(
        store, home, store.devices()
    )  # the gate's key is the enrolment's: no known_hosts
    assert outcome.error is None
    assert gate.log.count("Accepted publickey") == 1

    silent = replace(admin, ask=None)
    assert not devices.add(store, home, new, admin=silent).changed
    (rekeyed,) = rekey(store, home, store.devices(), admin=silent, new_key=True).outcomes
    assert rekeyed.error is None
    gate.stop()
    (outcome,) = devices.ping(store, home, store.devices())
    assert outcome.error is not None
    assert "is behind gate" in outcome.error.message
    gate.start()
    (removed,) = devices.remove(store, home, store.devices(), admin=silent)
    assert removed.error is None
    assert store.devices() == ()


def test_upkeep_passes_a_jump_host_that_takes_only_the_fleet_s_login_key(
    store: Store, home: Home, board: Board, gate: Sshd, admin: AdminLogin
) -> None:
    gate.authorized_keys.write_text(f"restrict,port-forwarding {login_public(home)}\n")
    devices.add(store, home, NewDevice(name="watch-1", url="ssh://Ward-3"), admin=admin)
    JUMP_HOSTS.close()  # another process has no connection to it yet
    (rekeyed,) = rekey(store, home, store.devices(), admin=replace(admin, ask=None)).outcomes
    assert rekeyed.error is None
    (removed,) = devices.remove(store, home, store.devices(), admin=replace(admin, ask=None))
    assert removed.error is None

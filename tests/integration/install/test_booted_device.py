"""Agents under a real systemd: the system's unit, the user's unit, and the way from a supervisor to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedctl.core.errors import DeviceError
from fedctl.core.home import Home
from fedctl.ops import devices
from fedctl.ops.devices import AddResult, AdminLogin, NewDevice
from fedctl.ops.enrolment.upgrade import upgrade
from fedctl.store import Store
from tests.booted import USER, BootedDevice, booted_device
from tests.integration.install.test_upgrade import SILENT, new_agent

pytestmark = pytest.mark.system

SOURCE = 'kind = "npz"\npath = "/home/pi/data"\nfeatures = "x"\nlabel = "y"\n'
STATE, SOCKET = "/var/lib/fedctl-agent", "/run/fedctl-agent/agent.sock"


@pytest.fixture(scope="module")
def device() -> Iterator[BootedDevice]:
    with booted_device() as made:
        yield made


@pytest.fixture
def admin(device: BootedDevice, tmp_path: Path) -> AdminLogin:
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host *\n  IdentityFile {device.key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {tmp_path / 'known_hosts'}\n"
    )
    return AdminLogin(ssh_config=config, ask=lambda _question: True)


def add(store: Store, home: Home, device: BootedDevice, admin: AdminLogin, **options: object) -> AddResult:
    user = str(options.pop("user", USER))
    source = options.pop("source", None)
    new = NewDevice(name="watch-1", url=device.url(user), source=source)  # type: ignore[arg-type]
    return devices.add(store, home, new, admin=admin, **options)  # type: ignore[arg-type]


def assert_answers(store: Store, home: Home) -> None:
    (outcome,) = devices.ping(store, home, store.devices())
    assert outcome.error is None


def remove(store: Store, home: Home, admin: AdminLogin, *, purge: bool = True) -> tuple[str, ...]:
    (outcome,) = devices.remove(store, home, store.devices(), admin=admin, purge=purge)
    assert outcome.error is None
    return outcome.steps


def traces(device: BootedDevice) -> str:
    """What an installation would leave: files, accounts, units, lingering."""
    paths = f"/usr/lib/fedctl-agent {STATE} /run/fedctl-agent /etc/systemd/system /home/{USER} /root/.ssh"
    return device.run(
        f"find {paths} 2>/dev/null | grep -v -e bash_history -e systemd/transient; "
        "cat /etc/passwd /etc/group /etc/shadow /etc/gshadow /home/pi/.ssh/authorized_keys; "
        "ls -A /var/lib/systemd/linger 2>/dev/null; true"
    )


@pytest.mark.usefixtures("light")
def test_an_agent_of_the_system_from_nothing_and_back(
    store: Store, home: Home, device: BootedDevice, admin: AdminLogin, tmp_path: Path
) -> None:
    before = traces(device)
    source = tmp_path / "recorder.toml"
    source.write_text(SOURCE)
    device.run("mkdir data; chmod 700 .", user=USER)
    result = add(store, home, device, admin, placement="system", source=source)
    assert result.verdict.startswith("systemd keeps it running, also after a reboot (system unit ")
    assert f"let {USER} into the group fedctl" in result.steps
    assert store.device("watch-1").facts["placement"] == "system"
    assert_answers(store, home)
    check_placed(device)
    check_unit(device)
    assert "the account fedctl may not read /home/pi/data" in result.verdict
    device.run("chmod o+x /home/pi")
    again = add(store, home, device, admin)  # where it is, it stays
    assert (again.changed, again.steps) == (False, ())
    assert "may not read" not in again.verdict
    device.run("rmdir data", user=USER)
    device.run("systemctl stop fedctl-agent")
    assert add(store, home, device, admin).steps == ("started the agent",)
    with pytest.raises(Exception, match="has an agent already, in /usr/lib/fedctl-agent"):
        add(store, home, device, admin, placement="user")
    assert_answers(store, home)
    assert any("deleted /var/lib/fedctl-agent" in step for step in remove(store, home, admin))
    assert traces(device) == before


def check_placed(device: BootedDevice) -> None:
    shown = device.run(f"stat -c '%a %U:%G %n' {STATE} {STATE}/identity/key.pem {SOCKET} /run/fedctl-agent")
    modes = [line.rsplit(" ", 1)[0] for line in shown.splitlines()]
    assert modes == ["700 fedctl:fedctl", "600 fedctl:fedctl", "660 fedctl:fedctl", "750 fedctl:fedctl"]
    assert device.run(f"stat -c %U {STATE}/sources/recorder.toml").split() == ["fedctl"]
    assert "fedctl" in device.run("id -nG", user=USER).split()
    assert set(device.run("ps -C python3 -o user= | sort -u").split()) <= {"fedctl"}
    line = device.run("tail -n 1 .ssh/authorized_keys", user=USER)
    command = f'"/usr/lib/fedctl-agent/bin/fedctl-agent dial-stdio --socket {SOCKET}"'
    assert line.startswith(f"restrict,command={command} ")


def check_unit(device: BootedDevice) -> None:
    assert device.run("systemd-analyze verify fedctl-agent.service 2>&1") == ""
    verdict = device.run("systemd-analyze security --no-pager fedctl-agent.service | tail -n 1")
    assert float(verdict.split(": ")[1].split()[0]) < 2.5, verdict
    assert device.run("systemctl is-enabled fedctl-agent").strip() == "enabled"


@pytest.mark.usefixtures("light")
def test_a_failure_of_a_systems_installation_leaves_nothing(
    store: Store, home: Home, device: BootedDevice, admin: AdminLogin, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = traces(device)
    monkeypatch.setattr(Store, "add_device", lambda *_: (_ for _ in ()).throw(DeviceError("pulled the plug")))
    with pytest.raises(DeviceError, match="pulled the plug") as error:
        add(store, home, device, admin, placement="system")
    assert "left behind" not in error.value.hint
    assert traces(device) == before


@pytest.mark.usefixtures("light")
def test_root_gets_an_agent_of_the_system_by_itself(
    store: Store, home: Home, device: BootedDevice, admin: AdminLogin
) -> None:
    before = traces(device)
    result = add(store, home, device, admin, user="root")
    assert store.device("watch-1").facts["placement"] == "system"
    assert not any("into the group" in step for step in result.steps)
    assert_answers(store, home)
    remove(store, home, admin, purge=False)
    assert "key.pem" in device.run(f"ls -l {STATE}/identity")
    device.run(f"rm -r {STATE}; userdel fedctl")
    assert traces(device) == before


def test_without_a_free_sudo_an_agent_of_the_system_is_refused(
    store: Store, home: Home, device: BootedDevice, admin: AdminLogin
) -> None:
    before = traces(device)
    device.run(f"mv /etc/sudoers.d/{USER} /etc/sudoers.hidden")
    try:
        with pytest.raises(DeviceError, match="sudo -n refuses it: a password is required") as error:
            add(store, home, device, admin, placement="system")
    finally:
        device.run(f"mv /etc/sudoers.hidden /etc/sudoers.d/{USER}")
    assert error.value.code == "sudo"
    assert traces(device) == before


@pytest.mark.usefixtures("light")
def test_a_supervised_agent_moves_to_systemd_once_its_user_lingers(
    store: Store, home: Home, device: BootedDevice, admin: AdminLogin
) -> None:
    first = add(store, home, device, admin)
    assert f"sudo loginctl enable-linger {USER}, then add it again" in first.verdict
    assert store.device("watch-1").facts["service"] == "supervisor"
    assert not add(store, home, device, admin).changed
    device.run(f"loginctl enable-linger {USER}")
    try:
        foreseen = add(store, home, device, admin, dry_run=True).steps
        assert "move the agent from its supervisor to systemd" in foreseen
        moved = add(store, home, device, admin)
        assert moved.steps == ("moved the agent from its supervisor to systemd",)
        assert moved.verdict.startswith("systemd keeps it running, also after a reboot")
        assert store.device("watch-1").facts["service"] == "systemd"
        assert device.run("pgrep -fc '[s]upervise --state-dir' || true").strip() == "0"
        assert_answers(store, home)
        assert not add(store, home, device, admin).changed
        verify = "systemd-analyze --user verify ~/.config/systemd/user/fedctl-agent.service 2>&1"
        assert device.run(verify, user=USER) == ""
        remove(store, home, admin)
    finally:
        device.run(f"loginctl disable-linger {USER}")


@pytest.mark.usefixtures("light")
def test_a_system_agent_that_does_not_answer_gives_way_to_the_old_one(
    store: Store, home: Home, device: BootedDevice, admin: AdminLogin, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, home, device, admin, placement="system")
    launcher = device.run("cat /usr/lib/fedctl-agent/bin/fedctl-agent")
    with monkeypatch.context() as patched:
        new_agent(patched, *SILENT)
        (outcome,) = upgrade(store, home, store.devices(), admin=admin, patience_s=4)
    assert outcome.error is not None
    assert outcome.error.code == "rolled_back"
    assert device.run("cat /usr/lib/fedctl-agent/bin/fedctl-agent") == launcher
    assert_answers(store, home)
    with monkeypatch.context() as patched:
        new_agent(patched, "fedctl_agent/__init__.py", "# newer")
        (outcome,) = upgrade(store, home, store.devices(), admin=admin)
    assert outcome.error is None
    assert device.run("stat -c %U:%a /usr/lib/fedctl-agent/versions/*").split() == ["root:755"]
    assert_answers(store, home)
    remove(store, home, admin)

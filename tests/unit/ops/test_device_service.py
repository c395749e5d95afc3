"""Starting an agent so that it stays: programs of systemd and cron stand in, the agent is a small server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedctl.ops.enrolment.ondevice import service as device_service
from tests.system import eventually

AGENT = """#!{python} -IS
import os, signal, socket, sys, time
words = dict(zip(sys.argv[2::2], sys.argv[3::2]))
pid_file = os.path.join(words["--state-dir"], "pid")
if sys.argv[1] == "stop":
    try:
        os.kill(int(open(pid_file).read()), signal.SIGKILL)
        os.unlink(pid_file)
    except OSError:
        pass
    sys.exit()
open(pid_file, "w").write(str(os.getpid()))
open(os.path.join(words["--state-dir"], "started-as"), "w").write(sys.argv[1])
if os.path.exists(words["--socket"]):
    os.unlink(words["--socket"])
server = socket.socket(socket.AF_UNIX)
server.bind(words["--socket"])
server.listen()
time.sleep(60)
"""
CRONTAB = """#!/bin/sh
table={directory}/table
[ "$1" = -l ] && {{ [ -e $table ] && exec cat $table; echo "no crontab" >&2; exit 1; }}
exec cat > $table
"""
SYSTEMCTL = """#!/bin/sh
echo "$*" >> {directory}/systemctl.log
unit={home}/.config/systemd/user/fedctl-agent.service
case "$2" in
restart) [ -e {directory}/refuses ] && exit 1
        [ -e {state}/pid ] && kill -9 $(cat {state}/pid)
        (exec >/dev/null 2>&1 </dev/null; eval exec setsid $(sed -n s/ExecStart=//p $unit)) & ;;
disable) [ -e {state}/pid ] && kill -9 $(cat {state}/pid); rm -f {state}/pid ;;
esac
exit 0
"""
LOGINCTL = """#!/bin/sh
case "$1" in enable-linger) touch {directory}/linger/$(id -un) ;; *) rm {directory}/linger/$(id -un) ;; esac
"""


@dataclass
class Device:
    """A home directory, a directory of programs and the agent's paths."""

    home: Path
    programs: Path
    launcher: str
    state: str
    socket: str

    def start(self, *, restart: bool = False, remark: str = "", patience_s: float = 5.0) -> dict[str, object]:
        where = f"--state-dir {self.state} --socket {self.socket}"
        unit = f"{remark}[Service]\nExecStart={self.launcher} serve {where}\n"
        return device_service.start(
            self.launcher,
            self.state,
            self.socket,
            unit,
            system=False,
            restart=restart,
            patience_s=patience_s,
        )

    def stop(self) -> None:
        device_service.stop(self.launcher, self.state, self.socket, system=False)

    def runs(self) -> bool:
        return device_service._answers(self.socket)

    def add(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text.format(directory=self.programs, home=self.home, state=self.state))
        path.chmod(0o755)

    def pid(self) -> str:
        return Path(self.state, "pid").read_text()

    @property
    def table(self) -> Path:
        return self.programs / "table"

    @property
    def unit(self) -> Path:
        return self.home / ".config/systemd/user/fedctl-agent.service"


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    programs, state = tmp_path / "bin", tmp_path / "state"
    for directory in (programs, state, programs / "linger"):
        directory.mkdir()
    made = Device(tmp_path, programs, str(programs / "agent"), str(state), str(state / "s"))
    (programs / "agent").write_text(AGENT.format(python=sys.executable))
    (programs / "agent").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(
        device_service.shutil,
        "which",
        lambda name: str(programs / name) if (programs / name).exists() else None,
    )
    monkeypatch.setattr(device_service, "_LINGER_DIRECTORY", programs / "linger")
    monkeypatch.setattr(device_service, "_unit_path", lambda **_: made.unit)
    monkeypatch.setattr(device_service, "_logind_kills", lambda: False)
    yield made
    if Path(state, "pid").exists():
        os.kill(int(made.pid()), 9)


@pytest.fixture
def cron(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.add("crontab", CRONTAB)
    monkeypatch.setattr(
        device_service, "_CRON_NAMES", {Path(f"/proc/{os.getpid()}/comm").read_text().strip()}
    )


def test_without_cron_the_verdict_says_how_to_start_it_after_a_reboot(device: Device) -> None:
    started = device.start()
    assert started["done"] == "started the agent"
    assert started["service"] == "supervisor"
    assert f"{device.launcher} supervise --state-dir" in str(started["verdict"])
    pid = device.pid()
    assert not device.start()["done"]
    assert device.pid() == pid
    assert device.start(restart=True)["done"]
    assert device.pid() != pid
    device.stop()
    device.stop()
    assert not device.runs()


@pytest.mark.usefixtures("cron")
def test_cron_gets_one_line_and_loses_only_that(device: Device) -> None:
    device.table.write_text("0 3 * * * backup\n")
    assert "cron starts it after a reboot" in str(device.start()["verdict"])
    device.start(restart=True)
    mine, line = device.table.read_text().splitlines()
    assert mine == "0 3 * * * backup"
    assert line.startswith(f"@reboot {device.launcher} supervise --state-dir ")
    device.stop()
    assert device.table.read_text() == "0 3 * * * backup\n"


@pytest.mark.usefixtures("cron")
def test_a_missing_cron_line_is_put_back_under_a_running_agent(device: Device) -> None:
    device.start()
    device.table.unlink()
    assert device.start()["done"]
    assert "@reboot" in device.table.read_text()


def with_systemd(device: Device) -> None:
    device.add("systemctl", SYSTEMCTL)
    device.add("loginctl", LOGINCTL)


def test_systemd_with_linger_runs_it_as_a_unit_and_linger_is_given_back(device: Device) -> None:
    with_systemd(device)
    started = device.start()
    assert (started["service"], Path(device.state, "started-as").read_text()) == ("systemd", "serve")
    assert "systemd keeps it running" in str(started["verdict"])
    assert list((device.programs / "linger").iterdir())
    assert not device.start()["done"]
    pid = device.pid()
    assert device.start(remark="# newer\n")["done"] == "started the agent"  # the unit has changed
    eventually(lambda: device.pid() != pid, what="the new daemon writes its number")
    assert not device.start(remark="# newer\n")["done"]
    device.stop()
    assert not device.unit.exists()
    assert not list((device.programs / "linger").iterdir())
    assert not device.runs()


def test_a_linger_that_was_there_before_stays(device: Device) -> None:
    with_systemd(device)
    (device.programs / "linger" / device_service._user()).touch()
    device.start()
    device.stop()
    assert list((device.programs / "linger").iterdir())


@pytest.mark.parametrize("broken", ["no linger", "unit refused"])
def test_a_systemd_that_does_not_really_work_gives_way_to_the_supervisor(device: Device, broken: str) -> None:
    with_systemd(device)
    if broken == "no linger":
        device.add("loginctl", "#!/bin/sh\nexit 1\n")
    else:
        (device.programs / "refuses").touch()
    started = device.start()
    assert (started["service"], Path(device.state, "started-as").read_text()) == ("supervisor", "supervise")
    assert not device.unit.exists()
    assert not list((device.programs / "linger").iterdir())


@pytest.mark.usefixtures("cron")
def test_an_agent_moves_from_its_supervisor_to_systemd_once_its_user_lingers(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_service, "_BOOTED_BY_SYSTEMD", device.home)
    with_systemd(device)
    device.add("loginctl", "#!/bin/sh\nexit 1\n")  # only root may let it linger
    first = device.start()
    hint = f"sudo loginctl enable-linger {device_service._user()}, then add it again"
    assert (first["service"], hint in str(first["verdict"])) == ("supervisor", True)
    assert not device.start()["done"]
    (device.programs / "linger" / device_service._user()).touch()
    moved = device.start()
    assert moved["done"] == "moved the agent from its supervisor to systemd"
    assert (moved["service"], Path(device.state, "started-as").read_text()) == ("systemd", "serve")
    assert "@reboot" not in device.table.read_text()
    assert not device.start()["done"]


@pytest.mark.parametrize("booted", [True, False])
def test_logind_that_kills_is_named(device: Device, monkeypatch: pytest.MonkeyPatch, *, booted: bool) -> None:
    monkeypatch.setattr(device_service, "_logind_kills", lambda: True)
    monkeypatch.setattr(device_service, "_BOOTED_BY_SYSTEMD", device.home if booted else Path("/none"))
    verdict = str(device.start()["verdict"])
    assert "KillUserProcesses" in verdict
    assert ("sudo loginctl enable-linger" in verdict) == booted


def test_an_agent_that_does_not_start_is_told_with_its_last_words(device: Device) -> None:
    Path(device.launcher).write_text("#!/bin/sh\nexit 1\n")
    Path(device.state, "agent.log").write_text("first\nno module named h11\n")
    with pytest.raises(OSError, match="did not start within 0 s: no module named h11"):
        device.start(patience_s=0.2)

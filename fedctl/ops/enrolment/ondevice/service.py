"""Runs on a device, under its own Python: starting the agent so that it stays, and stopping it.

Standard library only; the source text of this module is sent over the admin's login and executed
there, so it imports nothing of fedctl. A user's systemd is used where it keeps running without a
login (linger) and the agent really came up under it, otherwise the agent's own supervisor.
"""

import os
import pwd
import shlex
import shutil
import socket as sockets
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_UNIT = "fedctl-agent.service"
_LINGER_DIRECTORY = Path("/var/lib/systemd/linger")
_LINGER_IS_OURS = "# linger was enabled for this unit"
_CRON_MARK = "# fedctl-agent"
_CRON_NAMES = {"cron", "crond", "fcron"}
_START_DEADLINE_S = 20.0
_STOP_DEADLINE_S = 20.0
_PAUSE_S = 0.05


def start(launcher: str, state: str, socket: str, *, restart: bool) -> dict[str, Any]:
    """Make the agent run now and after a reboot; nothing is touched when both are so already.

    Returns:
        `changed`, `verdict` (how it comes back after a reboot) and `service` ("systemd" or "supervisor").
    """
    service = _service_in_place()
    if service is not None and _answers(socket) and not restart:
        return {"changed": False, "service": service, "verdict": _verdict(service, launcher, state, socket)}
    if _answers(socket):
        stop(launcher, state, socket)
    service = "systemd" if _start_by_systemd(launcher, state, socket) else "supervisor"
    if service == "supervisor":
        _start_supervisor(launcher, state, socket)
        _set_cron_line(_cron_line(launcher, state, socket) if _has_cron() else None)
    return {"changed": True, "service": service, "verdict": _verdict(service, launcher, state, socket)}


def running(socket: str) -> bool:
    """Whether an agent answers at its socket."""
    return _answers(socket)


def stop(launcher: str, state: str, socket: str) -> None:
    """Stop the agent and let nothing start it again; fine when it does not run."""
    if _unit_path().exists():
        ours = _LINGER_IS_OURS in _unit_path().read_text(encoding="utf-8")
        _remove_unit()
        if ours:
            _run(["loginctl", "disable-linger"])
    _set_cron_line(None)
    if Path(launcher).exists():
        command = [launcher, "stop", "--state-dir", state]
        subprocess.run(command, capture_output=True, timeout=_STOP_DEADLINE_S, check=False)
    deadline = time.monotonic() + _STOP_DEADLINE_S
    while _answers(socket):
        if time.monotonic() > deadline:
            raise OSError(f"the agent at {socket} does not stop")
        time.sleep(_PAUSE_S)


def _service_in_place() -> str | None:
    if _unit_path().exists():
        return "systemd"
    return "supervisor" if not _has_cron() or _CRON_MARK in _cron_table() else None


def _verdict(service: str, launcher: str, state: str, socket: str) -> str:
    if service == "systemd":
        return f"systemd keeps it running, also after a reboot (user unit {_UNIT})"
    if _logind_kills():
        return (
            "it ends with the last login: logind has KillUserProcesses=yes; "
            f"as root run: loginctl enable-linger {_user()}"
        )
    if _CRON_MARK in _cron_table():
        return "a supervisor keeps it running; cron starts it after a reboot"
    command = shlex.join(_supervise(launcher, state, socket))
    return f"a supervisor keeps it running until a reboot; there is no cron, so start it then with: {command}"


# ------------------------------------------------------------------ systemd


def _start_by_systemd(launcher: str, state: str, socket: str) -> bool:
    lingered = _lingers()
    if not lingered and shutil.which("loginctl"):
        _run(["loginctl", "enable-linger"])
    remark = "" if lingered else f"{_LINGER_IS_OURS}\n"
    if (
        _lingers()
        and _until(_manager_answers)
        and _start_unit(remark + _unit_text(launcher, state, socket), socket)
    ):
        return True
    if not lingered and _lingers():
        _run(["loginctl", "disable-linger"])
    return False


def _start_unit(text: str, socket: str) -> bool:
    _unit_path().parent.mkdir(parents=True, exist_ok=True)
    _unit_path().write_text(text, encoding="utf-8")
    _systemctl("daemon-reload")
    if _systemctl("enable", "--now", _UNIT) and _comes_up(socket) and _systemctl("is-active", _UNIT):
        return True
    _remove_unit()
    return False


def _remove_unit() -> None:
    _systemctl("disable", "--now", _UNIT)
    _unit_path().unlink(missing_ok=True)
    _systemctl("daemon-reload")


def _unit_text(launcher: str, state: str, socket: str) -> str:
    words = " ".join(f'"{w}"' for w in (launcher, "serve", "--state-dir", state, "--socket", socket))
    return (
        "[Unit]\nDescription=fedctl agent\n\n"
        f"[Service]\nExecStart={words}\nRestart=always\nRestartSec=2\n\n"
        "[Install]\nWantedBy=default.target\n"
    )


def _unit_path() -> Path:
    return Path(pwd.getpwuid(os.getuid()).pw_dir, ".config/systemd/user", _UNIT)


def _manager_answers() -> bool:
    return shutil.which("systemctl") is not None and _systemctl("list-units", "--no-legend")


def _lingers() -> bool:
    return (_LINGER_DIRECTORY / _user()).exists()


def _systemctl(*words: str) -> bool:
    return _run(["systemctl", "--user", *words])


def _logind_kills() -> bool:
    files = [Path("/etc/systemd/logind.conf"), *sorted(Path("/etc/systemd/logind.conf.d").glob("*.conf"))]
    lines: list[str] = []
    for path in files:
        try:
            lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
    set_lines = [line.split("=", 1)[1].strip() for line in lines if line.startswith("KillUserProcesses=")]
    return bool(set_lines) and set_lines[-1] in {"yes", "true", "1", "on"}


# ------------------------------------------------------------------ supervisor and cron


def _supervise(launcher: str, state: str, socket: str) -> list[str]:
    return [launcher, "supervise", "--state-dir", state, "--socket", socket]


def _start_supervisor(launcher: str, state: str, socket: str) -> None:
    # Away from this login in every way: its session, its terminal, its working directory, its pipes.
    # The shell ends at once, so that the supervisor is nobody's child here.
    subprocess.run(
        ["/bin/sh", "-c", '"$@" &', "sh", *_supervise(launcher, state, socket)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        timeout=_START_DEADLINE_S,
        check=False,
    )
    if not _comes_up(socket):
        raise OSError(f"the agent did not start within {_START_DEADLINE_S:.0f} s{_last_words(state)}")


def _last_words(state: str) -> str:
    try:
        lines = Path(state, "agent.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return f": {lines[-1][:300]}" if lines else ""


def _has_cron() -> bool:
    if shutil.which("crontab") is None:
        return False
    names = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            names.add(path.read_text(encoding="utf-8", errors="replace").strip())
        except OSError:
            continue  # it ended meanwhile
    return bool(names & _CRON_NAMES)


def _cron_line(launcher: str, state: str, socket: str) -> str:
    return f"@reboot {shlex.join(_supervise(launcher, state, socket))} >/dev/null 2>&1 {_CRON_MARK}"


def _cron_table() -> str:
    if shutil.which("crontab") is None:
        return ""
    done = subprocess.run(["crontab", "-l"], capture_output=True, text=True, timeout=20, check=False)
    return done.stdout if done.returncode == 0 else ""


def _set_cron_line(line: str | None) -> None:
    table = _cron_table()
    kept = [old for old in table.splitlines() if not old.endswith(_CRON_MARK)]
    wanted = "".join(f"{text}\n" for text in [*kept, *([line] if line else [])])
    if wanted != table:
        subprocess.run(["crontab", "-"], input=wanted, text=True, capture_output=True, timeout=20, check=True)


# ------------------------------------------------------------------ plumbing


def _comes_up(socket: str) -> bool:
    return _until(lambda: _answers(socket))


def _until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(_PAUSE_S)
    return False


def _answers(socket: str) -> bool:
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as link:
        link.settimeout(5)
        try:
            link.connect(socket)
        except OSError:
            return False
    return True


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _run(command: list[str]) -> bool:
    environment = {**os.environ, "XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0

"""Runs on a device, under its own Python: starting the agent so that it stays, and stopping it.

Standard library only; the source text of this module is sent over the admin's login and executed
there, so it imports nothing of fedctl. An agent of the system (`system`) is run by systemd and by nothing
else. For one of a user, the user's systemd is used where it keeps running without a login (linger) and
the agent really came up under it, otherwise the agent's own supervisor.
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
_SYSTEM_UNIT_PATH = Path("/etc/systemd/system", _UNIT)
_BOOTED_BY_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
_LINGER_DIRECTORY = Path("/var/lib/systemd/linger")
_LINGER_IS_OURS = "# linger was enabled for this unit\n"
_SYSTEM_VERDICT = f"systemd keeps it running, also after a reboot (system unit {_UNIT})"
_CRON_MARK = "# fedctl-agent"
_CRON_NAMES = {"cron", "crond", "fcron"}
_START_DEADLINE_S = 20.0
_STOP_DEADLINE_S = 20.0
_PAUSE_S = 0.05


def start(
    launcher: str,
    state: str,
    socket: str,
    unit: str,
    *,
    system: bool,
    restart: bool,
    patience_s: float = _START_DEADLINE_S,
) -> dict[str, Any]:
    """Make the agent run now and after a reboot; nothing is touched when both are so already.

    Args:
        launcher: The program.
        state: Its state directory.
        socket: Where it will listen.
        unit: The systemd unit for it.
        system: Whether it is the system's.
        restart: Also when it runs.
        patience_s: For it to listen.

    Returns:
        `done` (a sentence, "" when nothing was to do), `verdict` (how it comes back after a reboot) and
        `service` ("systemd" or "supervisor").
    """
    before = survey(socket, unit, system=system)["state"]
    if restart or before != "runs":
        if system:
            service = _start_system_unit(unit, socket, state, patience_s)
        else:
            service = _start(launcher, state, socket, unit, patience_s)
        moved = before == "movable" and service == "systemd"
        done = "moved the agent from its supervisor to systemd" if moved else "started the agent"
    else:
        service, done = "systemd" if _unit_path(system=system).exists() else "supervisor", ""
    verdict = _SYSTEM_VERDICT if system else _verdict(service, launcher, state, socket)
    return {"done": done, "service": service, "verdict": verdict}


def survey(socket: str, unit: str, *, system: bool) -> dict[str, Any]:
    """How the agent runs, and the text of the unit in its place, if there is one.

    `state` is `stopped`, `outdated` (under another unit than `unit`), `movable` (its supervisor keeps it
    where systemd would do so now) or `runs`.
    """
    there = _unit_in_place(system=system) if _unit_path(system=system).exists() else None
    return {"state": _state(socket, unit, there, system=system), "unit": there}


def _state(socket: str, unit: str, there: str | None, *, system: bool) -> str:
    if not _answers(socket):
        return "stopped"
    if there is not None:
        return "runs" if there == unit else "outdated"
    if system:
        return "stopped"  # whoever answers there is not kept by anybody
    if _lingers() and _manager_answers():
        return "movable"
    return "runs" if not _has_cron() or _CRON_MARK in _cron_table() else "stopped"


def stop(launcher: str, state: str, socket: str, *, system: bool) -> None:
    """Stop the agent and let nothing start it again; fine when it does not run."""
    if _unit_path(system=system).exists():
        ours = _LINGER_IS_OURS in _unit_path(system=system).read_text(encoding="utf-8")
        _remove_unit(system=system)
        if ours:
            _run(["loginctl", "disable-linger"])
    if not system:
        _set_cron_line(None)
    if Path(launcher).exists():
        command = [launcher, "stop", "--state-dir", state]
        subprocess.run(command, capture_output=True, timeout=_STOP_DEADLINE_S, check=False)
    deadline = time.monotonic() + _STOP_DEADLINE_S
    while _answers(socket):
        if time.monotonic() > deadline:
            raise OSError(f"the agent at {socket} does not stop")
        time.sleep(_PAUSE_S)


def _verdict(service: str, launcher: str, state: str, socket: str) -> str:
    if service == "systemd":
        return f"systemd keeps it running, also after a reboot (user unit {_UNIT})"
    # On a device that another init has booted there is nothing to linger in.
    lacks_linger = _BOOTED_BY_SYSTEMD.exists() and not _lingers()
    hint = f"; for systemd to keep it: sudo loginctl enable-linger {_user()}, then add it again"
    way_out = hint if lacks_linger else ""
    if _logind_kills():
        return f"it ends with the last login: logind has KillUserProcesses=yes{way_out}"
    if _CRON_MARK in _cron_table():
        return f"a supervisor keeps it running; cron starts it after a reboot{way_out}"
    command = shlex.join(_supervise(launcher, state, socket))
    return (
        "a supervisor keeps it running until a reboot; there is no cron, so start it then with: "
        f"{command}{way_out}"
    )


# ------------------------------------------------------------------ systemd


def _start_system_unit(unit: str, socket: str, state: str, patience_s: float) -> str:
    if not _start_unit(unit, socket, patience_s, system=True):
        raise OSError(f"the agent did not start within {patience_s:.0f} s{_last_words(state)}")
    return "systemd"


def _start(launcher: str, state: str, socket: str, unit: str, patience_s: float) -> str:
    """Under the user's systemd, else under the supervisor; says which."""
    if _unit_path().exists() and _lingers() and _start_unit(_linger_remark() + unit, socket, patience_s):
        return "systemd"
    stop(launcher, state, socket, system=False)  # one may run that does not answer
    if _start_by_systemd(unit, socket, patience_s):
        return "systemd"
    _start_supervisor(launcher, state, socket, patience_s)
    _set_cron_line(_cron_line(launcher, state, socket) if _has_cron() else None)
    return "supervisor"


def _start_by_systemd(unit: str, socket: str, patience_s: float) -> bool:
    lingered = _lingers()
    if not lingered and shutil.which("loginctl"):
        _run(["loginctl", "enable-linger"])
    remark = "" if lingered else _LINGER_IS_OURS
    if _lingers() and _until(_manager_answers, patience_s) and _start_unit(remark + unit, socket, patience_s):
        return True
    _remove_unit()
    if not lingered and _lingers():
        _run(["loginctl", "disable-linger"])
    return False


def _start_unit(text: str, socket: str, patience_s: float, *, system: bool = False) -> bool:
    path = _unit_path(system=system)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    _systemctl("daemon-reload", system=system)
    started = _systemctl("enable", _UNIT, system=system) and _systemctl("restart", _UNIT, system=system)
    return started and _comes_up(socket, patience_s) and _systemctl("is-active", _UNIT, system=system)


def _remove_unit(*, system: bool = False) -> None:
    if not _unit_path(system=system).exists():
        return
    _systemctl("disable", "--now", _UNIT, system=system)
    _unit_path(system=system).unlink(missing_ok=True)
    _systemctl("daemon-reload", system=system)


def _unit_path(*, system: bool = False) -> Path:
    if system:
        return _SYSTEM_UNIT_PATH
    return Path(pwd.getpwuid(os.getuid()).pw_dir, ".config/systemd/user", _UNIT)


def _unit_in_place(*, system: bool = False) -> str:
    return _unit_path(system=system).read_text(encoding="utf-8").removeprefix(_LINGER_IS_OURS)


def _linger_remark() -> str:
    return _LINGER_IS_OURS if _LINGER_IS_OURS in _unit_path().read_text(encoding="utf-8") else ""


def _manager_answers() -> bool:
    return shutil.which("systemctl") is not None and _systemctl("list-units", "--no-legend")


def _lingers() -> bool:
    return (_LINGER_DIRECTORY / _user()).exists()


def _systemctl(*words: str, system: bool = False) -> bool:
    return _run(["systemctl", *([] if system else ["--user"]), *words])


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


def _start_supervisor(launcher: str, state: str, socket: str, patience_s: float) -> None:
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
    if not _comes_up(socket, patience_s):
        raise OSError(f"the agent did not start within {patience_s:.0f} s{_last_words(state)}")


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


def _comes_up(socket: str, patience_s: float) -> bool:
    return _until(lambda: _answers(socket), patience_s)


def _until(condition: Callable[[], bool], patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
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

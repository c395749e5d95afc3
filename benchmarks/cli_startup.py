"""CPU time of `fedctl --version`, `fedctl devices list -o json` with 200 devices, `fedctl --help` and a TAB.

User and system time of the process as the kernel counts it (wait4), median of 20, warm cache. A TAB is a
bash that reads the completion file and completes a device's name, so its own start is in the figure. The
last line is one JSON object: `version_ms`, `list_ms`, `help_ms`, `tab_ms`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from fedctl.core.home import Home
from fedctl.core.records import Device, DeviceState
from fedctl.ops.fleet import init
from fedctl.store import Store

PROGRAM = str(Path(sys.executable).with_name("fedctl"))
RUNS = 20
DEVICES = 200
LIMITS_MS = {"version_ms": 25, "list_ms": 90, "help_ms": 190, "tab_ms": 120}
COMPLETIONS = Path(__file__).resolve().parent.parent / "completions" / "fedctl.bash"
TAB = """source "$1"; COMP_LINE="fedctl devices show watch-19"; COMP_POINT=${#COMP_LINE}
COMP_WORDS=(fedctl devices show watch-19); COMP_CWORD=3; _fedctl "$2"; wait $!  # else not counted
((${#COMPREPLY[@]} == 10))"""


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        home = Home(Path(directory) / "home")
        make_fleet(home)
        environment = {**os.environ, "FEDCTL_HOME": str(home.path)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the first run fills the cache
        figures = {
            "version_ms": cpu_ms(["--version"], environment),
            "list_ms": cpu_ms(["devices", "list", "-o", "json"], environment),
            "help_ms": cpu_ms(["--help"], environment),
            "tab_ms": median_ms(["bash", "-c", TAB, "bash", str(COMPLETIONS), PROGRAM], environment),
        }
    for name, limit in LIMITS_MS.items():
        print(f"{name}: {figures[name]:.1f} (limit {limit})", file=sys.stderr)
    print(json.dumps(figures))


def make_fleet(home: Home) -> None:
    init(home)
    with Store.open(home) as store, store.transaction():
        for number in range(DEVICES):
            store.add_device(
                Device(
                    name=f"watch-{number:03d}",
                    url=f"ssh://fedctl@192.0.2.{number}",
                    host_key="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE5vIHN1Y2gga2V5LCBvbmx5IGZvciBsZW5ndGg=",
                    identity_key=f"{number:064x}",
                    serial=number + 1,
                    arch="aarch64",
                    python="3.11.2",
                    agent_version="0.1.0",
                    state=DeviceState.ENROLLED,
                    enrolled_at="2026-03-01T08:00:00.000Z",
                    last_seen="2026-03-02T08:00:00.000Z",
                    facts={"os": "Raspberry Pi OS 12", "memory_bytes": 512 * 1024**2},
                    labels={"ward": str(number % 7), "role": "train" if number % 4 else "holdout"},
                )
            )


def cpu_ms(arguments: list[str], environment: dict[str, str]) -> float:
    """Median CPU time of one command line."""
    return median_ms([PROGRAM, *arguments], environment)


def median_ms(command: list[str], environment: dict[str, str]) -> float:
    """Median CPU time of a program and of what it starts, after one run that is not counted."""
    spawned(command, environment)
    return round(statistics.median(spawned(command, environment) for _ in range(RUNS)), 1)


def spawned(command: list[str], environment: dict[str, str]) -> float:
    to_null = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    child = os.posix_spawnp(command[0], command, environment, file_actions=[to_null])
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return (usage.ru_utime + usage.ru_stime) * 1000


if __name__ == "__main__":
    main()

"""Runs on a device, under its own Python: what is there. Standard library only; changes nothing.

The source text of this module is sent over the admin's login and executed there, so it imports
nothing of fedctl. `fedctl.ops.enrolment.shell` calls `probe` and passes its answer on.
"""

import importlib.metadata
import importlib.util
import os
import platform
import pwd
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

_MANAGER_UP = {"running", "degraded", "starting", "initializing"}  # of `systemctl is-system-running`
# A 32-bit user space on a 64-bit kernel.
_NARROW = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}
_PACKAGE_MANAGERS = ("apt-get", "dnf", "zypper", "pacman", "opkg", "apk")
_SYSTEM_DIRECTORIES = "/usr/sbin:/sbin"  # not on every login's PATH


def probe(
    distributions: list[str], launchers: list[str] | None = None, place: str | None = None
) -> dict[str, Any]:
    """Facts about this device and the login's account; a missing one is None or empty.

    Args:
        distributions: Whose versions to look up.
        launchers: Of agents; which of them are there.
        place: Where the agent will be, for the free disk; the home directory when None.
    """
    user = pwd.getpwuid(os.getuid())
    return {
        "python": list(sys.version_info[:3]),
        "executable": sys.executable,
        "cache_tag": sys.implementation.cache_tag or "",
        "bytecode_magic": importlib.util.MAGIC_NUMBER.hex(),
        "machine": _machine(),
        "libc": _libc(),
        "system": _system_name(),
        "user": user.pw_name,
        "home": user.pw_dir,
        "importable": {name: v for name in distributions if (v := _version(name)) is not None},
        "free_memory_bytes": _free_memory_bytes(),
        "free_disk_bytes": shutil.disk_usage(_existing(Path(place or user.pw_dir))).free,
        "systemd_user": _user_manager_answers(),
        "systemd_system": Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None,
        "root": os.getuid() == 0,
        "installed": [path for path in launchers or () if Path(path).expanduser().exists()],
        "package_manager": next((name for name in _PACKAGE_MANAGERS if _is_program(name)), ""),
    }


def _machine() -> str:
    machine = platform.machine()
    return _NARROW.get(machine, machine) if struct.calcsize("P") == 4 else machine


def _libc() -> str:
    """`glibc 2.36`, `musl`, or "" where neither is recognised."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        text = None
    if text:
        return text
    return "musl" if any(Path("/lib").glob("ld-musl-*")) else ""


def _system_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return platform.system()


def _version(distribution: str) -> str | None:
    if importlib.util.find_spec(distribution) is None:
        return None
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _free_memory_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _is_program(name: str) -> bool:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_DIRECTORIES}") is not None


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _user_manager_answers() -> bool:
    if shutil.which("systemctl") is None:
        return False
    environment = {**os.environ, "XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}"}
    command = ["systemctl", "--user", "is-system-running"]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() in _MANAGER_UP

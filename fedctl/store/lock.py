"""One run at a time for a fleet or a model, kept apart by the operating system.

The lock is `flock` on a file, so that it ends with its holder, however that dies. The file stays and
says who held it last; only the lock itself counts.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedctl.core.clock import SYSTEM_CLOCK, Clock, rfc3339
from fedctl.core.errors import ConfigError, LockedError, reason_of
from fedctl.core.home import Home

_HOLDER_BYTES = 100  # of "PID TIME" that are read back


@contextmanager
def hold_lock(home: Home, *, model: str | None = None, clock: Clock = SYSTEM_CLOCK) -> Iterator[None]:
    """Hold the lock of a model, or of the whole fleet, for the block; never waits.

    The two kinds are independent: holding the fleet's does not keep anybody off a model.

    Raises:
        LockedError: When another run holds it, with its process id and since when.
        ConfigError: When the lock file cannot be made.
    """
    path = home.locks / ("fleet.lock" if model is None else f"model-{model}.lock")
    descriptor = _open(path)
    try:
        _acquire(descriptor, model)
        _name_holder(descriptor, f"{os.getpid()} {rfc3339(clock.now())}", path)
        yield
    finally:
        os.close(descriptor)


def holder(home: Home, *, model: str) -> int | None:
    """The process that holds the model's lock, found without taking it; None when nobody does.

    Asks the kernel, because the name in the file outlives its holder. The device number is left out of
    the comparison: for some file systems the kernel prints another one than `stat` gives.
    """
    try:
        inode = (home.locks / f"model-{model}.lock").stat().st_ino
        held = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    for line in held.splitlines():  # 1: FLOCK  ADVISORY  WRITE 18200 fe:00:2146419 0 EOF
        words = line.split()
        if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
            return int(words[4])
    return None


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error


def _acquire(descriptor: int, model: str | None) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid, _, since = os.pread(descriptor, _HOLDER_BYTES, 0).decode(errors="replace").partition(" ")
        # Between taking the lock and writing its name, a new holder is unknown for a moment.
        who = f"pid {pid} since {since}" if since else "another process"
        what = "the fleet" if model is None else f"model {model}"
        skip = "" if model is None else "; `fedctl round start --skip-if-running` does nothing then"
        raise LockedError(
            f"{what} is held by {who}",
            hint=f"wait for that run to end{skip}",
            subject=what,
        ) from error


def _name_holder(descriptor: int, text: str, path: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"lock file {path} cannot be used: {reason_of(error)}",
        hint="make the directory writable and free some space, or set FEDCTL_HOME to another",
        subject=str(path),
    )

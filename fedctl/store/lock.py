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
from fedctl.core.errors import ConfigError, LockedError
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
    what = "the fleet" if model is None else f"model {model}"
    descriptor = _open(path)
    try:
        _acquire(descriptor, what)
        _name_holder(descriptor, f"{os.getpid()} {rfc3339(clock.now())}", path)
        yield
    finally:
        os.close(descriptor)


def holder(home: Home, *, model: str) -> int | None:
    """The process that holds the model's lock, as far as one can tell without taking it."""
    path = home.locks / f"model-{model}.lock"
    try:
        pid, _, since = path.read_text(errors="replace").partition(" ")
        return int(pid) if since and Path(f"/proc/{int(pid)}").exists() else None
    except (OSError, ValueError):
        return None


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error


def _acquire(descriptor: int, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid, _, since = os.pread(descriptor, _HOLDER_BYTES, 0).decode(errors="replace").partition(" ")
        # Between taking the lock and writing its name, a new holder is unknown for a moment.
        holder = f"pid {pid} since {since}" if since else "another process"
        raise LockedError(
            f"{what} is held by {holder}",
            hint="wait for that run to end, or start this one with --skip-if-running",
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
        f"lock file {path} cannot be used: {error.strerror}",
        hint="make the directory writable and free some space, or set FEDCTL_HOME to another",
        subject=str(path),
    )

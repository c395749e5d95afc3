"""The processes of one agent: the lock that keeps each kind single, and how one starts another.

A lock file holds its holder's process id. Whoever reads it checks that this process really has the
file open, so that a number left by a crash, or taken over by another program, is never acted upon.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fedctl_agent.state import PRIVATE_FILE, StateDir

_STOP_S = 15.0  # for a process to end after SIGTERM; then SIGKILL
_POLL_S = 0.02


class AlreadyRunningError(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def held_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold a lock file for as long as the block runs; children do not inherit it.

    Raises:
        AlreadyRunningError: When another process holds it; `what` says what that one is.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = lock_holder(path)
            raise AlreadyRunningError(
                f"{what} for {path.parent} is running already" + (f", process {holder}" if holder else "")
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def lock_holder(path: Path) -> int | None:
    """The process that holds a lock file, as far as this user may see, or None."""
    try:
        pid = int(path.read_bytes())
        real = path.resolve()
        opened = list(Path(f"/proc/{pid}/fd").iterdir())
    except (OSError, ValueError):
        return None
    for link in opened:
        with contextlib.suppress(OSError):  # closed in between
            if link.readlink() == real:
                return pid
    return None


def stop(state: StateDir) -> None:
    """End the supervisor and the daemon of a state directory, the supervisor first.

    Nothing happens when none runs. A process that ignores SIGTERM for 15 seconds is killed.
    """
    for lock in (state.supervise_lock, state.run_lock):
        pid = lock_holder(lock)
        if pid is not None:
            _end(lock, pid)


def agent_command(*arguments: str) -> list[str]:
    """The command line that starts this same agent with other arguments."""
    return [sys.executable, "-P", "-m", "fedctl_agent.main", *arguments]


def child_environment() -> dict[str, str]:
    """This process's environment, with modules found where this process finds them."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _end(lock: Path, pid: int) -> None:
    deadline = time.monotonic() + _STOP_S
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        while lock_holder(lock) == pid:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)

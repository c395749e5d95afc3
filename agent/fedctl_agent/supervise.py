"""`fedctl-agent supervise`: keeps the daemon running where there is no service manager for it.

One a state directory, under a lock. It sleeps in the kernel until the daemon ends or a signal comes.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from fedctl_agent.processes import agent_command, child_environment, held_lock
from fedctl_agent.state import StateDir

_FIRST_DELAY_S = 1.0
_MOST_DELAY_S = 60.0
_SETTLED_S = 60.0  # a daemon that ran this long starts the back-off anew
_STOP_S = 12.0  # for the daemon to end after SIGTERM; less than `stop` allows the supervisor
_MALLOC_ARENAS = "2"  # as the units say: each further one keeps memory of threads that are over
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_WAITED = _STOP_SIGNALS | {signal.SIGCHLD}


def supervise(state: StateDir, *, socket: Path | None = None) -> None:
    """Start the daemon, and start it again whenever it ends, until SIGTERM or SIGINT.

    Args:
        state: The state directory, made where it is missing.
        socket: Where the daemon listens; default in the state directory.

    Raises:
        AlreadyRunningError: When another supervisor runs.
    """
    state.create()
    arguments = ["serve", "--state-dir", str(state.path)]
    command = agent_command(*arguments, *(["--socket", str(socket)] if socket else []))
    environment = {**child_environment(), "MALLOC_ARENA_MAX": _MALLOC_ARENAS}
    with held_lock(state.supervise_lock, what="a supervisor"):
        signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)  # taken one by one below
        delay = _FIRST_DELAY_S
        while True:
            started = time.monotonic()
            daemon = os.posix_spawn(command[0], command, environment, setsigmask=())
            if _wait(daemon):
                return
            delay = _FIRST_DELAY_S if time.monotonic() - started > _SETTLED_S else delay
            if signal.sigtimedwait(_STOP_SIGNALS, delay) is not None:
                return
            delay = min(2 * delay, _MOST_DELAY_S)


def _wait(daemon: int) -> bool:
    """Wait for the daemon's end; whether it was asked for."""
    while True:
        if signal.sigwait(_WAITED) in _STOP_SIGNALS:
            _end(daemon)
            return True
        if os.waitpid(daemon, os.WNOHANG) != (0, 0):
            return False


def _end(daemon: int) -> None:
    os.kill(daemon, signal.SIGTERM)  # not reaped yet, so the number is still its own
    deadline = time.monotonic() + _STOP_S
    while os.waitpid(daemon, os.WNOHANG) == (0, 0):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            os.kill(daemon, signal.SIGKILL)
            os.waitpid(daemon, 0)
            return
        signal.sigtimedwait({signal.SIGCHLD}, remaining)

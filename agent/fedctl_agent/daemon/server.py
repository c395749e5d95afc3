"""`fedctl-agent serve`: one daemon a state directory, from taking its lock to letting it go.

The main thread waits in one blocking selector for connections and for the pipe that a signal writes
to; nothing ticks while nothing happens.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedctl_agent import __version__
from fedctl_agent.daemon.agent import Agent
from fedctl_agent.daemon.connection import Deadlines
from fedctl_agent.daemon.listener import CONNECTIONS, OWNER_ONLY, UnixListener
from fedctl_agent.daemon.routes import Router
from fedctl_agent.daemon.workerlink import WORKER_COMMAND, WorkerGoneError
from fedctl_agent.processes import agent_command, child_environment, held_lock
from fedctl_agent.state import StateDir


def serve(
    state_dir: Path,
    *,
    socket: Path | None = None,
    socket_mode: int = OWNER_ONLY,
    worker_command: Sequence[str] = WORKER_COMMAND,
    deadlines: Deadlines | None = None,
    connections: int = CONNECTIONS,
) -> None:
    """Serve until SIGTERM or SIGINT. To be called in the main thread.

    Args:
        state_dir: Made, and given an identity, where it is new.
        socket: Where to listen; default `agent.sock` in the state directory.
        socket_mode: Who may connect: its owner, or with 0660 its group, too.
        worker_command: What to start as worker.
        deadlines: How long callers may take.
        connections: How many are served at once.

    Raises:
        AlreadyRunningError: When a daemon serves this state directory, or another server the socket.
        WireError: When a file of the state directory is not what it should be.
        OSError: When the state directory or the socket cannot be used.
    """
    state = StateDir(state_dir.absolute())
    state.create()
    with held_lock(state.run_lock, what="an agent"), _stop_pipe() as stopped:
        if not state.identity_public.exists():
            _make_identity(state)
        try:
            agent = Agent(state, worker_command=worker_command)
        except WorkerGoneError as error:
            raise OSError(str(error)) from error
        try:
            listener = UnixListener(
                (socket or state.socket).absolute(),
                Router(agent),
                deadlines=deadlines,
                connections=connections,
                mode=socket_mode,
            )
            agent.log.write("info", "started", version=__version__)
            _accept(listener, stopped)
            listener.remove()
        finally:
            agent.close()
        agent.log.write("info", "stopped")


def _make_identity(state: StateDir) -> None:
    """Make the key in a process of its own, which loads what the daemon must not."""
    command = agent_command("keygen", "--state-dir", str(state.path))
    made = subprocess.run(
        command,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise OSError(f"no identity key could be made: {made.stderr.strip()}")


def _accept(listener: UnixListener, stopped: int) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(stopped, selectors.EVENT_READ)
        while not any(key.fileobj == stopped for key, _ in selector.select()):
            listener.accept()


@contextlib.contextmanager
def _stop_pipe() -> Iterator[int]:
    """A descriptor that becomes readable when SIGTERM or SIGINT came."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signals = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, lambda *_: None) for number in signals]
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)

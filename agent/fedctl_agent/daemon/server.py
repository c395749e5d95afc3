"""`fedctl-agent serve`: one daemon a state directory, from taking its lock to letting it go.

The main thread waits in one blocking selector for connections and for the pipe that a signal writes
to; nothing ticks while nothing happens. SIGTERM and SIGINT end it, SIGHUP has it read `agent.toml` again.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedctl_agent import __version__
from fedctl_agent.daemon.agent import Agent
from fedctl_agent.daemon.connection import Deadlines
from fedctl_agent.daemon.https import Https, make_identity
from fedctl_agent.daemon.listener import CONNECTIONS, OWNER_ONLY, Listener, Places, UnixListener
from fedctl_agent.daemon.routes import Router
from fedctl_agent.daemon.workerlink import WORKER_COMMAND, WorkerGoneError
from fedctl_agent.processes import held_lock
from fedctl_agent.state import StateDir

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PIPE_BYTES = 4096


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
        connections: How many are served at once, over socket and HTTPS together.

    Raises:
        AlreadyRunningError: When a daemon serves this state directory, or another server the socket.
        WireError: When a file of the state directory is not what it should be.
        OSError: When the state directory or the socket cannot be used.
    """
    state = StateDir(state_dir.absolute())
    state.create()
    # Whoever finds this process in the lock may send it a signal: it is ready for that before.
    with _signal_pipe() as signals, held_lock(state.run_lock, what="an agent"):
        if not state.identity_public.exists():
            make_identity(state)
        try:
            agent = Agent(state, worker_command=worker_command)
        except WorkerGoneError as error:
            raise OSError(str(error)) from error
        try:
            places = Places(connections)
            listener = UnixListener(
                (socket or state.socket).absolute(),
                Router(agent),
                places=places,
                deadlines=deadlines,
                mode=socket_mode,
            )
            agent.log.write("info", "started", version=__version__)
            https = Https(state, agent, places=places, deadlines=deadlines)
            _accept(listener, https, signals)
            https.close()
            listener.remove()
        finally:
            agent.close()
        agent.log.write("info", "stopped")


def _accept(unix: UnixListener, https: Https, signals: int) -> None:
    """Accept connections until a signal says stop."""
    while True:
        https.follow_settings()
        listeners = [unix, https.listener] if https.listener else [unix]
        if _accept_until_signal(listeners, signals) != {signal.SIGHUP}:
            return


def _accept_until_signal(listeners: Sequence[Listener], signals: int) -> set[int]:
    """Accept connections until signals arrive; which."""
    with selectors.DefaultSelector() as selector:
        for listener in listeners:
            selector.register(listener, selectors.EVENT_READ)
        selector.register(signals, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if isinstance(key.fileobj, Listener):
                    key.fileobj.accept()
                elif arrived := set(os.read(signals, _PIPE_BYTES)) & set(_SIGNALS):
                    return arrived


@contextlib.contextmanager
def _signal_pipe() -> Iterator[int]:
    """A descriptor from which the numbers of signals can be read."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    previous = [signal.signal(number, lambda *_: None) for number in _SIGNALS]
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in zip(_SIGNALS, previous, strict=True):
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)

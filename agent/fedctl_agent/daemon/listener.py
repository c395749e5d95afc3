"""Listening sockets: a thread for each connection, capped together, without a tick while nothing happens.

Whoever only waits holds no place against one who wants to be served: when all are taken, the connection
that has been waiting for a handshake, a request or the rest of its header longest is closed. First go
those that were refused, however lately, so that no flood of them pushes out a handshake that goes on; then
those of whom nothing is known, then those who have shown who they are.

Whatever a kind of socket needs before the first byte of HTTP happens in the connection's own thread, so
that nobody can stall the accept loop.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import socketserver
import stat
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from fedctl_agent.daemon.connection import Connection, Deadlines
from fedctl_agent.daemon.exchange import Reply, Request, Role
from fedctl_agent.processes import AlreadyRunningError
from fedctl_wire.codec import encode
from fedctl_wire.messages import ErrorBody

CONNECTIONS = 64  # at once, over all listeners; a thread each
_REFUSED = 16  # connections kept open for a while after they were answered 503
_ROOM_S = 1.0  # for a connection that was given up to be gone
_BACKLOG = 128  # with 5, sshd answers "Connect failed" when many channels arrive at once
OWNER_ONLY = 0o600
_SUN_PATH_BYTES = 107  # of sockaddr_un, without the closing zero
_OVERLOADED_BODY = encode(ErrorBody("overloaded", "this agent has too many connections", hint="try again"))
_OVERLOADED = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_OVERLOADED_BODY), _OVERLOADED_BODY)
)


class Places:
    """The places of all connections of an agent, whichever listener took them. Thread-safe.

    Args:
        number: How many connections are served at once.
    """

    def __init__(self, number: int = CONNECTIONS) -> None:
        self._free = threading.BoundedSemaphore(number)
        self._taken: dict[socket.socket, Connection] = {}

    def take(self) -> bool:
        """Take a place, if need be that of a connection that only waits; whether there was one."""
        return self._free.acquire(blocking=False) or self._make_room()

    def enter(self, request: socket.socket, connection: Connection) -> None:
        """The taken place is this connection's, also before its thread runs: it may have to make room."""
        self._taken[request] = connection

    def connection(self, request: socket.socket) -> Connection:
        """The connection on an accepted socket."""
        return self._taken[request]

    def leave(self, request: socket.socket) -> None:
        """Free the place of a connection that is over."""
        del self._taken[request]
        self._free.release()

    def _make_room(self) -> bool:
        waiting = [(c, c.waiting_since) for c in tuple(self._taken.values())]
        candidates = [(not c.refused, c.trusted, since, c) for c, since in waiting if since is not None]
        for *_, connection in sorted(candidates, key=lambda candidate: candidate[:3]):
            if connection.give_up():  # not when its request came just now
                return self._free.acquire(timeout=_ROOM_S)
        return False


class Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """What listeners have in common: threads, places, and an accept that never waits.

    Args:
        address: As `socket.bind` takes it.
        application: Answers requests, in the threads of their connections.
        places: Of all listeners together.
        deadlines: How long callers may take.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = _BACKLOG

    def __init__(
        self,
        address: Any,
        application: Callable[[Request], Reply],
        *,
        places: Places,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.application = application
        self.deadlines = deadlines or Deadlines()
        self._places = places
        super().__init__(address, socketserver.BaseRequestHandler)  # see `finish_request`
        self.socket.setblocking(False)

    def accept(self) -> None:
        """Take one connection, if one waits, and serve it in a thread of its own."""
        try:
            request, address = self.get_request()
        except OSError:  # gone again, or no descriptor left for it
            return
        if not self._places.take():
            self.refuse(request)
            return
        self._places.enter(request, self.connection(request))
        try:
            self.process_request(request, address)
        except RuntimeError:  # the system allows no further thread
            self._places.leave(request)
            self.shutdown_request(request)

    @abstractmethod
    def connection(self, request: socket.socket) -> Connection:
        """What serves an accepted socket; nothing is sent or received before its thread runs."""

    def refuse(self, request: socket.socket) -> None:
        """Turn away a caller for whom there is no place, without a thread and without waiting."""
        request.close()

    def finish_request(self, request: object, client_address: object) -> None:  # noqa: ARG002 - inherited
        """Serve one connection, in its own thread."""
        self._places.connection(request).serve()  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        """Serve one connection in its own thread and give the place back."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._places.leave(request)  # type: ignore[arg-type]

    def remove(self) -> None:
        """Stop listening."""
        self.server_close()


class UnixListener(Listener):
    """Serves HTTP on a Unix socket that only its owner can open, or its group; whoever can is the operator.

    Args:
        path: Of the socket, of any length; a stale socket there is replaced. The caller holds the
            state directory's lock.
        application: Answers requests.
        places: Of all listeners together; when all of them are in the middle of a request, further
            callers are answered 503.
        deadlines: How long callers may take.
        mode: Of the socket.

    Raises:
        AlreadyRunningError: When another server answers at `path`.
        OSError: When something else than a socket is there, or nothing can be bound.
    """

    address_family = socket.AF_UNIX
    role: ClassVar[Role] = Role.OPERATOR

    def __init__(
        self,
        path: Path,
        application: Callable[[Request], Reply],
        *,
        places: Places | None = None,
        deadlines: Deadlines | None = None,
        mode: int = OWNER_ONLY,
    ) -> None:
        self._path = path
        self._mode = mode
        self._refused: deque[socket.socket] = deque()
        super().__init__(str(path), application, places=places or Places(), deadlines=deadlines)

    def server_bind(self) -> None:
        """Bind under the mode that the socket keeps, so that nobody else can connect in between."""
        _remove_stale(self._path)
        previous = os.umask(0o777 & ~self._mode)
        try:
            with socket_address(self._path) as address:
                self.socket.bind(address)
        finally:
            os.umask(previous)

    def connection(self, request: socket.socket) -> Connection:
        """Plain HTTP from the first byte on."""
        return Connection(request, self.application, role=lambda: self.role, deadlines=self.deadlines)

    def refuse(self, request: socket.socket) -> None:
        """Answer 503; whoever is still sending sees the answer because nothing is reset yet."""
        with contextlib.suppress(OSError):
            request.send(_OVERLOADED, socket.MSG_DONTWAIT)
            request.shutdown(socket.SHUT_WR)
        self._refused.append(request)
        if len(self._refused) > _REFUSED:
            self._refused.popleft().close()

    def remove(self) -> None:
        """Stop listening and remove the socket's path."""
        super().remove()
        while self._refused:
            self._refused.pop().close()
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """What to bind or connect to for a path of any length: the limit is on the text, not on the path."""
    if len(os.fsencode(path)) <= _SUN_PATH_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is something else than a socket", str(path))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe, socket_address(path) as address:
        if probe.connect_ex(address) == 0:
            raise AlreadyRunningError(f"another server listens on {path}")
    path.unlink()

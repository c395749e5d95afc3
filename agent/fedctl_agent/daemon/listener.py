"""Listening sockets: a thread for each connection, capped, without a tick while nothing happens.

Whoever only waits holds no place against one who wants to be served: when all are taken, the connection
that has been waiting for a request, or for the rest of its header, longest is closed.

`UnixListener` is the one kind there is; whatever a further kind needs of its own before the first
byte of HTTP belongs into the connection's own thread, so that nobody can stall the accept loop.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import socketserver
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from fedctl_agent.daemon.connection import Connection, Deadlines
from fedctl_agent.daemon.exchange import Reply, Request, Role
from fedctl_agent.processes import AlreadyRunningError
from fedctl_wire.codec import encode
from fedctl_wire.messages import ErrorBody

CONNECTIONS = 64  # at once; a thread each
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


class UnixListener(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves HTTP on a Unix socket that only its owner can open, or its group; whoever can is the operator.

    Args:
        path: Of the socket, of any length; a stale socket there is replaced. The caller holds the
            state directory's lock.
        application: Answers requests, in the threads of their connections.
        deadlines: How long callers may take.
        connections: How many are served at once; when all of them are in the middle of a request,
            further ones are answered 503.
        mode: Of the socket.

    Raises:
        AlreadyRunningError: When another server answers at `path`.
        OSError: When something else than a socket is there, or nothing can be bound.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = _BACKLOG
    role: ClassVar[Role] = Role.OPERATOR

    def __init__(
        self,
        path: Path,
        application: Callable[[Request], Reply],
        *,
        deadlines: Deadlines | None = None,
        connections: int = CONNECTIONS,
        mode: int = OWNER_ONLY,
    ) -> None:
        self.application = application
        self.deadlines = deadlines or Deadlines()
        self._path = path
        self._mode = mode
        self._slots = threading.BoundedSemaphore(connections)
        self._connections: dict[socket.socket, Connection] = {}
        self._refused: deque[socket.socket] = deque()
        super().__init__(str(path), socketserver.BaseRequestHandler)  # see `finish_request`
        self.socket.setblocking(False)

    def server_bind(self) -> None:
        """Bind under the mode that the socket keeps, so that nobody else can connect in between."""
        _remove_stale(self._path)
        previous = os.umask(0o777 & ~self._mode)
        try:
            with socket_address(self._path) as address:
                self.socket.bind(address)
        finally:
            os.umask(previous)

    def accept(self) -> None:
        """Take one connection, if one waits, and serve it in a thread of its own."""
        try:
            request, address = self.get_request()
        except OSError:  # gone again, or no descriptor left for it
            return
        if not self._slots.acquire(blocking=False) and not self._make_room():
            self._refuse(request)
            return
        # Known before its thread runs: of many that arrive at once any may have to make room.
        self._connections[request] = Connection(
            request, self.application, role=self.role, deadlines=self.deadlines
        )
        try:
            self.process_request(request, address)
        except RuntimeError:  # the system allows no further thread
            self._forget(request)
            self.shutdown_request(request)

    def _refuse(self, request: socket.socket) -> None:
        """Answer without a thread; whoever is still sending sees the answer because nothing is reset yet."""
        with contextlib.suppress(OSError):
            request.send(_OVERLOADED, socket.MSG_DONTWAIT)
            request.shutdown(socket.SHUT_WR)
        self._refused.append(request)
        if len(self._refused) > _REFUSED:
            self._refused.popleft().close()

    def finish_request(self, request: object, client_address: object) -> None:  # noqa: ARG002 - inherited
        """Serve one connection, in its own thread."""
        self._connections[request].serve()  # type: ignore[index]

    def process_request_thread(self, request: object, client_address: object) -> None:
        """Serve one connection in its own thread and give the slot back."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._forget(request)

    def _forget(self, request: object) -> None:
        del self._connections[request]  # type: ignore[arg-type]
        self._slots.release()

    def _make_room(self) -> bool:
        """Give up the connection that has waited longest, and take its place."""
        waiting = [(c.waiting_since, c) for c in tuple(self._connections.values())]
        for _, connection in sorted(((s, c) for s, c in waiting if s is not None), key=lambda pair: pair[0]):
            if connection.give_up():  # not when its request came just now
                return self._slots.acquire(timeout=_ROOM_S)
        return False

    def remove(self) -> None:
        """Stop listening and remove the socket's path."""
        self.server_close()
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

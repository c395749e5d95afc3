"""An agent on this machine, by its Unix socket: the demo, tests, and a device on which one is logged in."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from pathlib import Path

from fedctl.core.errors import TrustError, UnreachableError
from fedctl.transport.base import Stream, Transport

_MAX_SUN_PATH = 107  # bytes of a socket path in sockaddr_un, without the final NUL


class UnixTransport(Transport):
    """Connects to a socket path of any length."""

    def __init__(self, device: str, path: Path) -> None:
        super().__init__(device)
        self._path = path

    def _dial(self, deadline: float) -> Stream:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _limit_connect(link, deadline)
            _connect(link, self._path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            link.close()
            raise UnreachableError(
                f"agent is not running on device {self.device}: nobody listens on {self._path}",
                hint="start it there again: fedctl-agent serve",
                subject=self.device,
                code="agent_down",
            ) from error
        except PermissionError as error:
            link.close()
            raise TrustError(
                f"device {self.device}: this user may not open {self._path}", subject=self.device
            ) from error
        except BaseException:
            link.close()
            raise
        return SocketStream(link)

    def close(self) -> None:
        """Nothing is shared between streams."""


class SocketStream:
    """A connected stream socket."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        """See `Stream`."""
        self._link.settimeout(timeout_s)
        return self._link.recv(max_bytes)

    def send(self, data: bytes, timeout_s: float) -> None:
        """See `Stream`."""
        self._link.settimeout(timeout_s)
        self._link.sendall(data)

    def close(self) -> None:
        """See `Stream`."""
        self._link.close()

    def stale(self) -> bool:
        """See `Stream`."""
        if self._link.fileno() < 0:
            return True
        poller = select.poll()  # select() cannot watch descriptors above 1023
        poller.register(self._link, select.POLLIN)
        return bool(poller.poll(0))


def _limit_connect(link: socket.socket, deadline: float) -> None:
    """Bound a blocking connect: a non-blocking one fails at once when the backlog is full (unix(7))."""
    left = max(deadline - time.monotonic(), 0.001)  # zero would mean for ever
    seconds, fraction = divmod(left, 1)
    timeval = struct.pack("@ll", int(seconds), int(fraction * 1e6) or 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def _connect(link: socket.socket, path: Path) -> None:
    if len(os.fsencode(path)) <= _MAX_SUN_PATH:
        link.connect(str(path))
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        link.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)

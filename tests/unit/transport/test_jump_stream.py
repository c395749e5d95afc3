"""A forwarded stream is closed in a reader's thread, where a failure would have nobody to go to."""

from __future__ import annotations

import socket

from fedctl.transport.jump import _Forwarded


class GoneChannel:
    """A channel whose connection is gone: paramiko cannot say so to the other side."""

    def __init__(self) -> None:
        self.closed = False

    def recv(self, size: int) -> bytes:
        return b"x" * size

    def close(self) -> None:
        self.closed = True
        raise EOFError


def test_closing_it_says_nothing_of_a_connection_that_is_gone() -> None:
    channel = GoneChannel()
    stream = _Forwarded(channel)  # type: ignore[arg-type]
    assert stream.recv(3) == b"xxx"
    stream.close()
    assert channel.closed


def test_whatever_else_a_socket_does_it_does() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _Forwarded(ours).sendall(b"hi")  # type: ignore[arg-type]
        assert theirs.recv(2) == b"hi"

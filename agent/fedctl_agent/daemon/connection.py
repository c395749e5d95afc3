"""One client's connection: HTTP/1.1 by h11, with a deadline on everything that waits for the other side.

Nothing here knows routes or what kind of socket it is. A connection is served by one thread; it
blocks in the kernel while idle and wakes up for data or a deadline only.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NoReturn
from urllib.parse import parse_qsl

import h11

from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.daemon.exchange import FileReply, JsonReply, Reply, Request, Role, StreamReply
from fedctl_wire.codec import encode
from fedctl_wire.limits import KIB

_HEADER_BLOCK = 16 * KIB
_BODY_BLOCK = 256 * KIB
_DRAIN_BYTES = 1024 * KIB  # of an unread body, to keep the connection


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long the other side may take."""

    handshake_s: float = 10.0  # for the whole of TLS's
    idle_s: float = 75.0  # between two requests
    header_s: float = 10.0  # from a request's first byte to the end of its header
    body_s: float = 30.0  # for a body, plus its length at `body_bytes_per_s`
    body_bytes_per_s: int = 8 * KIB
    send_s: float = 30.0  # for each block of an answer
    linger_s: float = 2.0  # to go on reading after an early answer, so that it arrives


class ConnectionClosed(Exception):  # noqa: N818 - the normal end, not an error
    """The caller closed, or cannot be served any further."""


class StreamBody:
    """The body of the current request, received while it is iterated."""

    def __init__(self, connection: Connection, length: int | None) -> None:
        self.length = length
        self._connection = connection

    def blocks(self) -> Iterator[bytes | bytearray]:
        """See `exchange.Body`."""
        deadlines = self._connection.deadlines
        allowance = deadlines.body_s + (self.length or 0) / deadlines.body_bytes_per_s
        # A buffer of the whole block size would be mapped and unmapped for each small body.
        block = _BODY_BLOCK if self.length is None else min(_BODY_BLOCK, self.length)
        yield from self._connection.body_blocks(time.monotonic() + allowance, block)


class Connection:
    """Serves requests on a connected socket, one after the other.

    Args:
        sock: Connected stream socket; the caller closes it.
        application: Answers a request; must not raise anything but `ConnectionError`.
        role: Who is at the other end, asked for each request; may raise `ApiError`.
        deadlines: How long the other side may take.
    """

    def __init__(
        self,
        sock: socket.socket,
        application: Callable[[Request], Reply],
        *,
        role: Callable[[], Role],
        deadlines: Deadlines,
    ) -> None:
        self.deadlines = deadlines
        self._socket = sock
        self._application = application
        self._role = role
        self._http = h11.Connection(h11.SERVER)
        self._turn = threading.Lock()  # whether a request is served or the connection given up: never both
        self._waiting_since: float | None = time.monotonic()
        self._given_up = False

    @property
    def trusted(self) -> bool:
        """Whether it is known already who is at the other end; others make room first."""
        return True

    @property
    def refused(self) -> bool:
        """Whether the other side is allowed nothing; such a one makes room before all others."""
        return False

    @property
    def waiting_since(self) -> float | None:
        """Since when it waits for a request, or for the rest of its header; None while it serves one.

        In seconds of the monotonic clock.
        """
        return self._waiting_since

    def give_up(self) -> bool:
        """Close from another thread, to make room, unless a request is being served; whether it did."""
        with self._turn:
            if self._waiting_since is None or self._given_up:
                return False
            self._given_up = True
        with contextlib.suppress(OSError):  # the caller was first
            # The plain socket's: a TLS socket's own would take the keys away from the thread that uses them.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        return True

    def serve(self) -> None:
        """Answer requests until the caller closes, is too slow or breaks the protocol."""
        with contextlib.suppress(ConnectionClosed, OSError, h11.RemoteProtocolError):
            while True:
                self._serve_one()
                if h11.MUST_CLOSE in {self._http.our_state, self._http.their_state}:
                    if self._http.their_state in {h11.SEND_BODY, h11.ERROR}:
                        self._linger()
                    return
                self._finish_request()
                self._http.start_next_cycle()

    def body_blocks(self, deadline: float, size: int) -> Iterator[bytes | bytearray]:
        """Blocks of the current request's body, until `deadline` in seconds of the monotonic clock."""
        if self._http.they_are_waiting_for_100_continue:
            self._transmit(h11.InformationalResponse(status_code=100, headers=[]))
        while self._http.their_state is h11.SEND_BODY:
            try:
                event = self._next_event(deadline, size)
            except h11.RemoteProtocolError as error:
                if self._http.trailing_data[1]:  # the caller closed
                    raise ConnectionAbortedError(str(error)) from error
                raise ApiError(400, "malformed", f"the body is not HTTP/1.1: {error}") from error
            except TimeoutError as error:
                raise ApiError(408, "timeout", "the body did not arrive in time") from error
            if isinstance(event, h11.Data):
                yield event.data

    def gone(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the caller to hang up; whether it did."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)  # POLLHUP and POLLERR come unasked
        return bool(poll.poll(timeout * 1000))

    # ------------------------------------------------------------------ receiving

    def _serve_one(self) -> None:
        try:
            head = self._next_request()
            request = self._read_head(head)
        except (h11.RemoteProtocolError, TimeoutError) as error:
            self._refuse(error)
        reply = self._application(request)
        self._send_reply(reply, without_body=request.method == "HEAD")

    def _next_request(self) -> h11.Request:
        deadline = time.monotonic() + self.deadlines.idle_s
        waiting = not self._http.trailing_data[0]
        self._waiting_since = time.monotonic()
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                self._begin()
                return event
            if event is not h11.NEED_DATA:  # the caller closed between two requests
                raise ConnectionClosed
            try:
                self._receive(deadline, _HEADER_BLOCK)
            except TimeoutError:
                if waiting:
                    raise ConnectionClosed from None
                raise
            if waiting:
                waiting = False
                self._waiting_since = time.monotonic()
                deadline = time.monotonic() + self.deadlines.header_s

    def _begin(self) -> None:
        with self._turn:
            if self._given_up:
                raise ConnectionClosed
            self._waiting_since = None

    def _next_event(self, deadline: float, block: int) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._receive(deadline, block)
        return event

    def _receive(self, deadline: float, block: int) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._socket.settimeout(remaining)
        self._http.receive_data(self._receive_block(block))

    def _receive_block(self, block: int) -> bytes:
        return self._socket.recv(block)

    def _read_head(self, head: h11.Request) -> Request:
        try:
            target = head.target.decode("ascii")
        except UnicodeDecodeError as error:
            raise h11.RemoteProtocolError("the request target is not ASCII") from error
        path, _, query = target.partition("?")
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
        if "content-length" in headers and "transfer-encoding" in headers:  # two readers may see two requests
            raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
        length = headers.get("content-length", "0" if "transfer-encoding" not in headers else None)
        return Request(
            method=head.method.decode("ascii"),
            path=path,
            query=dict(parse_qsl(query)),
            headers=headers,
            body=StreamBody(self, None if length is None else int(length)),
            role=self._role,
            gone=self.gone,
        )

    def _finish_request(self) -> None:
        """Read what the handler left of the body, or close when that is too much."""
        deadline = time.monotonic() + self.deadlines.linger_s
        left = _DRAIN_BYTES
        while self._http.their_state is h11.SEND_BODY:
            event = self._next_event(deadline, _BODY_BLOCK)
            left -= len(event.data) if isinstance(event, h11.Data) else 0
            if left < 0:
                self._linger()

    def _linger(self) -> NoReturn:
        """Close, but first let a caller that is still sending see the answer."""
        self._waiting_since = time.monotonic()
        deadline = self._waiting_since + self.deadlines.linger_s
        self._end_sending()
        while (remaining := deadline - time.monotonic()) > 0:
            self._socket.settimeout(remaining)
            if not socket.socket.recv(self._socket, _BODY_BLOCK):  # as it comes, encrypted or not
                break
        raise ConnectionClosed

    def _end_sending(self) -> None:
        socket.socket.shutdown(self._socket, socket.SHUT_WR)

    # ------------------------------------------------------------------ sending

    def _refuse(self, error: Exception) -> NoReturn:
        """Answer what is no request, and close."""
        if isinstance(error, h11.RemoteProtocolError):
            refusal = ApiError(error.error_status_hint, "malformed", f"this is not HTTP/1.1: {error}")
        else:
            refusal = ApiError(408, "timeout", "the request's header did not arrive in time")
        if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self._send_reply(JsonReply(refusal.body, refusal.status, {"connection": "close"}))
        self._linger()

    def _send_reply(self, reply: Reply, *, without_body: bool = False) -> None:
        headers = [(name.lower(), value) for name, value in reply.headers.items()]
        if isinstance(reply, JsonReply):
            body = encode(reply.value)
            headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
            self._transmit(
                h11.Response(status_code=reply.status, headers=headers),
                *([] if without_body else [h11.Data(data=body)]),
                h11.EndOfMessage(),
            )
        elif isinstance(reply, FileReply):
            self._send_file(reply, headers)
        else:
            self._send_stream(reply, headers)

    def _send_file(self, reply: FileReply, headers: list[tuple[str, str]]) -> None:
        with reply.path.open("rb") as file:
            headers += [
                ("content-type", "application/octet-stream"),
                ("content-length", str(reply.length)),
            ]
            self._transmit(h11.Response(status_code=reply.status, headers=headers))
            position, end = reply.offset, reply.offset + reply.length
            while position < end:
                count = min(_DRAIN_BYTES, end - position)
                # Only the bookkeeping goes through h11: the placeholder has a length and no bytes.
                self._http.send_with_data_passthrough(h11.Data(data=_Sized(count)))  # type: ignore[arg-type]
                if self._send_part(file, position, count) != count:
                    raise ConnectionClosed  # the file is shorter than it was: never pretend otherwise
                position += count
        self._transmit(h11.EndOfMessage())

    def _send_part(self, file: BinaryIO, position: int, count: int) -> int:
        """Send part of a file; how much of it there was."""
        self._socket.settimeout(self.deadlines.send_s)
        return self._socket.sendfile(file, position, count)

    def _send_stream(self, reply: StreamReply, headers: list[tuple[str, str]]) -> None:
        headers += [("content-type", "application/jsonl"), ("connection", "close")]
        self._transmit(h11.Response(status_code=reply.status, headers=headers))
        for line in reply.lines:
            self._transmit(h11.Data(data=line))
        self._transmit(h11.EndOfMessage())

    def _transmit(self, *events: h11.Event) -> None:
        data = b"".join(self._http.send(event) or b"" for event in events)
        if data:
            self._socket.settimeout(self.deadlines.send_s)
            self._socket.sendall(data)


class _Sized:
    """Stands for bytes that the kernel sends."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

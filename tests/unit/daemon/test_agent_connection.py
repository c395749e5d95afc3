"""HTTP on one connection: what is answered, what is refused, and how long anybody may take."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedctl_agent.daemon.connection import Connection, Deadlines
from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.daemon.exchange import FileReply, JsonReply, Reply, Request, Role, StreamReply

SHORT = Deadlines(idle_s=0.1, header_s=0.1, body_s=0.1, send_s=0.2, linger_s=0.1)
Talk = Callable[..., "Caller"]


class Caller:
    """The other end of a connection that a thread serves."""

    def __init__(self, application: Callable[[Request], Reply], deadlines: Deadlines) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(10)
        self.connection = Connection(theirs, application, role=lambda: Role.OPERATOR, deadlines=deadlines)

        def serve() -> None:
            with theirs:
                self.connection.serve()

        self.thread = threading.Thread(target=serve)
        self.thread.start()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def rest(self) -> bytes:
        """Everything until the server closes."""
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while block := self.socket.recv(1 << 20):
                received += block
        return received

    def rest_without_reset(self) -> bytes:
        received = b""
        while block := self.socket.recv(1 << 20):
            received += block
        return received

    def until(self, mark: bytes) -> bytes:
        received = b""
        while mark not in received:
            block = self.socket.recv(1 << 20)
            assert block, received
            received += block
        return received

    def close(self) -> None:
        self.socket.close()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def talk() -> Iterator[Talk]:
    with contextlib.ExitStack() as stack:

        def start(application: Callable[[Request], Reply], deadlines: Deadlines | None = None) -> Caller:
            caller = Caller(application, deadlines or Deadlines())
            stack.callback(caller.close)
            return caller

        yield start


def echo(request: Request) -> Reply:
    try:
        return JsonReply(
            {"path": request.path, "query": dict(request.query), "body": request.read().decode()}
        )
    except ApiError as error:
        return JsonReply(error.body, error.status)


def too_early(_request: Request) -> Reply:
    return JsonReply({"code": "too_large"}, 413)


def test_requests_follow_each_other_on_one_connection(talk: Talk) -> None:
    caller = talk(echo)
    caller.send(b"PUT /a?x=1&y=b+c HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello")
    assert b'{"body":"hello","path":"/a","query":{"x":"1","y":"b c"}}' in caller.until(b"}}")
    caller.send(b"GET /b HTTP/1.1\r\nhost: a\r\n\r\nGET /c HTTP/1.1\r\nhost: a\r\n\r\n")
    assert b'"/b"' in (both := caller.until(b'"/c"'))
    assert both.count(b"HTTP/1.1 200") == 2


def test_a_chunked_body_and_an_expectation_are_served(talk: Talk) -> None:
    caller = talk(echo)
    caller.send(b"PUT /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n")
    assert caller.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100")
    caller.send(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert b'"abcde"' in caller.until(b"}}")


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 rubbish\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
        b"\r\n\r\n\r\n\r\nwhat\r\n\r\n",
        b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nno chunk\r\n",
    ],
)
def test_rubbish_is_refused_and_the_connection_closed(talk: Talk, rubbish: bytes) -> None:
    caller = talk(echo)
    caller.send(rubbish)
    answer = caller.rest()
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"code":"malformed"' in answer


def test_a_header_without_end_is_refused(talk: Talk) -> None:
    caller = talk(echo)
    with contextlib.suppress(BrokenPipeError):
        caller.send(b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 20_000)
    assert caller.rest().startswith(b"HTTP/1.1 431")


def test_a_slow_header_is_told_and_closed(talk: Talk) -> None:
    caller = talk(echo, SHORT)
    caller.send(b"GET / HT")
    assert caller.rest().startswith(b"HTTP/1.1 408")


def test_a_silent_caller_is_closed_without_a_word(talk: Talk) -> None:
    assert talk(echo, SHORT).rest() == b""


def test_a_slow_body_is_told_and_closed(talk: Talk) -> None:
    caller = talk(echo, SHORT)
    caller.send(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf")
    answer = caller.rest()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"code":"timeout"' in answer


def test_a_body_that_ends_early_is_an_aborted_connection(talk: Talk) -> None:
    seen: list[BaseException] = []

    def application(request: Request) -> Reply:
        try:
            request.read()
        except ConnectionError as error:
            seen.append(error)
            raise
        return JsonReply({})

    caller = talk(application)
    caller.send(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf")
    caller.socket.shutdown(socket.SHUT_WR)
    assert caller.rest() == b""
    assert len(seen) == 1


def test_a_body_over_the_cap_is_refused_before_it_is_read(talk: Talk) -> None:
    caller = talk(echo)
    caller.send(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 999999999\r\n\r\n")
    assert b'"code":"too_large"' in caller.until(b"}")


def test_a_chunked_body_over_the_cap_is_refused_while_it_is_read(talk: Talk) -> None:
    caller = talk(echo)
    caller.send(b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    with contextlib.suppress(OSError):
        for _ in range(6):
            caller.send(chunk)
    assert caller.rest().startswith(b"HTTP/1.1 413")


def test_an_early_answer_arrives_although_the_caller_still_sends(talk: Talk) -> None:
    caller = talk(too_early)
    caller.send(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 8000000\r\n\r\n")
    with contextlib.suppress(OSError):
        caller.send(bytes(8_000_000))
    assert caller.rest().startswith(b"HTTP/1.1 413")


def test_an_answer_to_a_caller_who_wants_no_other_arrives_as_well(talk: Talk) -> None:
    caller = talk(too_early)
    caller.send(b"PUT / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 8000000\r\n\r\n")
    with contextlib.suppress(BrokenPipeError):
        for _ in range(80):
            caller.send(bytes(100_000))
    assert caller.rest_without_reset().startswith(b"HTTP/1.1 413")


def test_a_waiting_connection_can_be_given_up_and_a_serving_one_cannot(talk: Talk) -> None:
    seen: list[tuple[float | None, bool]] = []

    def application(_request: Request) -> Reply:
        seen.append((caller.connection.waiting_since, caller.connection.give_up()))
        return JsonReply({})

    caller = talk(application)
    caller.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    assert caller.until(b"{}").startswith(b"HTTP/1.1 200")
    assert seen == [(None, False)]
    deadline = time.monotonic() + 10
    while caller.connection.waiting_since is None:
        assert time.monotonic() < deadline
    assert caller.connection.give_up()
    assert caller.rest() == b""


def test_a_small_unread_body_does_not_cost_the_connection(talk: Talk) -> None:
    caller = talk(too_early)
    for _ in range(2):
        caller.send(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello")
        assert caller.until(b"}").startswith(b"HTTP/1.1 413")


def test_a_file_is_sent_whole_and_the_connection_goes_on(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = bytes(range(256)) * 20_000
    path.write_bytes(content)
    caller = talk(lambda _request: FileReply(path, 100, len(content) - 100))
    for _ in range(2):
        caller.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        head, _, body = caller.until(b"\r\n\r\n").partition(b"\r\n\r\n")
        assert b"content-length: %d" % (len(content) - 100) in head
        while len(body) < len(content) - 100:
            body += caller.socket.recv(1 << 20)
        assert hashlib.sha256(body).digest() == hashlib.sha256(content[100:]).digest()


def test_a_file_that_became_shorter_ends_the_connection(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"short")
    caller = talk(lambda _request: FileReply(path, 0, 50))
    caller.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    assert caller.rest().endswith(b"\r\n\r\nshort")


def test_a_caller_that_does_not_read_is_given_up(talk: Talk) -> None:
    lines = iter([b"x" * 100_000] * 1000)
    caller = talk(lambda _request: StreamReply(lines), SHORT)
    caller.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    caller.thread.join(10)
    assert not caller.thread.is_alive()
    assert next(lines)


def test_a_stream_ends_when_its_reader_hangs_up(talk: Talk) -> None:
    def application(request: Request) -> Reply:
        def lines() -> Iterator[bytes]:
            yield b"first\n"
            assert request.gone(10)

        return StreamReply(lines())

    caller = talk(application)
    caller.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    caller.until(b"first\n")
    caller.socket.close()
    caller.thread.join(5)
    assert not caller.thread.is_alive()

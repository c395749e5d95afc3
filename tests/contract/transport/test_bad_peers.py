"""What the client makes of peers that are broken, hostile, slow or not agents at all."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from fedctl.core.errors import DeviceError, UnreachableError
from fedctl_wire.codec import encode
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import Health
from tests.contract.transport.conftest import Reach
from tests.fakes.agent_server import RawPeer, read_request

HEALTH = encode(Health("0.1.0", "1970-01-01T00:00:07Z", "boot-1"))


def http(body: bytes, *, length: int | None = None, extra: str = "") -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n{extra}\r\n".encode() + body


def says(answer: bytes) -> Callable[[socket.socket], None]:
    """Reads one request, answers with these bytes and closes."""

    def serve(link: socket.socket) -> None:
        read_request(link)
        link.sendall(answer)

    return serve


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"220 smtp.example ESMTP\r\n",
        b"\x00\xff" * 5000,
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        http(HEALTH[:20], length=len(HEALTH)),
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"ver',
    ],
    ids=[
        "hang-up",
        "smtp",
        "noise",
        "cut header",
        "bad length",
        "endless header",
        "bad chunk",
        "cut body",
        "cut chunk",
    ],
)
def test_what_is_no_http_is_an_unreachable_device(reach: Reach, answer: bytes) -> None:
    with RawPeer(reach.place, says(answer)), pytest.raises(UnreachableError) as caught:
        reach.client().health()
    assert "watch-1" in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "answer",
    [
        http(b"not json"),
        http(b"[]"),
        http(b'{"version": 7}'),
        http(b""),
        http(b'{"version": "1", "version": "2", "time": "", "boot_id": ""}'),
        http(b"[" * 1_000_000),
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
        http(b"\x1f\x8b\x08\x00", extra="Content-Encoding: gzip\r\n"),
    ],
    ids=["text", "array", "wrong type", "empty", "double key", "deep", "204", "redirect", "gzip"],
)
def test_an_answer_that_is_no_message(reach: Reach, answer: bytes) -> None:
    with RawPeer(reach.place, says(answer)) as peer:
        with pytest.raises(DeviceError) as caught:
            reach.client().health()
        assert peer.accepted == 1  # final: not tried again
    assert caught.value.code == "bad_answer"
    assert "watch-1" in caught.value.message


@pytest.mark.parametrize("announced", [True, False])
def test_an_endless_answer_is_cut_off(reach: Reach, *, announced: bool) -> None:
    def serve(link: socket.socket) -> None:
        read_request(link)
        length = b"Content-Length: 1000000000000\r\n" if announced else b""
        link.sendall(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n")
        while True:
            link.sendall(b" " * 65536)

    client = reach.client()
    with RawPeer(reach.place, serve):
        with pytest.raises(DeviceError, match="watch-1 answered with more than") as caught:
            client.health()
        client.close()
    assert caught.value.code == "bad_answer"
    assert client.traffic.bytes_up < 2 * LIMITS.json_body_bytes


@pytest.mark.parametrize("how", ["silent", "drips", "in mid-body"])
def test_a_hanging_device_is_given_up_at_the_deadline(reach: Reach, how: str) -> None:
    def serve(link: socket.socket) -> None:
        read_request(link)
        link.sendall(http(HEALTH))
        read_request(link)
        if how == "in mid-body":
            link.sendall(http(HEALTH[:5], length=len(HEALTH)))
        while not peer.closing.wait(0.02):
            if how == "drips":
                link.sendall(b"H")  # each byte in time, the whole never

    with RawPeer(reach.place, serve) as peer:
        client = reach.client()
        client.health()
        client._timeout_s = 0.3
        with pytest.raises(UnreachableError, match="watch-1"):
            client.health()


def test_a_device_that_does_not_read_an_upload(reach: Reach) -> None:
    def serve(link: socket.socket) -> None:
        read_request(link)
        link.sendall(http(HEALTH))
        peer.closing.wait()

    with RawPeer(reach.place, serve) as peer:
        client = reach.client()
        client.health()
        with pytest.raises(UnreachableError, match="did not answer within"):
            client._exchange("PUT", "/roster", body=b"x" * 20_000_000, timeout_s=0.5)


def test_a_result_that_breaks_off(reach: Reach) -> None:
    etag = 'ETag: "' + "ab" * 32 + '"\r\n'
    received: list[bytes] = []
    peer = RawPeer(reach.place, says(http(b"0123456789", length=100, extra=etag)))
    with peer, pytest.raises(UnreachableError):
        reach.client().fetch_result("ab" * 32, received.append, limit=1000)
    assert b"".join(received) == b"0123456789"  # the next call asks from byte 10 on


def test_a_kept_connection_that_was_closed_is_replaced_once(reach: Reach) -> None:
    """Over SSH the end of an idle connection may arrive only after the next request left."""

    def serve(link: socket.socket) -> None:
        read_request(link)
        link.sendall(http(HEALTH))
        if peer.accepted == 1:
            read_request(link)  # and hang up without a word
            return
        peer.closing.wait()

    with RawPeer(reach.place, serve) as peer:
        client = reach.client()
        client.health()
        client.health()
        assert peer.accepted == 2


def test_a_fresh_connection_that_is_closed_is_not_tried_again(reach: Reach) -> None:
    with RawPeer(reach.place, says(b"")) as peer:
        with pytest.raises(UnreachableError):
            reach.client().health()
        assert peer.accepted == 1


def test_proxies_of_the_environment_are_ignored(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with RawPeer(reach.place, says(http(HEALTH))):
        assert reach.client().health().boot_id == "boot-1"

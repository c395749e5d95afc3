"""HTTPS below the agent's calls: who is believed, who is refused, and what an admin is told."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError, DeviceError, ExitCode, TrustError, UnreachableError, UsageError
from fedctl.transport import AgentClient, Endpoint, connect
from fedctl.transport.base import ClientIdentity
from fedctl.transport.https import HttpsTransport, TlsStream
from tests.fakes.agent_server import FakeAgent, RawPeer, error
from tests.fakes.tls_place import Fleet, TlsPlace
from tests.system import eventually


class Bed:
    """A fleet with one device and its operator."""

    def __init__(self, directory: Path) -> None:
        self.fleet = Fleet(directory / "fleet")
        self.files, self.pin = self.fleet.device()
        self.operator = self.fleet.operator()
        self.context = self.fleet.server(self.files)
        self.place = TlsPlace(self.context)

    @contextlib.contextmanager
    def client(
        self, place: TlsPlace | None = None, *, identity: ClientIdentity | None = None, timeout_s: float = 30
    ) -> Iterator[AgentClient]:
        with connect(
            device="watch-1",
            url=(place or self.place).url,
            pin=self.pin,
            identity=identity or self.operator,
            timeout_s=timeout_s,
        ) as client:
            yield client


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def test_both_sides_know_each_other_over_tls_1_3(bed: Bed) -> None:
    seen: list[tuple[str | None, bytes | None]] = []

    class Watching(TlsPlace):
        def secure(self, link: socket.socket) -> socket.socket:
            secured = super().secure(link)
            assert isinstance(secured, ssl.SSLSocket)
            seen.append((secured.version(), secured.getpeercert(binary_form=True)))
            return secured

    place = Watching(bed.context)
    with FakeAgent(place) as agent, bed.client(place) as client:
        assert client.health() == agent.health
    assert seen == [("TLSv1.3", ssl.PEM_cert_to_DER_cert(bed.operator.certificate.read_text()))]


def test_a_device_at_an_ipv6_address(bed: Bed) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    place = TlsPlace(bed.context, host="::1")
    assert place.url == f"https://[::1]:{place.port}"
    with FakeAgent(place) as agent, bed.client(place) as client:
        assert client.identity() == agent.identity


def test_a_name_with_a_dead_address_first_is_reached_at_the_next(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = socket.getaddrinfo

    def two(host: str, port: int, **more: int) -> list[tuple[object, ...]]:
        return [*found("127.0.0.2", port, **more), *found(host, port, **more)]  # nobody listens at the first

    monkeypatch.setattr(socket, "getaddrinfo", two)
    with FakeAgent(bed.place), bed.client() as client:
        assert client.health().device == "watch-1"


def test_a_dead_address_does_not_take_all_the_time(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    found = socket.getaddrinfo
    with contextlib.ExitStack() as stack:
        dead = stack.enter_context(socket.socket())
        dead.bind(("127.0.0.2", bed.place.port))
        dead.listen(0)
        for _ in range(4):  # more than its queue holds: whoever comes now hears nothing
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(dead.getsockname())

        def two(host: str, port: int, **more: int) -> list[tuple[object, ...]]:
            return [*found("127.0.0.2", port, **more), *found(host, port, **more)]

        monkeypatch.setattr(socket, "getaddrinfo", two)
        with FakeAgent(bed.place), bed.client(timeout_s=6) as client:
            assert client.health().device == "watch-1"


# ------------------------------------------------------------------ who answers


def test_another_key_than_the_pinned_one_is_not_believed_whoever_vouches_for_it(bed: Bed) -> None:
    other, _ = bed.fleet.device("watch-2")  # a member of the same fleet
    place = TlsPlace(bed.fleet.server(other))
    with FakeAgent(place) as agent, bed.client(place) as client:
        with pytest.raises(TrustError, match="another key than its identity") as caught:
            client.health()
        assert agent.requests == []
    assert (caught.value.exit_code, caught.value.code) == (ExitCode.TRUST, "identity")
    assert "fedctl-agent enrol" in caught.value.hint


def test_a_certificate_that_only_names_the_pinned_key_is_not_believed(bed: Bed, tmp_path: Path) -> None:
    """The device's certificate is public; who has no private key for it cannot shake hands."""
    _, pin = bed.fleet.device("other")
    with (
        FakeAgent(bed.place),
        connect(device="w", url=bed.place.url, pin=pin, identity=bed.operator) as client,
        pytest.raises(TrustError),
    ):
        client.health()


def test_a_key_of_another_kind_is_not_believed(bed: Bed, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    files = replace(bed.files, key=tmp_path / "ec.key", certificate=tmp_path / "ec.crt")
    key = ec.generate_private_key(ec.SECP256R1())
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    files.certificate.write_bytes(self_signed(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    place = TlsPlace(context)
    with (
        FakeAgent(place),
        bed.client(place) as client,
        pytest.raises(TrustError, match="no Ed25519 key"),
    ):
        client.health()


def self_signed(key: object) -> bytes:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))  # type: ignore[attr-defined]
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


# ------------------------------------------------------------------ who we are


def test_an_operator_of_another_fleet_is_told_so(bed: Bed, tmp_path: Path) -> None:
    stranger = Fleet(tmp_path / "other").operator()
    with FakeAgent(bed.place) as agent, bed.client(identity=stranger) as client:
        with pytest.raises(TrustError, match="it is enrolled in another fleet") as caught:
            client.health()
        assert agent.requests == []
    assert (caught.value.exit_code, caught.value.code) == (ExitCode.TRUST, "client_certificate")


def test_the_refusal_is_told_when_a_large_body_was_on_its_way(bed: Bed, tmp_path: Path) -> None:
    stranger = Fleet(tmp_path / "other").operator()
    with (
        FakeAgent(bed.place),
        bed.client(identity=stranger) as client,
        pytest.raises(TrustError, match="another fleet"),
    ):
        client._exchange("PUT", "/roster", body=b"x" * 4_000_000)


def test_nobody_without_a_certificate_is_served_by_an_enrolled_device(bed: Bed) -> None:
    with (
        FakeAgent(bed.place),
        connect(device="w", url=bed.place.url, pin=bed.pin) as client,
        pytest.raises(TrustError, match="answers nobody without a certificate"),
    ):
        client.health()


def test_a_revoked_operator_hears_it_from_the_agent(bed: Bed) -> None:
    with FakeAgent(bed.place) as agent, bed.client() as client:
        agent.answers["/health"] = error(403, "revoked", "operator is not in the roster")
        with pytest.raises(TrustError, match="not in the roster") as caught:
            client.health()
    assert caught.value.exit_code == ExitCode.TRUST


@pytest.mark.parametrize("damage", ["missing", "no certificate", "another key's"])
def test_a_damaged_certificate_here_is_no_fault_of_the_device(bed: Bed, damage: str) -> None:
    match damage:
        case "missing":
            bed.operator.certificate.unlink()
        case "no certificate":
            bed.operator.certificate.write_text("nothing")
        case "another key's":
            bed.operator.certificate.write_text(bed.files.certificate.read_text())
    with FakeAgent(bed.place), bed.client() as client, pytest.raises(ConfigError) as caught:
        client.health()
    assert str(bed.operator.certificate) in caught.value.message
    assert "fedctl init" in caught.value.hint


def test_without_a_pin_nothing_is_dialled() -> None:
    with pytest.raises(UsageError, match="no pinned key"):
        connect(device="w", url="https://127.0.0.1")


# ------------------------------------------------------------------ what is there instead


def test_nobody_listens(bed: Bed) -> None:
    with bed.client() as client, pytest.raises(UnreachableError, match="nobody listens at") as caught:
        client.health()
    assert caught.value.code == "agent_down"
    assert "agent.toml" in caught.value.hint


def test_a_name_that_nobody_knows(bed: Bed) -> None:
    with (
        connect(device="watch-1", url="https://no-such-host.invalid", pin=bed.pin) as client,
        pytest.raises(UnreachableError, match="watch-1"),
    ):
        client.health()


def test_a_server_of_plain_http(bed: Bed) -> None:
    class Plain(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Plain) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            url = f"https://127.0.0.1:{server.server_address[1]}"
            with (
                connect(device="watch-1", url=url, pin=bed.pin) as client,
                pytest.raises(DeviceError, match="does not speak TLS") as caught,
            ):
                client.health()
        finally:
            server.shutdown()
            thread.join()
    assert caught.value.code == "no_tls"
    assert "check the port" in caught.value.hint


@pytest.mark.parametrize(
    "banner", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64]
)
def test_what_speaks_first_and_no_tls(bed: Bed, banner: bytes) -> None:
    plain = TlsPlace(None)
    with (
        RawPeer(plain, lambda link: (link.sendall(banner), link.recv(65536))),
        bed.client(plain) as client,
        pytest.raises(DeviceError, match="does not speak TLS"),
    ):
        client.health()


def test_a_server_of_older_tls(bed: Bed) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bed.files.certificate, bed.files.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    place = TlsPlace(context)
    with (
        RawPeer(place, lambda _: None),
        bed.client(place) as client,
        pytest.raises(DeviceError, match=r"does not speak TLS 1\.3") as caught,
    ):
        client.health()
    assert caught.value.code == "old_tls"


@pytest.mark.parametrize(
    "serve", [lambda _: None, lambda link: link.recv(65536)], ids=["at once", "after it"]
)
def test_who_hangs_up_in_the_handshake_may_be_tried_again(
    bed: Bed, serve: Callable[[socket.socket], object]
) -> None:
    plain = TlsPlace(None)
    with RawPeer(plain, serve) as peer, bed.client(plain) as client:
        with pytest.raises(UnreachableError, match="watch-1 hung up in the TLS handshake"):
            client.health()
        assert peer.accepted == 2


def test_a_handshake_that_was_given_up_once_is_made_again(bed: Bed) -> None:
    class Crowded(TlsPlace):
        calls = 0

        def secure(self, link: socket.socket) -> socket.socket:
            self.calls += 1
            if self.calls == 1:
                raise ConnectionAbortedError
            return super().secure(link)

    place = Crowded(bed.context)
    with FakeAgent(place) as agent, bed.client(place) as client:
        assert client.health() == agent.health
    assert place.calls == 2


def test_a_handshake_that_never_ends_is_given_up_at_the_deadline(bed: Bed) -> None:
    plain = TlsPlace(None)
    with (
        RawPeer(plain, lambda _: peer.closing.wait()) as peer,
        bed.client(plain, timeout_s=0.3) as client,
        pytest.raises(UnreachableError, match="watch-1 could not be reached: connection timed out"),
    ):
        client.health()


# ------------------------------------------------------------------ the connection


def test_a_session_ticket_on_an_idle_connection_is_no_end_of_it(bed: Bed) -> None:
    """TLS may send messages of its own at any time; the connection is used on."""
    bed.context.num_tickets = 1
    transport = HttpsTransport("w", Endpoint.parse(bed.place.url), pin=bed.pin, identity=bed.operator)
    with RawPeer(bed.place, lambda link: (link.recv(1), link.recv(1))):
        stream = transport.dial(deadline=time.monotonic() + 30)
        assert isinstance(stream, TlsStream)
        assert select.select([stream._tls], [], [], 30)[0]  # the ticket is here
        assert not stream.stale()
        stream.send(b"xy", 30)
        eventually(stream.stale, "the peer's end is seen")
        stream.close()
        assert stream.stale()


def test_bytes_that_nobody_encrypted_end_the_connection(bed: Bed) -> None:
    def meddle(link: socket.socket) -> None:
        link.recv(65536)
        os.write(link.fileno(), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with (
        RawPeer(bed.place, meddle),
        bed.client() as client,
        pytest.raises(UnreachableError, match="TLS failed") as caught,
    ):
        client.health()
    assert caught.value.message.isprintable()


def test_an_end_without_tls_s_own_farewell_is_an_error(bed: Bed) -> None:
    """Else anybody on the way could cut an answer whose length was not announced."""

    def cut(link: socket.socket) -> None:
        link.recv(65536)
        link.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b'{"version": "0.1.0"}')

    with RawPeer(bed.place, cut), bed.client() as client, pytest.raises(UnreachableError):
        client.health()

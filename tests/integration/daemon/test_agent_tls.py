"""HTTPS on a real port: who is let in, in which role, who is not, and what they are told."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedctl_agent.daemon import trust
from fedctl_agent.daemon.connection import Deadlines
from fedctl_agent.daemon.routes import ROUTES, Route
from fedctl_wire.messages import RosterOperator
from fedctl_wire.names import Name
from fedctl_wire.signing import generate_key, public_key
from tests.fakes.tls_bed import (
    LONG_AGO,
    OPERATOR,
    TIMEOUT_S,
    TlsBed,
    example_path,
    member,
    other_fleet,
    served_over_tls,
)
from tests.fakes.worker_program import result_content
from tests.unit.worker.signed_fleet import DEVICE, FLEET

RESULT_BYTES = 700_001
SHORT = Deadlines(handshake_s=0.2, idle_s=0.2, header_s=0.2, body_s=0.2, send_s=1.0, linger_s=0.1)


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[TlsBed]:
    """An enrolled device that listens."""
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    with served_over_tls(bed):
        yield bed


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[TlsBed]:
    """The same, waiting for nobody for long."""
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    with served_over_tls(bed, deadlines=SHORT):
        yield bed


def refused_handshake(bed: TlsBed, context: ssl.SSLContext) -> str:
    """Why TLS refused; in TLS 1.3 a client learns it with the first answer."""
    try:
        with bed.tcp() as plain, context.wrap_socket(plain) as tls:
            tls.sendall(b"GET /v1/health HTTP/1.1\r\nHost: agent\r\n\r\n")
            raise AssertionError(f"it was let in: {tls.recv(4096)!r}")
    except ssl.SSLError as error:
        return str(error.reason)


# ------------------------------------------------------------------ who is let in


def test_an_operator_may_do_everything_over_tls_1_3(bed: TlsBed) -> None:
    connection = bed.connection(bed.operator)
    assert bed.call("GET", "/health", on=connection).json["device"] == DEVICE
    assert connection.sock.version() == "TLSv1.3"
    assert bed.call("GET", "/status", on=connection).status == 200
    connection.close()


def test_the_device_shows_the_certificate_of_its_enrolment_and_so_its_identity_key(bed: TlsBed) -> None:
    with bed.tcp() as plain, bed.context(bed.operator).wrap_socket(plain) as tls:
        shown = tls.getpeercert(binary_form=True)
    assert shown is not None
    assert hashlib.sha256(shown).hexdigest() == bed.device.sha256
    assert bytes.fromhex(public_key(bed.fleet.identity)) in shown


def test_a_model_is_pushed_and_trained_and_its_result_collected_over_https(bed: TlsBed) -> None:
    bed.client = functools.partial(bed.call, shown=bed.operator)  # type: ignore[assignment]
    bed.behave(result_bytes=RESULT_BYTES)
    request = bed.request(bed.push())
    assert bed.put_task(request).status == 201
    assert bed.final(request)["state"] == "done"
    content = result_content(request.task_id, RESULT_BYTES)
    assert bed.call("GET", f"/tasks/{request.task_id}/result", shown=bed.operator).body == content
    part = bed.call(
        "GET", f"/tasks/{request.task_id}/result", headers={"Range": "bytes=3-9"}, shown=bed.operator
    )
    assert (part.status, part.body) == (206, content[3:10])


def test_megabytes_arrive_whole(bed: TlsBed) -> None:
    data = random.Random(7).randbytes(3_000_001)
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"/blobs/{sha256}?bytes={len(data)}"
    answer = bed.call("PATCH", path, data, {"Upload-Offset": "0"}, shown=bed.operator)
    assert (answer.status, answer.json["offset"]) == (200, len(data))
    assert (bed.state.blobs / sha256).read_bytes() == data


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.method} {r.path}")
def test_a_device_certificate_opens_nothing_but_health(bed: TlsBed, route: Route) -> None:
    answer = bed.call(route.method, example_path(route), shown=bed.device)
    if route.path == "/v1/health":
        assert answer.status == 200
    else:
        assert answer.status == 403
        assert not answer.body or answer.code == "role"  # HEAD has no body


def test_no_session_can_be_resumed_without_showing_the_certificate_again(bed: TlsBed) -> None:
    context = bed.context(bed.operator)
    with bed.tcp() as plain, context.wrap_socket(plain) as first:
        first.sendall(b"GET /v1/health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert first.recv(4096)
        session = first.session
    assert session is None or not session.has_ticket


# ------------------------------------------------------------------ who is not


def test_without_a_certificate_there_is_no_connection(bed: TlsBed) -> None:
    assert refused_handshake(bed, bed.context()) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"


def test_a_certificate_of_another_fleet_is_refused(bed: TlsBed, tmp_path: Path) -> None:
    _, shown = other_fleet(tmp_path / "other")
    assert refused_handshake(bed, bed.context(shown)) in {
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_DECRYPT_ERROR",  # the issuer has the same name, the signature is another key's
    }


def test_a_certificate_that_the_devices_key_signed_is_refused(bed: TlsBed) -> None:
    """Else a stolen device could make itself an operator."""
    shown = member(bed.fleet.root, f"operator/{OPERATOR}", generate_key(), signer=bed.fleet.identity)
    assert "ALERT" in refused_handshake(bed, bed.context(shown))


def test_tls_1_2_is_refused(bed: TlsBed) -> None:
    context = bed.context(bed.operator)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert refused_handshake(bed, context) == "TLSV1_ALERT_PROTOCOL_VERSION"


def test_an_expired_certificate_is_refused_by_name(tmp_path: Path) -> None:
    bed = TlsBed(tmp_path / "state")
    bed.operator = member(bed.fleet.root, f"operator/{OPERATOR}", bed.fleet.operator, end=LONG_AGO)
    bed.enrol_with_certificates()
    with served_over_tls(bed):
        answer = bed.call("GET", "/health", shown=bed.operator)
    assert (answer.status, answer.code) == (403, "certificate")
    assert "expired at 2010-01-01T00:00:00Z" in answer.json["message"]
    assert answer.json["subject"] == f"fedctl://{FLEET}/operator/{OPERATOR}"


@pytest.mark.parametrize("clock", ["1970-01-01T00:00:09Z", "2001-01-01T00:00:00Z"])
def test_a_device_in_1970_believes_what_was_signed_more_than_its_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    monkeypatch.setattr(trust, "utc_now", lambda: clock)
    bed = TlsBed(tmp_path / "state")
    valid = bed.operator
    with_end = member(bed.fleet.root, "operator/bob", bed.fleet.operator, end=LONG_AGO)
    bed.enrol_with_certificates()
    entries = (bed.entry(valid), bed.entry(with_end, "bob"))
    bed.state.roster.write_bytes(bed.roster(operators=entries).to_bytes())
    with served_over_tls(bed):
        assert bed.call("GET", "/status", shown=valid).status == 200
        assert bed.call("GET", "/status", shown=with_end).code == "certificate"


def test_a_revoked_certificate_is_refused_also_on_an_open_connection(bed: TlsBed) -> None:
    connection = bed.connection(bed.operator)
    assert bed.call("GET", "/status", on=connection).status == 200
    successor = member(bed.fleet.root, f"operator/{OPERATOR}", bed.fleet.operator)
    roster = bed.roster(serial=4, operators=(bed.entry(successor),)).to_bytes()
    assert bed.call("PUT", "/roster", roster, on=connection).status == 200
    for answer in (
        bed.call("GET", "/status", on=connection),
        bed.call("GET", "/health", shown=bed.operator),
    ):
        assert (answer.status, answer.code) == (403, "certificate")
        assert "not in this device's roster, serial 4" in answer.json["message"]
    connection.close()
    assert bed.call("GET", "/status", shown=successor).status == 200


def test_a_certificate_says_the_role_under_which_it_is_listed(tmp_path: Path) -> None:
    """A roster that lists a device's certificate among the operators does not make it one."""
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    mixed_up = RosterOperator(Name("mallory"), public_key(bed.fleet.identity), bed.device.sha256)
    bed.state.roster.write_bytes(bed.roster(operators=(mixed_up,)).to_bytes())
    with served_over_tls(bed):
        answer = bed.call("GET", "/status", shown=bed.device)
    assert (answer.status, answer.code) == (403, "certificate")
    assert "says something else" in answer.json["message"]


def test_plain_http_on_the_port_is_told_so(bed: TlsBed) -> None:
    with bed.tcp() as plain:
        plain.sendall(b"GET /v1/health HTTP/1.1\r\nHost: agent\r\n\r\n")
        received = b""
        while block := plain.recv(4096):
            received += block
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"https://" in received
    assert b"device" not in received


@pytest.mark.parametrize("rubbish", [b"\0" * 5000, b"\x16\x03\x01" + b"\xff" * 3000, b"SSH-2.0-x\r\n"])
def test_rubbish_instead_of_a_handshake_ends_the_connection(bed: TlsBed, rubbish: bytes) -> None:
    with bed.tcp() as plain:
        plain.sendall(rubbish)
        with contextlib.suppress(ConnectionResetError):
            while plain.recv(4096):
                pass
    assert bed.call("GET", "/status", shown=bed.operator).status == 200


# ------------------------------------------------------------------ how long anybody may take


def test_silent_clients_delay_nobody_and_hold_no_place(tmp_path: Path) -> None:
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    with served_over_tls(bed, connections=4), contextlib.ExitStack() as silent:
        for _ in range(40):
            silent.enter_context(bed.tcp())
        for _ in range(3):
            assert bed.call("GET", "/status", shown=bed.operator).status == 200
            assert bed.client("GET", "/status").status == 200


def test_who_has_shown_nothing_makes_room_before_who_is_known(tmp_path: Path) -> None:
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    with served_over_tls(bed, connections=3), contextlib.ExitStack() as silent:
        known = bed.connection(bed.operator)
        assert bed.call("GET", "/status", on=known).status == 200
        for _ in range(20):
            silent.enter_context(bed.tcp())
        assert bed.client("GET", "/status").status == 200
        sock = known.sock
        assert bed.call("GET", "/status", on=known).status == 200
        assert known.sock is sock  # not opened again
        known.close()


def test_who_was_refused_makes_room_before_a_handshake_that_goes_on(tmp_path: Path) -> None:
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    lasting = Deadlines(linger_s=TIMEOUT_S)
    with (
        served_over_tls(bed, connections=3, deadlines=lasting),
        contextlib.ExitStack() as refused,
        bed.tcp() as plain,  # has said nothing yet
    ):
        for _ in range(2):
            rubbish = refused.enter_context(bed.tcp())
            rubbish.sendall(b"SSH-2.0-x\r\n")
            while rubbish.recv(4096):
                pass
        for _ in range(2):
            assert bed.call("GET", "/status", shown=bed.operator).status == 200
        with bed.context(bed.operator).wrap_socket(plain) as tls:
            tls.sendall(b"GET /v1/status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert read_all(tls).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("asks", [True, False])
def test_a_certificate_that_is_not_listed_holds_no_place(tmp_path: Path, *, asks: bool) -> None:
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    unlisted = member(bed.fleet.root, "operator/mallory", generate_key())
    with served_over_tls(bed, connections=2), bed.tcp() as plain:
        connection = bed.connection(unlisted)
        if asks:
            assert bed.call("GET", "/status", on=connection).status == 403
        else:
            connection.connect()
            time.sleep(0.2)  # for the device's half of it
        assert bed.call("GET", "/status", shown=bed.operator).status == 200
        with bed.context(bed.operator).wrap_socket(plain) as tls:
            tls.sendall(b"GET /v1/status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert read_all(tls).startswith(b"HTTP/1.1 200 ")
        connection.close()


def test_a_handshake_that_never_ends_is_given_up(hasty: TlsBed) -> None:
    with hasty.tcp() as silent:
        assert silent.recv(1) == b""
    with hasty.tcp() as slow:
        slow.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello
        assert slow.recv(1) == b""


def test_a_handshake_that_drips_is_given_up_as_a_whole(hasty: TlsBed) -> None:
    """Each byte that arrives would start the time anew, if it were counted from the last one."""
    with hasty.tcp() as dripping:
        dripping.sendall(b"\x16\x03\x01\x40\x00\x01")  # of a record of 16 KiB
        with pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012 - which byte is refused, nobody knows
            for _ in range(1000):
                dripping.sendall(b"\0")
                time.sleep(0.02)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"GET /v1/health HTTP/1.1\r\nHost: a", 408, id="slow header"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 8000, 431, id="endless header"),
        pytest.param(
            b"PUT /v1/policy HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{", 408, id="slow body"
        ),
        pytest.param(
            b"PUT /v1/policy HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", 413, id="huge body"
        ),
    ],
)
def test_slow_and_endless_requests_are_refused(hasty: TlsBed, sent: bytes, status: int) -> None:
    with hasty.tcp() as plain, hasty.context(hasty.operator).wrap_socket(plain) as tls:
        tls.sendall(sent)
        assert read_all(tls).startswith(b"HTTP/1.1 %d " % status)


def test_an_endless_body_is_refused_while_it_is_sent(bed: TlsBed) -> None:
    with bed.tcp() as plain, bed.context(bed.operator).wrap_socket(plain) as tls:
        tls.sendall(b"PUT /v1/policy HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        with contextlib.suppress(OSError):
            for _ in range(200):  # 13 MB
                tls.sendall(chunk)
        assert read_all(tls).startswith(b"HTTP/1.1 413 ")


def read_all(tls: ssl.SSLSocket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError, TimeoutError):
        while block := tls.recv(4096):
            received += block
    return received

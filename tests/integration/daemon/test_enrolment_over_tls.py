"""`fedctl-agent enrol` and the one enrolment that its token opens, over real TLS."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedctl_agent.daemon.connection import Deadlines
from fedctl_agent.daemon.routes import ROUTES, Route
from fedctl_agent.daemon.workerlink import WORKER_COMMAND
from fedctl_agent.tokens import open_token
from fedctl_wire.codec import encode
from fedctl_wire.signing import key_id, public_key
from tests.fakes.tls_bed import TlsBed, example_path, other_fleet, served_over_tls
from tests.integration.daemon.conftest import ROOT, StartDaemon
from tests.system import eventually
from tests.unit.worker.signed_fleet import DEVICE

NOBODY = 65534
SHORT = Deadlines(handshake_s=0.5, idle_s=0.3, header_s=0.3, body_s=0.3, linger_s=0.1)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[TlsBed]:
    """A device that listens and is in no fleet yet."""
    bed = TlsBed(tmp_path / "state")
    with served_over_tls(bed):
        yield bed


def opened(bed: TlsBed) -> str:
    """The secret of a fresh token."""
    return open_token(bed.state).split("-")[1]


# ------------------------------------------------------------------ before a root is pinned


def test_a_stranger_sees_health_and_identity(fresh: TlsBed) -> None:
    assert fresh.call("GET", "/health").json["device"] is None
    identity = fresh.call("GET", "/identity").json
    assert (identity["identity_key"], identity["enrolled"]) == (public_key(fresh.fleet.identity), False)


@pytest.mark.parametrize(
    "route",
    [r for r in ROUTES if r.path not in {"/v1/health", "/v1/identity", "/v1/enrolment"}],
    ids=lambda r: f"{r.method} {r.path}",
)
def test_a_stranger_sees_nothing_else(fresh: TlsBed, route: Route) -> None:
    answer = fresh.call(route.method, example_path(route), b"{}")
    assert answer.status == 403
    assert not answer.body or answer.code == "role"  # HEAD has no body


def test_the_certificate_carries_the_key_that_the_token_names(fresh: TlsBed) -> None:
    token = open_token(fresh.state)
    with fresh.tcp() as plain, fresh.context().wrap_socket(plain) as tls:
        shown = tls.getpeercert(binary_form=True)
    assert shown is not None
    key = public_key(fresh.fleet.identity)
    assert bytes.fromhex(key) in shown
    assert token.endswith(f"-{key_id(key)}")


def test_the_token_enrols_and_from_then_on_certificates_count(fresh: TlsBed) -> None:
    connection = fresh.connection()
    early = fresh.connection()
    assert fresh.call("GET", "/health", on=early).status == 200
    body = encode(fresh.enrolment())
    answer = fresh.call("PUT", "/enrolment", body, token=opened(fresh), on=connection)
    assert (answer.status, answer.json["device"]) == (200, DEVICE)
    assert answer.headers["connection"] == "close"
    connection.close()
    late = fresh.call("GET", "/health", on=early)
    assert (late.status, late.code) == (403, "certificate")
    early.close()
    with pytest.raises(ssl.SSLError):
        fresh.call("GET", "/health")
    assert fresh.call("GET", "/status", shown=fresh.operator).json["device"] == DEVICE


def test_an_operator_repeats_the_enrolment_without_a_token(fresh: TlsBed) -> None:
    """The answer to the first request may have been lost."""
    request = fresh.enrolment()
    assert fresh.call("PUT", "/enrolment", encode(request), token=opened(fresh)).status == 200
    answer = fresh.call("PUT", "/enrolment", encode(request), shown=fresh.operator)
    assert (answer.status, answer.json["enrolled"]) == (200, True)


def test_without_a_token_or_with_a_guessed_one_nobody_is_enrolled(fresh: TlsBed) -> None:
    answer = fresh.put_enrolment("a" * 32)
    assert (answer.status, answer.code) == (401, "token")
    assert answer.json["message"] == "no token is open on this device"
    secret = opened(fresh)
    assert fresh.put_enrolment(None).json["message"] == "enrolment over HTTPS needs a token"
    for left in (4, 3, 2, 1, 0):
        answer = fresh.put_enrolment("a" * 32)
        assert (answer.status, answer.json["message"]) == (401, f"the token is wrong; tries left: {left}")
    answer = fresh.put_enrolment(secret)
    assert (answer.status, answer.json["message"]) == (401, "the token is void after 5 tries")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "fedctl-agent enrol" in answer.json["hint"]
    assert not fresh.state.root_key.exists()


def test_a_reused_token_is_refused(tmp_path: Path) -> None:
    bed = TlsBed(tmp_path / "state")
    secret = opened(bed)
    with served_over_tls(bed):
        assert bed.put_enrolment(secret).status == 200
    bed.state.root_key.unlink()  # somebody at the device took it out of the fleet
    with served_over_tls(bed):
        answer = bed.put_enrolment(secret)
    assert (answer.status, answer.json["message"]) == (401, "the token has been used already")


def test_an_expired_token_is_refused(fresh: TlsBed) -> None:
    secret = opened(fresh)
    text = fresh.state.token.read_text()
    opened_at = text.partition('"opened_at_s":')[2].partition(",")[0]
    fresh.state.token.write_text(text.replace(opened_at, str(float(opened_at) - 901)))
    answer = fresh.put_enrolment(secret)
    assert (answer.status, answer.json["message"]) == (401, "the token has expired: it holds for 15 minutes")


def test_the_token_is_asked_for_before_the_body_is_read(fresh: TlsBed) -> None:
    with fresh.tcp() as plain, fresh.context().wrap_socket(plain) as tls:
        tls.sendall(b"PUT /v1/enrolment HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n")
        assert tls.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_a_refused_enrolment_leaves_the_token_open(fresh: TlsBed) -> None:
    secret = opened(fresh)
    fresh.behave(refuse={"enrolment": "signature"})
    assert fresh.put_enrolment(secret).code == "signature"
    fresh.behave()
    assert fresh.put_enrolment(secret).status == 200


def test_an_enrolment_that_would_shut_everybody_out_is_refused(fresh: TlsBed) -> None:
    answer = fresh.put_enrolment(opened(fresh), certificate="", authority="")
    assert (answer.status, answer.code) == (403, "certificate")
    assert not fresh.state.root_key.exists()


def test_another_root_cannot_enrol_it_again(fresh: TlsBed, tmp_path: Path) -> None:
    assert fresh.put_enrolment(opened(fresh)).status == 200
    other, operator = other_fleet(tmp_path / "other")
    with pytest.raises(ssl.SSLError):
        fresh.call("PUT", "/enrolment", encode(other.request()), shown=operator)
    answer = fresh.client("PUT", "/enrolment", encode(other.request()))
    assert (answer.status, answer.code) == (409, "enrolled")


def test_the_real_worker_believes_certificates_that_the_roster_names_and_no_others(tmp_path: Path) -> None:
    bed = TlsBed(tmp_path / "state")
    _, foreign = other_fleet(tmp_path / "other")
    with served_over_tls(bed, worker=WORKER_COMMAND):
        secret = opened(bed)
        answer = bed.put_enrolment(secret, certificate=foreign.pem.decode())
        assert (answer.status, answer.code) == (403, "certificate")
        assert b"not enrolled" in bed.state.certificate.read_bytes() or not bed.state.authority.exists()
        assert bed.put_enrolment(secret).status == 200
        assert bed.call("GET", "/status", shown=bed.operator).status == 200


def test_strangers_who_dawdle_are_closed(tmp_path: Path) -> None:
    bed = TlsBed(tmp_path / "state")
    with served_over_tls(bed, deadlines=SHORT):
        with bed.tcp() as plain, bed.context().wrap_socket(plain) as tls:
            assert tls.recv(1) == b""
        with bed.tcp() as plain, bed.context().wrap_socket(plain) as tls:
            tls.sendall(b"GET /v1/hea")
            assert tls.recv(4096).startswith(b"HTTP/1.1 408 ")


# ------------------------------------------------------------------ the command


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def enrol(state: Path, *words: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "fedctl_agent.main", "enrol", "--state-dir", str(state), *words]
    environment = dict(os.environ)
    if python != sys.executable:  # it does not know this one's packages
        packages = [str(ROOT / "agent"), *(path for path in sys.path if "site-packages" in path)]
        environment["PYTHONPATH"] = os.pathsep.join(packages)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


def test_a_running_agent_takes_it_up_and_is_enrolled(tmp_path: Path, start_daemon: StartDaemon) -> None:
    bed = TlsBed(tmp_path / "state")
    daemon = start_daemon(bed)
    assert bed.client("GET", "/health").status == 200
    bed.port = free_port()
    result = enrol(bed.state.path, "--listen", f"127.0.0.1:{bed.port}")
    assert (result.returncode, "fedctl-agent:" in result.stderr) == (0, False), result.stderr
    (token,) = result.stdout.splitlines()
    assert "fedctl devices add " in result.stderr
    assert f"https://127.0.0.1:{bed.port}\n" in result.stderr
    assert tomllib.loads(bed.state.settings.read_text()) == {"https": f"127.0.0.1:{bed.port}"}
    assert bed.put_enrolment(token.split("-")[1]).status == 200
    assert bed.call("GET", "/status", shown=bed.operator).json["https"] == {
        "address": f"127.0.0.1:{bed.port}",
        "error": None,
    }
    assert daemon.stop() == 0


def test_an_enrolled_agent_listens_again_after_a_restart_and_stops_when_told(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    bed.port = free_port()
    bed.state.settings.write_text(f'https = "127.0.0.1:{bed.port}"\n')
    daemon = start_daemon(bed)
    status = bed.call("GET", "/status", shown=bed.operator).json
    assert status["https"]["error"] is None
    bed.state.settings.unlink()
    os.kill(daemon.pid, signal.SIGHUP)
    silent = {"address": None, "error": None}
    eventually(lambda: bed.client("GET", "/status").json["https"] == silent, "it stopped listening")
    with pytest.raises(ConnectionRefusedError):
        bed.tcp()
    assert daemon.stop() == 0


def test_a_listening_agent_stays_small_and_asleep(tmp_path: Path, start_daemon: StartDaemon) -> None:
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    bed.port = free_port()
    bed.state.settings.write_text(f'https = "127.0.0.1:{bed.port}"\n')
    daemon = start_daemon(bed)
    for _ in range(50):
        assert bed.call("GET", "/status", shown=bed.operator).status == 200
    process = Path(f"/proc/{daemon.pid}")
    eventually(lambda: len(list((process / "task").iterdir())) == 1, "the last connection is over")
    maps = (process / "maps").read_text()
    assert "numpy" not in maps
    assert "cryptography" not in maps
    before = (process / "status").read_text()
    assert int(before.split("VmRSS:")[1].split()[0]) <= 26 * 1024
    time.sleep(1.0)
    woken = "\nvoluntary_ctxt_switches:"
    assert (process / "status").read_text().split(woken)[1].split()[0] == before.split(woken)[1].split()[0]


def test_it_listens_on_ipv6(tmp_path: Path, start_daemon: StartDaemon) -> None:
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        bed.port = probe.getsockname()[1]
    bed.state.settings.write_text(f'https = "[::1]:{bed.port}"\n')
    start_daemon(bed)
    context = bed.context(bed.operator)
    with (
        socket.create_connection(("::1", bed.port), timeout=20) as plain,
        context.wrap_socket(plain) as tls,
    ):
        tls.sendall(b"GET /v1/status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert tls.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_port_that_is_taken_is_named_and_the_socket_still_served(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bed.state.settings.write_text(f'https = "127.0.0.1:{taken.getsockname()[1]}"\n')
        start_daemon(bed)
        https = bed.client("GET", "/status").json["https"]
    assert https["address"] is None
    assert "in use" in https["error"]


def test_a_device_without_certificates_says_why_it_does_not_listen(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    bed = TlsBed(tmp_path / "state")
    bed.fleet.enrol()
    bed.state.settings.write_text(f'https = "127.0.0.1:{free_port()}"\n')
    start_daemon(bed)
    https = bed.client("GET", "/status").json["https"]
    assert https["address"] is None
    assert "authority.pem" in https["error"]


def test_without_an_agent_the_token_is_printed_and_that_is_said(tmp_path: Path) -> None:
    result = enrol(tmp_path / "state")
    assert result.returncode == 0
    assert result.stdout.startswith("fedctl-")
    assert "the agent does not run" in result.stderr
    assert (tmp_path / "state/identity/certificate.pem").read_text().startswith("-----BEGIN CERTIFICATE")
    assert tomllib.loads((tmp_path / "state/agent.toml").read_text()) == {"https": "0.0.0.0:7443"}


def test_an_enrolled_device_opens_no_token(tmp_path: Path) -> None:
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    result = enrol(bed.state.path)
    assert (result.returncode, result.stdout) == (8, "")
    assert "enrolled already" in result.stderr
    assert not bed.state.token.exists()


def test_an_address_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    result = enrol(tmp_path / "state", "--listen", "everywhere")
    assert (result.returncode, result.stdout) == (2, "")
    assert "ADDRESS:PORT" in result.stderr
    assert not (tmp_path / "state").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_run_by_root_it_leaves_files_that_the_agents_user_can_read() -> None:
    python = readable_python()
    with tempfile.TemporaryDirectory() as directory:  # pytest's own is closed to other users
        Path(directory).chmod(0o755)
        state = Path(directory) / "state"
        state.mkdir(mode=0o700)
        os.chown(state, NOBODY, NOBODY)
        result = enrol(state, python=python)
        assert result.returncode == 0, result.stderr
        assert {path.stat().st_uid for path in state.rglob("*")} == {NOBODY}


def readable_python() -> str:
    """An interpreter that other users can read, too, and that takes this one's packages."""
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            words = [python, "-c", "import random, sys; print(sys.version_info[:2])"]
            told = subprocess.run(words, user=NOBODY, cwd="/", capture_output=True, text=True, check=True)
            if told.stdout.strip() == str(sys.version_info[:2]):
                return python
    pytest.skip("no interpreter that other users can read")


@pytest.mark.parametrize("damaged", ["authority.pem", "certificate.pem", "key.pem"])
def test_a_damaged_file_is_named_and_what_was_good_goes_on(
    tmp_path: Path, start_daemon: StartDaemon, damaged: str
) -> None:
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    bed.port = free_port()
    bed.state.settings.write_text(f'https = "127.0.0.1:{bed.port}"\n')
    daemon = start_daemon(bed)
    assert bed.call("GET", "/status", shown=bed.operator).json["https"]["error"] is None
    path = bed.state.identity / damaged
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for _ in range(3):
        https = bed.call("GET", "/status", shown=bed.operator).json["https"]
        assert https["address"] == f"127.0.0.1:{bed.port}"
        assert damaged in https["error"]
    assert bed.state.log.read_text().count(damaged) == 1
    path.write_bytes(whole)
    assert bed.call("GET", "/status", shown=bed.operator).json["https"]["error"] is None
    path.write_bytes(whole[: len(whole) // 2])
    assert daemon.stop() == 0
    start_daemon(bed)
    https = bed.client("GET", "/status").json["https"]
    assert https["address"] is None
    assert damaged in https["error"]


def test_a_certificate_of_another_key_is_named(tmp_path: Path, start_daemon: StartDaemon) -> None:
    bed = TlsBed(tmp_path / "state")
    bed.enrol_with_certificates()
    bed.state.certificate.write_bytes(bed.operator.pem)
    bed.state.settings.write_text(f'https = "127.0.0.1:{free_port()}"\n')
    start_daemon(bed)
    assert "is not the certificate of" in bed.client("GET", "/status").json["https"]["error"]


def test_a_damaged_token_is_answered_with_the_way_out(tmp_path: Path) -> None:
    bed = TlsBed(tmp_path / "state")
    with served_over_tls(bed):
        bed.state.token.write_bytes(b'{"sha256": "')
        answer = bed.put_enrolment("a" * 32)
    assert (answer.status, answer.code) == (401, "token")
    assert "run fedctl-agent enrol again" in answer.json["message"]

"""What an idle agent costs: a real, enrolled daemon after 100 requests, and the slim wheel on disk.

    python benchmarks/agent_idle.py [--idle-seconds 20] [--no-wheel]

The last line is one JSON object: `rss_mib` (VmRSS of the daemon), `rss_https_mib` (of another one that
also listens for HTTPS, after 100 requests over the socket and 100 handshakes with a request each),
`cpu_percent` (of one core, while idle: the larger of the two), `wheel_mb` (10^6 bytes: the installed slim
wheel with its dependencies, without NumPy; needs the package index or a pip cache; null with --no-wheel),
and beside them `warm_request_ms` and `warm_https_request_ms` (CPU time of the daemon for one
`GET /v1/status` on an open connection).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fedctl.release.trust import enrolment_request, operator_certificate, sign_roster
from fedctl_wire.codec import encode
from fedctl_wire.messages import RosterDevice
from fedctl_wire.names import Name
from fedctl_wire.signing import generate_key, private_key_to_pem, public_key

REQUESTS = 100
WARM_REQUESTS = 500
AGENT = Path(__file__).parents[1] / "agent"
FLEET = "0b1ee6a4-3e58-4d1c-8f1b-2a4b8f6f6a10"
AT = "2024-01-01T00:00:00Z"


class Asking:
    """A connection that is asked for what it must answer with 200."""

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Send a request and return the body of its answer."""
        assert isinstance(self, http.client.HTTPConnection)
        self.request(method, path, body)
        response = self.getresponse()
        answer = response.read()
        assert response.status == 200, answer
        return answer


class Connection(Asking, http.client.HTTPConnection):
    """HTTP on the agent's socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        """Open the socket; called by the first request."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class TlsConnection(Asking, http.client.HTTPSConnection):
    """HTTPS as the operator."""


Connect = Callable[[], Connection | TlsConnection]


def main() -> None:
    parser = argparse.ArgumentParser(description="What an idle agent costs.")
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--no-wheel", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        plain = measure_daemon(Path(directory) / "plain", options.idle_seconds, https=False)
        https = measure_daemon(Path(directory) / "https", options.idle_seconds, https=True)
        wheel = None if options.no_wheel else round(wheel_bytes(Path(directory) / "wheel") / 1e6, 1)
    figures = {
        "rss_mib": plain["rss_mib"],
        "rss_https_mib": https["rss_mib"],
        "cpu_percent": max(plain["cpu_percent"], https["cpu_percent"]),
        "warm_request_ms": plain["warm_request_ms"],
        "warm_https_request_ms": https["warm_request_ms"],
        "wheel_mb": wheel,
    }
    print(json.dumps(figures))


def measure_daemon(state: Path, idle_s: float, *, https: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "fedctl_agent.main", "serve", "--state-dir", str(state)]
    environment = os.environ | {"FEDCTL_WORKER_IDLE_S": "0.5", "MALLOC_ARENA_MAX": "2"}  # as in the units
    port = free_port()
    if https:
        state.mkdir()
        (state / "agent.toml").write_text(f'https = "127.0.0.1:{port}"\n')
    with subprocess.Popen(command, env=environment) as daemon:
        try:
            while not (state / "agent.sock").exists():
                time.sleep(0.02)
            context = enrol(state)
            ways: list[Connect] = [lambda: Connection(state / "agent.sock")]
            if https:
                ways.append(lambda: TlsConnection("127.0.0.1", port, timeout=60, context=context))
            for connect in ways:
                for number in range(REQUESTS):
                    connection = connect()
                    connection.ask("GET", "/v1/status" if number % 2 else "/v1/health")
                    connection.close()
            warm = warm_request_s(ways[-1], daemon.pid)
            time.sleep(2.0)  # the worker that verified the enrolment ends
            before = cpu_s(daemon.pid)
            time.sleep(idle_s)
            used = cpu_s(daemon.pid) - before
            return {
                "rss_mib": round(resident_kib(daemon.pid) / 1024, 1),
                "cpu_percent": round(100 * used / idle_s, 3),
                "warm_request_ms": round(1000 * warm, 3),
            }
        finally:
            daemon.terminate()


def enrol(state: Path) -> ssl.SSLContext:
    """Make the device a member of a fleet; what its operator calls with."""
    root, operator = generate_key(), generate_key()
    device = RosterDevice(Name("wrist-01"), (state / "identity" / "key.pub").read_text(), 1, AT)
    roster = sign_roster(
        fleet=FLEET,
        serial=1,
        issued_at=AT,
        operator_key=public_key(operator),
        devices=[device],
        root_key=root,
    )
    request = enrolment_request(fleet=FLEET, device=device, roster=roster, root_key=root)
    connection = Connection(state / "agent.sock")
    connection.ask("PUT", "/v1/enrolment", encode(request))
    connection.close()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    shown = state / "operator.pem"
    certificate = operator_certificate(FLEET, public_key(operator), root).pem
    shown.write_bytes(certificate.encode() + private_key_to_pem(operator))
    context.load_cert_chain(shown)
    return context


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def warm_request_s(connect: Connect, pid: int) -> float:
    connection = connect()
    connection.ask("GET", "/v1/status")
    before = cpu_s(pid)
    for _ in range(WARM_REQUESTS):
        connection.ask("GET", "/v1/status")
    used = cpu_s(pid) - before
    connection.close()
    return used / WARM_REQUESTS


def cpu_s(pid: int) -> float:
    """Processor time of the process and its threads, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


def wheel_bytes(target: Path) -> int:
    command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*command, "--target", str(target), str(AGENT)], check=True)
    files = (path for path in target.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(p.stat().st_size for p in files if not p.relative_to(target).parts[0].startswith("numpy"))


if __name__ == "__main__":
    main()

"""The daemon's bed with certificates: the fleet's, made by the test itself, and HTTPS to the agent."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import selectors
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedctl_agent.daemon.agent import Agent
from fedctl_agent.daemon.connection import Deadlines
from fedctl_agent.daemon.listener import Places, UnixListener
from fedctl_agent.daemon.routes import Route, Router
from fedctl_agent.daemon.tls import Contexts, TlsListener
from fedctl_agent.keygen import self_signed
from fedctl_agent.settings import Address
from fedctl_wire.codec import encode
from fedctl_wire.messages import EnrolmentRequest, RosterDevice, RosterOperator
from fedctl_wire.names import Name
from fedctl_wire.signing import private_key_to_pem, public_key
from tests.fakes.daemon_bed import FAKE_WORKER, Bed
from tests.fakes.unix_http import Answer
from tests.unit.worker.signed_fleet import AT, DEVICE, FLEET, SignedFleet, new_fleet

OPERATOR = Name("alice")
BEGIN = datetime(2000, 1, 1, tzinfo=UTC)
END = datetime(2100, 1, 1, tzinfo=UTC)
LONG_AGO = datetime(2010, 1, 1, tzinfo=UTC)
TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate, and the key that goes with it where the test has it."""

    pem: bytes
    key: Ed25519PrivateKey | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.pem.decode())).hexdigest()


def authority(root: Ed25519PrivateKey) -> Issued:
    return Issued(_build(root, public_key(root), "root", ca=True), root)


def member(
    root: Ed25519PrivateKey, uri: str, key: Ed25519PrivateKey, *, end: datetime = END, signer: Any = None
) -> Issued:
    """A certificate for `uri`, e.g. `operator/alice` in the fleet of the tests."""
    pem = _build(signer or root, public_key(key), uri, uri=f"fedctl://{FLEET}/{uri}", end=end)
    return Issued(pem, key)


def _build(
    signer: Ed25519PrivateKey,
    key: str,
    name: str,
    *,
    uri: str | None = None,
    ca: bool = False,
    end: datetime = END,
) -> bytes:
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name("root"))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGIN)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if uri is not None:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(usage, critical=False).add_extension(names, critical=False)
    return builder.sign(signer, algorithm=None).public_bytes(Encoding.PEM)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class TlsBed(Bed):
    """A bed whose fleet has certificates; the device's and the operator's are in its roster."""

    port: int

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        root = self.fleet.root
        self.state.certificate.write_bytes(self_signed(self.fleet.identity))
        self.authority = authority(root)
        self.operator = member(root, f"operator/{OPERATOR}", self.fleet.operator)
        self.device = member(root, f"device/{DEVICE}", self.fleet.identity)

    def roster(self, **changes: Any) -> Any:
        """The fleet's roster with the hashes of the certificates; `operators` and `devices` as given."""
        fields = {"operators": (self.entry(self.operator),), "devices": (self.listed_device(),)}
        return self.fleet.roster(**(fields | changes))

    def entry(self, certificate: Issued, name: str = OPERATOR) -> RosterOperator:
        return RosterOperator(Name(name), public_key(self.fleet.operator), certificate.sha256)

    def listed_device(self) -> RosterDevice:
        return RosterDevice(DEVICE, public_key(self.fleet.identity), 1, AT, self.device.sha256)

    def enrolment(self, **changes: Any) -> EnrolmentRequest:
        """What makes the device a member, certificates included."""
        fields = {
            "roster": json.loads(self.roster().to_bytes()),
            "certificate": self.device.pem.decode(),
            "authority": self.authority.pem.decode(),
        }
        return self.fleet.request(**(fields | changes))

    def enrol_with_certificates(self) -> None:
        """Write what the daemon writes once it took `enrolment()`."""
        self.fleet.enrol()
        self.state.roster.write_bytes(self.roster().to_bytes())
        self.state.certificate.write_bytes(self.device.pem)
        self.state.authority.write_bytes(self.authority.pem)

    # ------------------------------------------------------------------ calling

    def context(self, shown: Issued | None = None) -> ssl.SSLContext:
        """A client that believes any server and shows a certificate, if given one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if shown is not None:
            assert shown.key is not None
            name = self.state.path.parent / f"{shown.sha256}.pem"
            name.write_bytes(shown.pem + private_key_to_pem(shown.key))
            context.load_cert_chain(name)
        return context

    def connection(self, shown: Issued | None = None) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=TIMEOUT_S, context=self.context(shown)
        )

    def tcp(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        shown: Issued | None = None,
        token: str | None = None,
        on: http.client.HTTPSConnection | None = None,
    ) -> Answer:
        """One request over HTTPS, on a connection of its own unless one is given."""
        connection = on or self.connection(shown)
        try:
            words = {} if token is None else {"Authorization": f"Bearer {token}"}
            connection.request(method, f"/v1{path}", body, words | (headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            if on is None:
                connection.close()

    def put_enrolment(self, token: str | None, **changes: Any) -> Answer:
        return self.call("PUT", "/enrolment", encode(self.enrolment(**changes)), token=token)


def example_path(route: Route) -> str:
    """A path that fits a route, without the version in front."""
    path = route.path.removeprefix("/v1")
    for name, value in {"sha256": "0" * 64, "task_id": "0" * 64, "name": "har", "version": "1"}.items():
        path = path.replace(f"{{{name}}}", value)
    return path


def other_fleet(path: Path) -> tuple[SignedFleet, Issued]:
    """A fleet of the same name under another root, and its operator's certificate."""
    fleet = new_fleet(path)
    return fleet, member(fleet.root, f"operator/{OPERATOR}", fleet.operator)


@contextlib.contextmanager
def served_over_tls(
    bed: TlsBed,
    *,
    worker: Sequence[str] = FAKE_WORKER,
    deadlines: Deadlines | None = None,
    connections: int = 16,
) -> Iterator[Agent]:
    """Serve the bed on its socket and on a free port, from one thread, as the daemon does."""
    agent = Agent(bed.state, worker_command=worker)
    places, router = Places(connections), Router(agent)
    unix = UnixListener(bed.state.socket, router, places=places, deadlines=deadlines)
    tls = TlsListener(
        Address("127.0.0.1", 0),
        router,
        contexts=Contexts(bed.state, agent.trust),
        trust=agent.trust,
        places=places,
        deadlines=deadlines,
    )
    bed.port = tls.socket.getsockname()[1]
    stop, stopped = socket.socketpair()

    def accept() -> None:
        with selectors.DefaultSelector() as selector:
            for listener in (unix, tls, stopped):
                selector.register(listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is stopped:
                        return
                    key.fileobj.accept()  # type: ignore[union-attr]

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield agent
    finally:
        stop.close()
        thread.join()
        stopped.close()
        tls.remove()
        unix.remove()
        agent.close()

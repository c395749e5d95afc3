"""TLS 1.3 in front of HTTP: the handshake in the connection's own thread, and who is at the other end.

Before a root is pinned nobody is asked for a certificate, and whoever calls is a stranger. Afterwards
OpenSSL lets only those finish a handshake whose certificate the root signed; whether the roster still
lists that certificate, and in which role, is asked anew for every request. OpenSSL does not look at
certificates' times: a wearable that boots in 1970 would refuse everybody. The daemon does, by the
device's best clock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

from fedctl_agent.daemon.connection import Connection, ConnectionClosed, Deadlines
from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.daemon.exchange import Reply, Request, Role
from fedctl_agent.daemon.listener import Listener, Places
from fedctl_agent.daemon.trust import PeerCertificate, Trust
from fedctl_agent.settings import Address
from fedctl_agent.state import StateDir
from fedctl_wire.codec import encode
from fedctl_wire.limits import KIB
from fedctl_wire.messages import ErrorBody

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL; the ssl module has no name for it
_OTHER_KEY = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"}
_RECORD_BYTES = 16 * KIB  # of one TLS record, at most; a larger buffer would not be filled
_FILE_BLOCK = 256 * KIB
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# A caller that left without a word, e.g. out of reach of its radio, is found out by the kernel.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))  # s, s, probes
_PLAIN_BODY = encode(ErrorBody("plain_http", "this port speaks HTTPS", hint="use https:// in the URL"))
_PLAIN = (
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_PLAIN_BODY), _PLAIN_BODY)
)


class Contexts:
    """What handshakes are made with: follows the enrolment, and the certificates on disk. Thread-safe.

    A file that is damaged while the agent runs is named once, and the handshakes go on with what was good.

    Args:
        state: Where key and certificates are.
        trust: Knows whether the device is enrolled.
        tell: Is called with what is wrong, or with None when nothing is any more, each time that changes.
    """

    def __init__(
        self, state: StateDir, trust: Trust, *, tell: Callable[[str | None], None] = lambda _: None
    ) -> None:
        self._state = state
        self._trust = trust
        self._tell = tell
        self._lock = threading.Lock()
        self._stamp: tuple[object, ...] = ()
        self._good: tuple[bool, ssl.SSLContext] | None = None  # whether it asks for certificates, and it
        self._error: str | None = None

    @property
    def error(self) -> str | None:
        """What is wrong with the files as they were last seen."""
        return self._error

    def current(self) -> ssl.SSLContext:
        """The context for the next connection.

        Raises:
            OSError: When key or certificates cannot be read, or are none, and never were good.
        """
        with self._lock:
            mutual = self._trust.enrolled
            stamp = (mutual, *(self._version(path) for path in self._files(mutual=mutual)))
            if stamp != self._stamp:
                self._stamp = stamp
                self._renew(mutual=mutual)
            if self._good is None or self._good[0] is not mutual:
                raise OSError(self._error)
            return self._good[1]

    def _renew(self, *, mutual: bool) -> None:
        before = self._error
        try:
            self._good = mutual, self._make(mutual=mutual)
            self._error = None
        except OSError as error:
            self._error = str(error)
        if self._error != before:
            self._tell(self._error)

    def _files(self, *, mutual: bool) -> list[str]:
        files = [self._state.identity_key, self._state.certificate]
        return [str(path) for path in (*files, *([self._state.authority] if mutual else []))]

    @staticmethod
    def _version(path: str) -> tuple[int, ...] | None:
        try:
            found = os.stat(path)  # noqa: PTH116 - once a connection; pathlib would take longer than the call
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _make(self, *, mutual: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0  # a resumed session would not show its certificate again
        _load_own(context, self._state.certificate, self._state.identity_key)
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            context.verify_flags |= _NO_CHECK_TIME
            _load_certificate(context, self._state.authority)
        return context


class TlsConnection(Connection):
    """A connection whose first bytes are a handshake.

    Args:
        sock: Connected stream socket; this object closes it.
        application: As for `Connection`.
        contexts: What the handshake is made with.
        trust: Knows the members of the fleet.
        deadlines: How long the other side may take.
    """

    def __init__(
        self,
        sock: socket.socket,
        application: Callable[[Request], Reply],
        *,
        contexts: Contexts,
        trust: Trust,
        deadlines: Deadlines,
    ) -> None:
        super().__init__(sock, application, role=self._role_now, deadlines=deadlines)
        self._contexts = contexts
        self._trust = trust
        self._certificate: PeerCertificate | None = None
        self._refused = False

    @property
    def trusted(self) -> bool:
        """Whether the other side has shown a certificate of the fleet that counts."""
        return self._certificate is not None and not self._refused

    @property
    def refused(self) -> bool:
        """Whether the handshake has failed, or the certificate does not count."""
        return self._refused

    def serve(self) -> None:
        """Shake hands, then answer requests."""
        try:
            with contextlib.suppress(ConnectionClosed, OSError):  # TLS errors are OSErrors, too
                certificate = self._shake_hands()
                self._refused = certificate is not None and not self._counts(certificate)
                self._certificate = certificate
                super().serve()
            with contextlib.suppress(OSError):
                self._end_sending()
        finally:
            self._socket.close()

    def _counts(self, certificate: PeerCertificate) -> bool:
        try:
            self._trust.role_of(certificate)
        except ApiError:
            return False
        return True

    def _role_now(self) -> Role:
        if self._certificate is not None:
            self._refused = True  # until the roster of this moment says otherwise
            role = self._trust.role_of(self._certificate)
            self._refused = False
            return role
        if self._trust.enrolled:
            raise ApiError(
                403,
                "certificate",
                "this device has been enrolled since the connection was opened",
                hint="connect again, with a certificate",
            )
        return Role.STRANGER

    def _shake_hands(self) -> PeerCertificate | None:
        _set_options(self._socket)
        context = self._contexts.current()
        with self._turn:  # it must not be given up while the socket changes hands
            if self._given_up:
                raise ConnectionClosed
            tls = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
            self._socket = tls
        tls.settimeout(self.deadlines.handshake_s)
        try:
            tls.do_handshake()
        except ssl.SSLError as error:
            self._refuse_handshake(error)
        return _peer_certificate(tls)

    def _refuse_handshake(self, error: ssl.SSLError) -> NoReturn:
        """OpenSSL has told the caller why; stay until that can have arrived."""
        self._refused = True
        if error.reason == "HTTP_REQUEST":
            socket.socket.send(self._socket, _PLAIN)
        self._linger()

    def _receive_block(self, block: int) -> bytes:
        return self._socket.recv(min(block, _RECORD_BYTES))

    def _send_part(self, file: BinaryIO, position: int, count: int) -> int:
        """The kernel cannot encrypt what it sends: block by block through this process."""
        file.seek(position)
        left = count
        while left and (data := file.read(min(left, _FILE_BLOCK))):
            self._socket.settimeout(self.deadlines.send_s)
            self._socket.sendall(data)
            left -= len(data)
        return count - left

    def _end_sending(self) -> None:
        """Say that nothing more will come, in TLS and in TCP, without waiting for an answer."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(0)
            with contextlib.suppress(OSError, ValueError):  # not shaken hands, or gone
                self._socket.unwrap()
        super()._end_sending()


class TlsListener(Listener):
    """Serves HTTPS on a TCP port; what callers may do, their certificates decide.

    Args:
        address: Where to listen; port 0 takes a free one.
        application: Answers requests.
        contexts: What handshakes are made with.
        trust: Knows the members of the fleet.
        places: Of all listeners together; when all of them are in the middle of a request, further
            callers are turned away.
        deadlines: How long callers may take.

    Raises:
        OSError: When nothing can be bound there.
    """

    allow_reuse_address = True

    def __init__(
        self,
        address: Address,
        application: Callable[[Request], Reply],
        *,
        contexts: Contexts,
        trust: Trust,
        places: Places,
        deadlines: Deadlines | None = None,
    ) -> None:
        self._contexts = contexts
        self._trust = trust
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        self.address_family, _, _, _, where = found[0]
        super().__init__(where, application, places=places, deadlines=deadlines)

    def connection(self, request: socket.socket) -> Connection:
        """TLS first."""
        return TlsConnection(
            request, self.application, contexts=self._contexts, trust=self._trust, deadlines=self.deadlines
        )


def _load_own(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load key and certificate; OpenSSL itself does not say which of the two is none.

    Raises:
        OSError: Naming the file.
    """
    try:
        context.load_cert_chain(certificate, key, password="")  # without it a terminal would be asked
    except OSError as error:
        _load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate)
        if getattr(error, "reason", "") in _OTHER_KEY:
            raise OSError(f"{certificate} is not the certificate of {key}") from error
        raise OSError(f"{key} cannot be used as a private key: {_why(error)}") from error


def _load_certificate(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except OSError as error:
        raise OSError(f"{path} cannot be used as a certificate: {_why(error)}") from error


def _why(error: OSError) -> str:
    return "it is damaged" if isinstance(error, ssl.SSLError) else str(error.strerror or error)


def _set_options(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _peer_certificate(sock: ssl.SSLSocket) -> PeerCertificate | None:
    der = sock.getpeercert(binary_form=True)
    fields = sock.getpeercert()
    if der is None or not fields:
        return None
    names: object = fields.get("subjectAltName", ())
    uris = tuple(value for kind, value in names if kind == "URI")  # type: ignore[attr-defined]
    return PeerCertificate(hashlib.sha256(der).hexdigest(), uris, _rfc3339(str(fields["notAfter"])))


def _rfc3339(openssl: str) -> str:
    """`Jan  5 09:34:43 2038 GMT` as `2038-01-05T09:34:43Z`, whatever the locale."""
    month, day, clock, year, _ = openssl.split()
    return f"{year}-{_MONTHS.index(month) + 1:02}-{int(day):02}T{clock}Z"

"""An agent that listens for HTTPS: TLS 1.3 on a socket of our own, each side known by its key.

The device has to prove the identity key that its enrolment pinned, which is stricter than a chain of
certificates: no authority, name or date of its certificate counts. The workstation shows the operator's
certificate. What a device makes of it reaches us only with its first answer (RFC 8446, 4.4.2.4): a
refusal is an alert, read where an answer was expected.
"""

from __future__ import annotations

import functools
import socket
import ssl
from typing import NoReturn

from fedctl.core.errors import ConfigError, DeviceError, FedctlError, TrustError, UnreachableError, reason_of
from fedctl.transport.base import HTTPS_PORT, ClientIdentity, Endpoint, Stream, Transport, remaining_s
from fedctl.transport.tcp import open_tcp
from fedctl.transport.unix import SocketStream
from fedctl_wire.signing import key_id

# OpenSSL's words for an answer to our greeting that is no TLS at all.
_NO_TLS = {
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
    "HTTP_REQUEST",
    "UNKNOWN_PROTOCOL",
}
_OLD_TLS = {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "VERSION_TOO_LOW"}
_ALERT = "_ALERT_"


class _HungUpError(UnreachableError):
    """The device ended the connection before it was one."""


class HttpsTransport(Transport):
    """A TLS connection a stream.

    Args:
        device: Its name.
        endpoint: An `https` one.
        pin: SHA-256 of the device's raw public identity key, hex.
        identity: What the workstation shows; None before the first enrolment.
    """

    def __init__(
        self, device: str, endpoint: Endpoint, *, pin: str, identity: ClientIdentity | None = None
    ) -> None:
        super().__init__(device)
        self._host, self._port = endpoint.host, endpoint.port or HTTPS_PORT
        self._pin = pin
        self._identity = identity

    def close(self) -> None:
        """Nothing is shared between streams."""

    @property
    def _where(self) -> str:
        return f"{self._host} port {self._port}"

    def _dial(self, deadline: float) -> Stream:
        try:
            return self._secured(deadline)
        except _HungUpError:  # a device that others crowd may have given up this one for them
            return self._secured(deadline)

    def _secured(self, deadline: float) -> Stream:
        context = _context(self._identity)
        link = context.wrap_socket(
            self._open(deadline), do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        try:
            self._shake_hands(link, deadline)
            self._check_key(link.getpeercert(binary_form=True) or b"")
        except BaseException:
            link.close()
            raise
        return TlsStream(self.device, link)

    def _open(self, deadline: float) -> socket.socket:
        try:
            return open_tcp(self._host, self._port, deadline)
        except ConnectionRefusedError as error:
            raise UnreachableError(
                f"agent is not running on device {self.device}: nobody listens at {self._where}",
                hint="start it there again, and see that `https` in its agent.toml names this address; "
                "before an enrolment `fedctl-agent enrol --listen ADDRESS:PORT` sets that",
                subject=self.device,
                code="agent_down",
            ) from error

    def _shake_hands(self, link: ssl.SSLSocket, deadline: float) -> None:
        link.settimeout(remaining_s(deadline))  # for the whole of it, not for each read
        try:
            link.do_handshake()
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError) as error:
            raise _HungUpError(
                f"device {self.device} hung up in the TLS handshake at {self._where}", subject=self.device
            ) from error
        except ssl.SSLError as error:
            raise self._no_handshake(error) from error

    def _no_handshake(self, error: ssl.SSLError) -> FedctlError:
        reason = error.reason or str(error)
        if reason in _NO_TLS:
            return DeviceError(
                f"device {self.device}: what answers at {self._where} does not speak TLS",
                hint="check the port: agents listen for HTTPS where `https` in their agent.toml says",
                subject=self.device,
                code="no_tls",
            )
        if reason in _OLD_TLS:
            return DeviceError(
                f"device {self.device}: what answers at {self._where} does not speak TLS 1.3, only older",
                hint="no agent does that: check the port, and what stands between here and the device",
                subject=self.device,
                code="old_tls",
            )
        return UnreachableError(
            f"device {self.device}: the TLS handshake at {self._where} failed: {_words(reason)}",
            subject=self.device,
        )

    def _check_key(self, der: bytes) -> None:
        shown = _key_of(der)
        if shown == self._pin:
            return
        keys = _short(shown), _short(self._pin)
        if keys[0] == keys[1]:  # a token with a slip near its end
            keys = shown, self._pin
        raise TrustError(
            f"device {self.device} at {self._where} shows another key than its identity: "
            f"{keys[0]}, pinned is {keys[1]}",
            hint="if it was set up anew, run `fedctl-agent enrol` there and add it again with that token; "
            "otherwise somebody else answers there",
            subject=self.device,
            code="identity",
        )


class TlsStream(SocketStream):
    """A TLS connection to the agent."""

    def __init__(self, device: str, link: ssl.SSLSocket) -> None:
        super().__init__(link)
        self._tls = link
        self._device = device

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        """See `Stream`.

        Raises:
            TrustError: The device refused the operator's certificate.
        """
        try:
            return super().recv(max_bytes, timeout_s)
        except ssl.SSLError as error:
            self._give_up(error)

    def send(self, data: bytes, timeout_s: float) -> None:
        """See `Stream`."""
        try:
            super().send(data, timeout_s)
        except ssl.SSLError as error:
            self._give_up(error)

    def stale(self) -> bool:
        """See `Stream`."""
        if not super().stale():
            return False
        if self._tls.fileno() < 0:
            return True
        self._tls.settimeout(0)
        try:
            self._tls.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError):
            return False  # only a message of TLS itself, such as a session ticket
        except OSError:
            return True
        return True

    def _give_up(self, error: ssl.SSLError) -> NoReturn:
        reason = error.reason or ""
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            raise ConnectionResetError("connection closed") from error
        if _ALERT in reason:
            raise _refused(self._device, reason.split(_ALERT, 1)[1]) from error
        raise ConnectionError(f"TLS failed: {_words(reason or str(error))}") from error


def _refused(device: str, alert: str) -> TrustError:
    """What a device's alert after the handshake means: it did not accept who we are."""
    meaning, hint = {
        "UNKNOWN_CA": (
            "it is enrolled in another fleet",
            "take it out there first, or at the device stop the agent and delete its identity directory",
        ),
        "CERTIFICATE_REQUIRED": (
            "it is enrolled already and answers nobody without a certificate",
            "`fedctl init --root-key PATH` makes the operator's certificate again",
        ),
        "CERTIFICATE_EXPIRED": (
            "to its clock the operator's certificate has expired",
            "set the clock of the device",
        ),
    }.get(
        alert,
        (
            f"it does not accept the operator's certificate ({_words(alert)})",
            "is this the home of its fleet? `fedctl init --root-key PATH` renews the certificate",
        ),
    )
    return TrustError(
        f"device {device} refused this workstation: {meaning}",
        hint=hint,
        subject=device,
        code="client_certificate",
    )


@functools.cache
def _context(identity: ClientIdentity | None) -> ssl.SSLContext:
    """One context an identity, shared by all threads: loading keys for each connection would cost more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the key itself is compared, see `_check_key`
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if identity is None:
        return context
    try:
        context.load_cert_chain(identity.certificate, identity.key)
    except OSError as error:
        why = _words(error.reason or "") if isinstance(error, ssl.SSLError) else reason_of(error)
        raise ConfigError(
            f"{identity.certificate} and {identity.key} cannot be used for HTTPS: {why}",
            hint="`fedctl init --root-key PATH` makes the certificate again once the file is removed",
            subject=str(identity.certificate),
        ) from error
    return context


def _key_of(der: bytes) -> str:
    """The SHA-256 of the raw public key in a certificate, or "" when it holds no Ed25519 key."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except (ValueError, UnsupportedAlgorithm):
        return ""
    return key_id(key.public_bytes_raw().hex()) if isinstance(key, Ed25519PublicKey) else ""


def _short(sha256: str) -> str:
    """A key's hash as people compare it, in the form of `fedctl_wire.signing.fingerprint`."""
    return ":".join(sha256[i : i + 2] for i in range(0, 32, 2)) if sha256 else "no Ed25519 key"


def _words(reason: str) -> str:
    return reason.replace("_", " ").lower()

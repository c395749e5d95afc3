"""An SSH connection up to the point where both sides know each other: socket, key exchange, login.

Only paramiko's public interface is used. Nothing here decides whether a host key is trusted.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

import paramiko
from paramiko.pkey import UnknownKeyType
from paramiko.ssh_exception import PartialAuthentication

from fedctl.core.errors import ConfigError, UnreachableError
from fedctl.transport.base import describe, remaining_s
from fedctl.transport.tcp import open_tcp

_CIPHER = "aes128-gcm@openssh.com"  # hardware-supported nearly everywhere, and needs no separate MAC
_NO_BANNER = "Error reading SSH protocol banner"  # paramiko, when the server hangs up at once
_TRIES, _PAUSE_S = 3, 0.4  # for a server that does so
_MOST_HANDSHAKES = 8  # unfinished ones with one server
ENCRYPTED_KEY = "encrypted_key"  # code of the error of a private key that needs a passphrase
_RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")

# Without a handler of its own, paramiko's error log reaches stderr through logging's last resort; what
# matters of it comes as an exception anyway.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class LoginAnswer(Enum):
    """What a server says to a key; the values are for a person."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    NO_KEYS = "its sshd takes no keys (PubkeyAuthentication no, or AuthenticationMethods)"
    MORE_NEEDED = "its sshd takes the key and asks for more (AuthenticationMethods)"


class HandshakeTurns:
    """Keeps the unfinished handshakes with one server below what makes sshd drop connections.

    Source: sshd_config(5), MaxStartups: from ten on, some are refused at random.
    """

    def __init__(self, most: int = _MOST_HANDSHAKES) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._servers: dict[Hashable, threading.Semaphore] = {}

    @contextmanager
    def turn(self, server: Hashable, deadline: float) -> Iterator[None]:
        """Hold one of the server's places, from before connecting until after the login.

        Raises:
            TimeoutError: None became free before `deadline`.
        """
        with self._lock:
            places = self._servers.setdefault(server, threading.Semaphore(self._most))
        if not places.acquire(timeout=remaining_s(deadline)):
            raise TimeoutError
        try:
            yield
        finally:
            places.release()


HANDSHAKES = HandshakeTurns()  # of this process
Opener = Callable[[str, int, float], socket.socket | paramiko.Channel]  # host, port, deadline


def connect(
    host: str,
    port: int,
    *,
    key_types: Sequence[str],
    device: str,
    deadline: float,
    opener: Opener | None = None,
    kind: str = "device",
) -> paramiko.Transport:
    """Connect and agree on keys; the host key is not checked yet and nobody is logged in.

    Args:
        host: Name or address.
        port: TCP port.
        key_types: Host key types to prefer, e.g. those that are known; others stay possible, so that a
            changed key is seen as such.
        device: Named in errors.
        deadline: Instant of `time.monotonic()`.
        opener: Opens the byte stream, e.g. through a jump host; TCP from here when None.
        kind: What `device` is, for errors.

    Raises:
        UnreachableError: Nothing that speaks SSH answered in time.
        TrustError: Whatever `opener` raises, e.g. of a jump host.
    """
    tries = _TRIES
    while True:
        transport = _open(host, port, opener or open_tcp, deadline, f"{kind} {device}", device)
        try:
            _negotiate(transport, key_types, deadline)
        except Exception as error:
            dropped = _NO_BANNER in str(error) and time.monotonic() + _PAUSE_S < deadline
            transport.close()
            transport.sock.close()  # a transport that never started leaves it open
            tries -= 1
            if dropped and tries:  # perhaps by MaxStartups: other people log in there, too
                time.sleep(_PAUSE_S * (0.5 + random.random()))  # noqa: S311 - spreads load, hides nothing
                continue
            raise UnreachableError(
                f"{kind} {device}: what answers at {host} port {port} ended the SSH handshake: "
                f"{describe(error)}",
                subject=device,
            ) from error
        return transport


def _open(
    host: str, port: int, opener: Opener, deadline: float, who: str, subject: str
) -> paramiko.Transport:
    link = None
    try:
        link = opener(host, port, deadline)
        return paramiko.Transport(link)
    except (OSError, paramiko.SSHException) as error:
        if link is not None:
            link.close()
        raise UnreachableError(
            f"{who} could not be reached at {host} port {port}: {describe(error)}", subject=subject
        ) from error


def log_in(transport: paramiko.Transport, user: str, key: paramiko.PKey, *, deadline: float) -> LoginAnswer:
    """Try one key.

    Raises:
        TimeoutError: At the deadline.
        Exception: Whatever broke the connection, for a `Transport` to translate.
    """
    done = threading.Event()
    transport.auth_publickey(user, key, event=done)
    if not done.wait(remaining_s(deadline)):
        raise TimeoutError
    if transport.is_authenticated():
        return LoginAnswer.ACCEPTED
    error = transport.get_exception()
    if isinstance(error, PartialAuthentication):
        return LoginAnswer.MORE_NEEDED
    if isinstance(error, paramiko.BadAuthenticationType):
        return LoginAnswer.NO_KEYS
    if error is None or isinstance(error, paramiko.AuthenticationException):
        return LoginAnswer.REFUSED
    raise error


def load_key(path: Path) -> paramiko.PKey:
    """A private key from its file.

    Raises:
        ConfigError: It cannot be used; with the code `ENCRYPTED_KEY` for want of its passphrase.
    """
    try:
        key: paramiko.PKey = paramiko.PKey.from_path(path)
    except (OSError, ValueError, TypeError, paramiko.SSHException, UnknownKeyType) as error:
        # cryptography says TypeError where a passphrase is missing
        encrypted = isinstance(error, TypeError | paramiko.PasswordRequiredException)
        why, code = ("it is encrypted", ENCRYPTED_KEY) if encrypted else (describe(error), "")
        raise ConfigError(
            f"private key {path} cannot be used: {why}", subject=str(path), code=code
        ) from error
    return key


def host_key_of(transport: paramiko.Transport) -> str:
    """The key that the server proved, as in known_hosts: `ssh-ed25519 AAAA…`."""
    key = transport.get_remote_server_key()
    return f"{key.get_name()} {key.get_base64()}"


def fingerprint(host_key: str) -> str:
    """`SHA256:…` of a host key line, as OpenSSH prints it.

    Raises:
        ValueError: When the line is no key.
    """
    blob = base64.b64decode(host_key.split()[1], validate=True)
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _negotiate(transport: paramiko.Transport, key_types: Sequence[str], deadline: float) -> None:
    options = transport.get_security_options()
    options.ciphers = _first([_CIPHER], options.ciphers)
    wanted = [name for kind in key_types for name in (_RSA_SIGNATURES if kind == "ssh-rsa" else (kind,))]
    options.key_types = _first(wanted, options.key_types)
    transport.banner_timeout = transport.handshake_timeout = remaining_s(deadline)
    done = threading.Event()
    transport.start_client(event=done)
    if not done.wait(remaining_s(deadline)):
        raise TimeoutError
    if not transport.is_active():
        raise transport.get_exception() or EOFError("connection closed")


def _first(wanted: Sequence[str], offered: Sequence[str]) -> tuple[str, ...]:
    """`offered` with the wanted ones in front; what paramiko does not know is left out."""
    front = [name for name in dict.fromkeys(wanted) if name in offered]
    return (*front, *(name for name in offered if name not in front))

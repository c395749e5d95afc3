"""Where a device is (`Endpoint`) and what carries bytes to its agent (`Transport`).

A transport only opens byte streams to the agent; HTTP over them is the same for all. Deadlines are
instants of `time.monotonic()`.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self
from urllib.parse import quote, unquote, urlsplit

from fedctl.core.errors import FedctlError, UnreachableError, UsageError

DEFAULT_TIMEOUT_S = 30.0  # seconds for one call
_TRANSFER_BYTES_PER_S = 8 * 1024  # the slowest link on which a transfer is still given its time
MAX_STREAMS = 4  # a device; OpenSSH's MaxSessions is 10 and others may be logged in

# No leading '-': a host that ssh would read as an option is refused before any program sees it.
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9._:%-]*")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]*\$?")
_FORMS = "use unix:///absolute/path, ssh://[user@]host[:port] or https://host[:port]"
SSH_PORT = 22
HTTPS_PORT = 7443  # where agents listen unless told otherwise


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed device URL. `path` is only set for `unix`, `user` only for `ssh`; `https` has a port."""

    scheme: str  # "unix", "ssh" or "https"
    user: str | None = None
    host: str = ""
    port: int | None = None
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse `unix:///PATH`, `ssh://[user@]host[:port]` or `https://host[:port]`.

        Raises:
            UsageError: When the URL has another form, e.g. a relative path, a password or an option.
        """
        try:
            parts = urlsplit(url)
            host, port, user = _host_of(parts.netloc), parts.port, parts.username
            if port == 0:
                raise ValueError("port 0 is none that anybody listens on")  # noqa: TRY301 - one translation
        except ValueError as error:
            raise UsageError(f"device URL {url!r} is not valid: {error}", hint=_FORMS, subject=url) from error
        if parts.query or parts.fragment or parts.password is not None:
            raise UsageError(f"device URL {url!r} has a part that is not allowed", hint=_FORMS, subject=url)
        if parts.scheme == "unix" and not parts.netloc and parts.path.strip("/"):
            return cls("unix", path=unquote(parts.path))
        named = _HOST.fullmatch(host) and (user is None or _USER.fullmatch(user))
        if parts.scheme == "ssh" and named and parts.path in {"", "/"}:
            return cls("ssh", user=user, host=host, port=port)
        if parts.scheme == "https" and named and user is None and parts.path in {"", "/"}:
            return cls("https", host=host, port=port or HTTPS_PORT)
        raise UsageError(f"device URL {url!r} is not valid", hint=_FORMS, subject=url)

    @property
    def url(self) -> str:
        """The endpoint as a URL again; `parse` of it gives the same endpoint."""
        if self.scheme == "unix":
            return f"unix://{quote(self.path)}"
        host = f"[{self.host.replace('%', '%25')}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"{self.scheme}://{user}{host}{'' if self.port is None else f':{self.port}'}"


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """The files, PEM, with which the workstation says over TLS who it is."""

    certificate: Path
    key: Path


@dataclass(slots=True)
class Traffic:
    """Bytes of HTTP so far, headers included, before the framing of SSH or TLS."""

    bytes_up: int = 0  # device to workstation
    bytes_down: int = 0  # workstation to device


class Stream(Protocol):
    """A connected byte stream to the agent; `OSError` and `TimeoutError` say what went wrong."""

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        """The next bytes, or b"" at the end of the stream."""

    def send(self, data: bytes, timeout_s: float) -> None:
        """Send all of `data`."""

    def close(self) -> None:
        """Release the stream; never raises."""

    def stale(self) -> bool:
        """Whether the idle stream was closed by the other side, or holds bytes nobody asked for."""


class Transport(ABC):
    """Opens streams to one device's agent.

    Implementations override `_dial` and `close`; whatever foreign exception they let out becomes an
    `UnreachableError` that names the device.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.mend = ""  # what to do about an agent that is down, in place of what the address alone says

    def dial(self, *, deadline: float) -> Stream:
        """Open a stream to the agent before `deadline`.

        Raises:
            UnreachableError: The device or its agent did not answer.
            TrustError: Its host key is another one, or it refused the login.
            DeviceError: Something else than an agent answered.
        """
        try:
            return self._dial(deadline)
        except FedctlError as error:
            if self.mend and error.code == "agent_down":
                error.hint = self.mend
            raise
        except Exception as error:
            raise UnreachableError(
                f"device {self.device} could not be reached: {describe(error)}", subject=self.device
            ) from error

    @abstractmethod
    def _dial(self, deadline: float) -> Stream: ...

    @abstractmethod
    def close(self) -> None:
        """Give up every connection to the device; never raises."""


def _host_of(netloc: str) -> str:
    """The host as typed: `SplitResult.hostname` has it in lower case, and OpenSSH's aliases have cases."""
    place = netloc.rpartition("@")[2]
    bracketed = re.match(r"\[([^\]]*)\]", place)
    # A zone's % may be written %25 (RFC 6874).
    return bracketed[1].replace("%25", "%") if bracketed else place.partition(":")[0]


def remaining_s(deadline: float) -> float:
    """Seconds until an instant of `time.monotonic()`.

    Raises:
        TimeoutError: When there are none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def transfer_timeout_s(timeout_s: float, size: int) -> float:
    """Seconds that a transfer of `size` bytes may take: a call's, and what a slow radio needs for it."""
    return timeout_s + size / _TRANSFER_BYTES_PER_S


def describe(error: BaseException) -> str:
    """The words of a foreign exception for a person: its text, else its type."""
    if isinstance(error, TimeoutError):
        return "connection timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__

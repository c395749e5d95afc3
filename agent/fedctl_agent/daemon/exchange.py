"""What a handler gets and gives: a request with a streaming body, and the three kinds of answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeVar

from fedctl_agent.daemon.errors import ApiError
from fedctl_wire.codec import Json, decode
from fedctl_wire.limits import LIMITS
from fedctl_wire.signing import Envelope

T = TypeVar("T")


class Role(StrEnum):
    """Who is at the other end of a connection."""

    OPERATOR = "operator"  # whoever can open the socket, or shows an operator's certificate
    PEER = "peer"  # another device of the fleet, by its certificate
    STRANGER = "stranger"  # anybody, over TLS, before a root is pinned


class Body(Protocol):
    """A request's body, received while it is read."""

    @property
    def length(self) -> int | None:
        """The announced number of bytes, or None for a chunked body."""

    def blocks(self) -> Iterator[bytes | bytearray]:
        """The body in blocks, as they arrive.

        Raises:
            ApiError: 408 when the caller is too slow.
            ConnectionError: When the caller went away in the middle.
        """


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body not read yet."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]  # lower-case names
    body: Body
    role: Callable[[], Role]  # who is there now; `ApiError` when nobody whom this device knows
    gone: Callable[[float], bool]  # waits up to so many seconds for the caller to hang up
    parameters: Mapping[str, str] = field(default_factory=dict)  # checked parts of the path

    def read(self, *, limit: int = LIMITS.json_body_bytes) -> bytes:
        """The whole body.

        Raises:
            ApiError: 413 when it has more than `limit` bytes, before more than that was read.
        """
        too_large = ApiError(413, "too_large", f"the body has more than {limit} bytes", subject=self.path)
        if (self.body.length or 0) > limit:
            raise too_large
        data = bytearray()
        for block in self.body.blocks():
            data += block
            if len(data) > limit:
                raise too_large
        return bytes(data)

    def decode(self, cls: type[T]) -> T:
        """The body as a message.

        Raises:
            WireError: When it is none.
        """
        return decode(cls, self.read(), limit=LIMITS.json_body_bytes)

    def envelope(self, *, what: str) -> Envelope:
        """The body as a signed envelope, unverified.

        Raises:
            WireError: When it is none.
        """
        return Envelope.from_bytes(self.read(), what=what)

    def number(self, name: str, default: float, *, most: float) -> float:
        """A number of the query, between 0 and `most`.

        Raises:
            ApiError: 400 when it is none.
        """
        text = self.query.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= most:
            raise ApiError(
                400, "malformed", f"{name} is {text[:40]!r}, not a number from 0 to {most:g}", subject=name
            )
        return value

    def flag(self, name: str) -> bool:
        """Whether the query has `name=1`."""
        return self.query.get(name) == "1"


@dataclass(frozen=True, slots=True)
class JsonReply:
    """An answer with a JSON body: a message or plain values."""

    value: Json
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileReply:
    """Part of a file, sent by the kernel without passing through this process."""

    path: Path
    offset: int
    length: int
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamReply:
    """JSON lines until the iterator ends or the caller hangs up."""

    lines: Iterator[bytes]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Reply = JsonReply | FileReply | StreamReply

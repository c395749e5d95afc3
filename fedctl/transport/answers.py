"""An agent's answers as messages or errors; nothing a device says is believed to be well-formed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

from fedctl.core.errors import DeviceError, FedctlError, RefusedError, TrustError, UnreachableError
from fedctl_wire.codec import decode
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import ErrorBody

Message = TypeVar("Message")

_REFUSALS = {"policy", "refused", "schema", "no_source"}  # a device's own no
_FORBIDDEN, _OVERLOADED = 403, 503


class Answered(Protocol):
    """What this module needs of an HTTP answer."""

    @property
    def status(self) -> int:
        """The status code."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers, names in lower case."""

    @property
    def body(self) -> bytes:
        """The whole body."""


def message_of(cls: type[Message], answer: Answered, device: str) -> Message:
    """Decode a good answer.

    Raises:
        DeviceError: `bad_answer`.
    """
    try:
        return decode(cls, answer.body, limit=LIMITS.json_body_bytes)
    except WireError as error:
        raise bad_answer(device, error) from error


def bad_answer(device: str, why: object) -> DeviceError:
    """The error for an answer that is none."""
    return DeviceError(
        f"device {device} sent an answer that is not valid: {printable(str(why))}",
        subject=device,
        code="bad_answer",
    )


def error_of(answer: Answered, device: str) -> FedctlError:
    """The error that a status of 400 and above stands for."""
    try:
        body = decode(ErrorBody, answer.body, limit=LIMITS.json_body_bytes)
    except WireError:
        return bad_answer(device, f"HTTP status {answer.status} without a reason")
    code, hint = printable(body.code), printable(body.hint)
    text = f"device {device}: {printable(body.message)}"
    subject = printable(body.subject) or device
    if code in _REFUSALS:
        return RefusedError(text, hint=hint, subject=subject, code=code)
    if answer.status == _FORBIDDEN:
        return TrustError(text, hint=hint, subject=subject, code=code)
    if answer.status == _OVERLOADED:  # too many connections: worth another try
        return UnreachableError(text, hint=hint, subject=subject, code=code)
    return DeviceError(text, hint=hint, subject=subject, code=code)


def printable(text: str) -> str:
    """Text of a device, cut to a reason's length and without control characters for a terminal."""
    cut = text[: LIMITS.message_chars]
    return "".join(c if c.isprintable() else " " for c in cut).strip()

"""What an agent's answers become."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fedctl.core.errors import DeviceError, ExitCode, FedctlError, RefusedError, TrustError, UnreachableError
from fedctl.transport.answers import error_of, message_of
from fedctl_wire.codec import encode
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import ErrorBody, Health


def answer(status: int, body: bytes) -> SimpleNamespace:
    return SimpleNamespace(status=status, headers={}, body=body)


@pytest.mark.parametrize(
    ("status", "code", "expected", "exit_code"),
    [
        (403, "policy", RefusedError, ExitCode.REFUSED),
        (409, "refused", RefusedError, ExitCode.REFUSED),
        (403, "signature", TrustError, ExitCode.TRUST),
        (403, "role", TrustError, ExitCode.TRUST),
        (403, "not_enrolled", TrustError, ExitCode.TRUST),
        (409, "busy", DeviceError, ExitCode.PARTIAL),
        (413, "too_large", DeviceError, ExitCode.PARTIAL),
        (500, "internal", DeviceError, ExitCode.PARTIAL),
        (507, "disk_full", DeviceError, ExitCode.PARTIAL),
        (503, "connections", UnreachableError, ExitCode.UNREACHABLE),
    ],
)
def test_error_answers(status: int, code: str, expected: type[FedctlError], exit_code: ExitCode) -> None:
    body = encode(ErrorBody(code, "the cause", hint="the way out", subject="task-1"))
    error = error_of(answer(status, body), "watch-1")
    assert type(error) is expected
    assert (error.code, error.hint, error.subject) == (code, "the way out", "task-1")
    assert error.exit_code == exit_code
    assert str(error) == "device watch-1: the cause"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"code": 7, "message": "x"}', b"\xff"])
def test_an_error_without_a_reason(body: bytes) -> None:
    error = error_of(answer(500, body), "watch-1")
    assert isinstance(error, DeviceError)
    assert error.code == "bad_answer"
    assert "HTTP status 500" in error.message
    assert "watch-1" in error.message


def test_a_device_cannot_write_to_the_terminal() -> None:
    body = encode(ErrorBody("x\x1b[2J", "clear\x1b[2J\r\n" + "a" * 10_000, hint="\x07", subject="\x9b1m"))
    error = error_of(answer(500, body), "watch-1")
    shown = error.code + error.message + error.hint + error.subject
    assert shown.isprintable()
    assert len(shown) < LIMITS.message_chars + 200


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"not json", b"[1]", b'"text"', b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 100_000),
        *(b"{}", b'{"version": 1, "time": "", "boot_id": ""}'),
    ],
)
def test_a_malformed_message(body: bytes) -> None:
    with pytest.raises(DeviceError) as caught:
        message_of(Health, answer(200, body), "watch-1")
    assert caught.value.code == "bad_answer"
    assert "watch-1" in caught.value.message


def test_unknown_fields_of_a_newer_agent_are_kept() -> None:
    body = b'{"version": "9", "time": "t", "boot_id": "b", "battery": 7}'
    assert message_of(Health, answer(200, body), "watch-1").extra == {"battery": 7}

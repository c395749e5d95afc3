"""The one error of the daemon that a caller sees: an HTTP status and an `ErrorBody`."""

from __future__ import annotations

from collections.abc import Mapping

from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import ErrorBody

_STATUS_OF_CODE = {"too_large": 413, "signature": 403}


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        code: Stable word for programs.
        message: Lower case, what and why.
        hint: The way out; may be empty.
        subject: What it is about: a task, file, field; may be empty.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        hint: str = "",
        subject: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        self.body = ErrorBody(code, message[: LIMITS.message_chars], hint, subject)

    @classmethod
    def of(cls, error: WireError) -> ApiError:
        """The answer to bytes that are not what they claim to be: 400, 403 or 413."""
        return cls(_STATUS_OF_CODE.get(error.code, 400), error.code, str(error), subject=error.subject)

"""The one error of this package: bytes that are not what they claim to be."""

from __future__ import annotations


class WireError(ValueError):
    """Data from the other side is malformed, too large or not what its signature or hash says.

    Attributes:
        code: Stable word for programs, e.g. `malformed`, `too_large`, `signature`.
        subject: The field, file or name that is wrong, or "" when there is none.
    """

    def __init__(self, message: str, *, code: str = "malformed", subject: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.subject = subject

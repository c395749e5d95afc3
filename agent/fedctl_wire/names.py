"""Names of devices, models, labels and sources: one grammar, checked in one constructor."""

from __future__ import annotations

import re
from typing import Self

from fedctl_wire.errors import WireError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Name(str):
    """A checked name: `[a-z0-9][a-z0-9-]{0,62}`, safe as a file name, URL segment and shell word.

    Raises:
        WireError: With code `name` when the text is anything else.
    """

    __slots__ = ()

    def __new__(cls, text: str, *, what: str = "name") -> Self:
        """Check `text`; `what` says in the error what it names."""
        if not _NAME.fullmatch(text):
            raise WireError(
                f"{what} {text[:80]!r} is not allowed: use 1 to 63 of a-z, 0-9 and '-', "
                "not starting with '-'",
                code="name",
                subject=text[:80],
            )
        return super().__new__(cls, text)


def check_sha256(text: str, *, what: str = "sha256") -> str:
    """Return `text` when it is 64 lower-case hexadecimal digits.

    Raises:
        WireError: When it is not, so that it never reaches a path.
    """
    if not _SHA256.fullmatch(text):
        raise WireError(f"{what} {text[:80]!r} is not 64 lower-case hexadecimal digits", subject=what)
    return text

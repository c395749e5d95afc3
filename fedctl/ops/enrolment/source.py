"""The source TOML of `devices add --source`, checked before it travels.

It says where a device's own data is and cannot be replaced from afar, so a mistake in it would cost a
visit. It is read by the very code that reads it on the device; whether the path and the columns exist
only the device knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedctl.core.errors import UsageError, reason_of
from fedctl_wire.errors import WireError
from fedctl_wire.names import Name
from fedctl_wire.sources import MAX_TOML_BYTES, parse_source

_HINT = 'for example: kind = "csv", path = "/home/pi/recordings", features = ["hr", "steps"], label = "state"'


@dataclass(frozen=True, slots=True)
class Source:
    """A source TOML to copy: its file name there, and its text."""

    name: str
    text: str


def read_source(path: Path) -> Source:
    """Read a source TOML strictly.

    Raises:
        UsageError: It cannot be read, or a key is missing, unknown or wrong; names file and key.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_TOML_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the source {path}: {reason_of(error)}", subject=str(path)) from error
    try:
        name = Name(path.stem, what="source name")
    except WireError as error:
        raise UsageError(f"source {path}: {error}", subject=str(path)) from error
    try:
        parse_source(data)
    except WireError as error:
        raise UsageError(f"source {path} {error}", hint=_HINT, subject=str(path), code="source") from error
    return Source(f"{name}.toml", data.decode("utf-8-sig"))

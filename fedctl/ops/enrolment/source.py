"""The source TOML of `devices add --source`, checked before it travels.

It says where a device's own data is and cannot be replaced from afar, so a mistake in it would cost a
visit. The rules are those of `fedctl_agent.sources`, which the workstation may not import; a test holds
the two together. Whether the path exists only the device knows.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedctl.core.errors import UsageError, reason_of
from fedctl_wire.errors import WireError
from fedctl_wire.names import Name

_MAX_BYTES = 64 * 1024
_KINDS = ("npz",)
_STRINGS = ("kind", "path", "features", "label")  # all of them are needed
_FRACTION = "test_fraction"
_HINT = 'for example: kind = "npz", path = "/home/pi/recordings", features = "x", label = "y"'


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
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the source {path}: {reason_of(error)}", subject=str(path)) from error
    if len(data) > _MAX_BYTES:
        raise UsageError(f"source {path} is larger than {_MAX_BYTES} bytes", subject=str(path))
    try:
        text = data.decode("utf-8")
        table = tomllib.loads(text)
        name = Name(path.stem, what="source name")
    except (ValueError, WireError) as error:  # bad UTF-8, bad TOML, a bad name
        raise UsageError(f"source {path}: {error}", subject=str(path)) from error
    problem = _problem(table)
    if problem:
        raise UsageError(f"source {path}: {problem}", hint=_HINT, subject=str(path), code="source")
    return Source(f"{name}.toml", text)


def _problem(table: dict[str, Any]) -> str | None:
    """What is wrong with the keys and their values, naming the first such key."""
    for key in table:
        if key not in {*_STRINGS, _FRACTION}:
            return f"unknown key {key!r}"
    for key in _STRINGS:
        if key not in table:
            return f"the key {key!r} is missing"
        if not isinstance(table[key], str):
            return f"{key!r} is not a string"
    if table["kind"] not in _KINDS:
        return f"kind {table['kind']!r} is not one of {', '.join(_KINDS)}"
    fraction = table.get(_FRACTION, 0)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        return f"{_FRACTION!r} is not a number from 0 to below 1"
    return None

"""What a source file may say: `sources/NAME.toml`, read the same way on both sides.

```
kind = "csv"             # "npz", "csv" or "sqlite"
path = "/data/watch"     # a directory of such files, or one; relative to the TOML's directory
features = ["hr", "steps"]   # columns; for npz the name of one array (n, features)
label = "state"          # column or array with the classes, 0, 1, …
classes = ["calm", "ill"]    # where the label column holds words: these, for 0, 1, …

table = "samples"        # sqlite: a table or view
delimiter = ";"          # csv: one character, default ","
time = "at"              # Unix seconds (or ms, µs, ns, told by their size), or ISO 8601
group = "person"         # what belongs together: a person, a recording

window = 128             # samples; makes examples (features, window) of a sampled signal
stride = 64              # samples from one window's start to the next one's; default: the window
max_gap_s = 1.0          # no window crosses a longer pause; default: three times the usual distance

split = "time"           # the last fraction is never trained on; or "random", by `seed`
test_fraction = 0.2
seed = 0
missing = "keep"         # a missing cell counts as the mean; or "drop" the row or window
missing_values = [-1]    # that mean the same as an empty cell
max_age_days = 90        # older rows are not used
scale = "person"         # by mean and deviation of this device's training part first; default "none"
```
A key that is unknown, or has no meaning for the kind, is refused: somebody at the device has written
it for a purpose. No value becomes part of a program: names of columns and tables are looked up.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from fedctl_wire.errors import WireError

KINDS = ("npz", "csv", "sqlite")
MAX_TOML_BYTES = 16 * 1024  # of keys in one another a parser makes quadratic work
SPLITS = ("time", "random")
_SHOWN_CHARS = 200
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors begin a file with it
_MAX_COLUMNS = 10_000
_MAX_SAMPLES = 10**6  # in one window
_MAX_DAYS = 36_500.0
_LABEL_CLASSES = 1_000


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source file's content, checked; units and defaults as in the module's text."""

    kind: str
    path: str
    features: tuple[str, ...]  # columns; npz: one array
    label: str
    classes: tuple[str, ...] = ()
    table: str | None = None
    delimiter: str = ","
    time: str | None = None
    group: str | None = None
    window: int | None = None
    stride: int | None = None
    max_gap_s: float | None = None
    split: str = "time"
    test_fraction: float = 0.2
    seed: int = 0
    missing: str = "keep"
    missing_values: tuple[float | str, ...] = ()
    max_age_days: float | None = None
    scale: str = "none"

    @property
    def step(self) -> int:
        """Samples from one window's start to the next one's."""
        return self.stride or self.window or 1

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one example, as far as the file says it: not for arrays."""
        if self.kind == "npz":
            return None
        columns = (len(self.features),)
        return columns if self.window is None else (*columns, self.window)


def parse_source(data: bytes) -> SourceSpec:
    """Read the bytes of a source file strictly.

    Raises:
        WireError: `source`, naming the key that is missing, unknown or wrong.
    """
    if len(data) > MAX_TOML_BYTES:
        raise _bad(f"is larger than {MAX_TOML_BYTES} bytes")
    try:
        table = tomllib.loads(data.removeprefix(_BYTE_ORDER_MARK).decode())
    except ValueError as error:
        raise _bad(f"cannot be read: {shown(error)}") from error
    except RecursionError as error:
        raise _bad("is nested too deeply") from error
    return _spec(table)


def shown(text: object) -> str:
    """Somebody's text in a message: at most so much of it that the rest of the message is seen."""
    whole = str(text)
    return whole if len(whole) <= _SHOWN_CHARS else f"{whole[:_SHOWN_CHARS]}…"


def _bad(message: str) -> WireError:
    return WireError(message, code="source")


def _spec(table: Mapping[str, Any]) -> SourceSpec:
    for key in table.keys() - _CHECKS.keys():
        raise _bad(f"has an unknown key {shown(key)!r}")
    for field in fields(SourceSpec):
        if field.default is MISSING and field.name not in table:
            raise _bad(f"lacks the key {field.name!r}")
    spec = SourceSpec(**{key: _CHECKS[key](key, value) for key, value in table.items()})
    _check_together(spec, table)
    return spec


def _check_together(spec: SourceSpec, table: Mapping[str, Any]) -> None:
    if spec.kind == "npz" and not isinstance(table["features"], str):
        raise _bad("'features' is not one array's name, as kind 'npz' takes")
    if spec.kind == "sqlite" and spec.table is None:
        raise _bad("lacks the key 'table', which kind 'sqlite' needs")
    homes = {"table": "sqlite", "delimiter": "csv"}
    for key, kind in homes.items():
        if key in table and spec.kind != kind:
            raise _bad(f"has the key {key!r}, which only kind {kind!r} takes")
    for key, other in (
        ("stride", "window"),
        ("max_gap_s", "window"),
        ("max_age_days", "time"),
        ("max_gap_s", "time"),
    ):
        if key in table and other not in table:
            raise _bad(f"has the key {key!r}, but not {other!r}, which it needs")
    columns = [name for name in (*spec.features, spec.label, spec.time, spec.group) if name is not None]
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise _bad(f"names {shown(twice[0])!r} for two purposes")


# ------------------------------------------------------------------ one check a kind of value


def _text(key: str, value: Any) -> str:
    if type(value) is not str:
        raise _bad(f"{key!r} is not a str")
    if not value or "\0" in value:
        raise _bad(f"{key!r} is empty, or has a zero byte")
    return value


def _path(key: str, value: Any) -> str:
    if type(value) is not str:
        raise _bad(f"{key!r} is not a str")
    return value  # whatever is wrong with it only the device knows


def _texts(key: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not 1 <= len(values) <= _MAX_COLUMNS:
        raise _bad(f"{key!r} is not a str, nor a list of up to {_MAX_COLUMNS} of them")
    return tuple(_text(key, name) for name in values)


def _classes(key: str, value: Any) -> tuple[str, ...]:
    names = _texts(key, value)
    if isinstance(value, str) or not 2 <= len(set(names)) == len(names) <= _LABEL_CLASSES:
        raise _bad(f"{key!r} is not a list of two or more different words")
    return names


def _number(least: float, most: float, *, at_least: bool = True) -> Any:
    def check(key: str, value: Any) -> float:
        if type(value) not in {int, float}:
            raise _bad(f"{key!r} is not a number")
        if not (least <= value <= most and (at_least or value > least)):
            raise _bad(f"{key!r} is not a number from {least:g} to {most:g}")
        return _float(key, value)

    return check


def _fraction(key: str, value: Any) -> float:
    if type(value) not in {int, float}:
        raise _bad(f"{key!r} is not a number")
    if not 0 <= value < 1:
        raise _bad(f"{key!r} is not at least 0 and below 1")
    return float(value)


def _whole(least: int, most: int) -> Any:
    def check(key: str, value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise _bad(f"{key!r} is not a whole number from {least} to {most}")
        return value

    return check


def _word(*known: str) -> Any:
    def check(key: str, value: Any) -> str:
        if type(value) is not str:
            raise _bad(f"{key!r} is not a str")
        if value not in known:
            raise _bad(f"{key} {shown(value)!r} is not one of {', '.join(known)}")
        return value

    return check


def _delimiter(key: str, value: Any) -> str:
    if type(value) is not str or len(value) != 1 or value in '\r\n"\0' or not value.isascii():
        raise _bad(f"{key!r} is not one character")
    return value


def _sentinels(key: str, value: Any) -> tuple[float | str, ...]:
    values = value if isinstance(value, list) else [value]
    for item in values:
        if type(item) not in {int, float, str} or (isinstance(item, float) and not math.isfinite(item)):
            raise _bad(f"{key!r} is not a list of numbers and words")
    return tuple(item if isinstance(item, str) else _float(key, item) for item in values)


def _float(key: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError as error:  # a whole number of TOML may have any size
        raise _bad(f"{key!r} is a number too large") from error


_CHECKS: dict[str, Any] = {
    "kind": _word(*KINDS),
    "path": _path,
    "features": _texts,
    "label": _text,
    "classes": _classes,
    "table": _text,
    "delimiter": _delimiter,
    "time": _text,
    "group": _text,
    "window": _whole(1, _MAX_SAMPLES),
    "stride": _whole(1, _MAX_SAMPLES),
    "max_gap_s": _number(0, math.inf, at_least=False),
    "split": _word(*SPLITS),
    "test_fraction": _fraction,
    "seed": _whole(0, 2**53),
    "missing": _word("keep", "drop"),
    "missing_values": _sentinels,
    "max_age_days": _number(0, _MAX_DAYS, at_least=False),
    "scale": _word("none", "person"),
}

"""A file of devices to add, CSV or TOML: read whole and checked row by row before anything is done.

CSV has a header line; TOML an array of tables, `[[device]]`. The columns are the same: `name` and `url`,
and where wanted `labels` ("k=v;k=v", in TOML also a table), `label.KEY`, `note`, `source`, `placement`,
`host_key` and `token_file`. A cell that is empty says nothing. Paths are relative to the file.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fedctl.core.errors import FedctlError, UsageError, unreadable
from fedctl.core.selector import parse_label_changes
from fedctl.ops.devices import checked_note
from fedctl.ops.enrolment.add import checked_name
from fedctl.ops.enrolment.enrol import NewDevice
from fedctl.ops.enrolment.source import read_source
from fedctl.ops.enrolment.survey import Placement
from fedctl.transport import Endpoint
from fedctl_wire.limits import LIMITS

_MOST_BYTES = 8 * 1024 * 1024
_MOST_FAULTS = 20  # that one error lists
_COLUMNS = ("name", "url", "labels", "note", "source", "placement", "host_key", "token_file")
_LABEL = "label."
_ONLY_SSH = ("source", "placement", "host_key")
_PLACEMENTS = ("auto", "system", "user")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?")
_TABLE_HEADER = re.compile(r"\s*\[\[\s*(device|\"device\"|'device')\s*\]\]")
_HINT = (
    "columns: name, url, and where wanted labels (k=v;k=v) or label.KEY, note, source, placement, host_key"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """One device of the file."""

    line: int
    device: NewDevice
    placement: Placement | None = None  # ssh only
    host_key: str | None = None  # ssh only: "SHA256:…" that is trusted
    token_file: Path | None = None  # https only


@dataclass(frozen=True, slots=True)
class FleetFile:
    """A file's rows, each of them good."""

    path: Path
    rows: tuple[FileRow, ...]


@dataclass(slots=True)
class _Faults:
    """What is wrong, all of it, so that a file need not be mended one run a mistake."""

    path: Path
    found: list[tuple[int, str]] = field(default_factory=list)  # line, sentence

    def add(self, line: int, sentence: str) -> None:
        self.found.append((line, sentence))

    def check(self) -> None:
        """Raise what was found, if anything."""
        if not self.found:
            return
        number = len(self.found)
        lines = [f"  {self.path}:{line}: {sentence}" for line, sentence in sorted(self.found)[:_MOST_FAULTS]]
        if number > _MOST_FAULTS:
            lines.append(f"  and {number - _MOST_FAULTS} more")
        what = "1 mistake" if number == 1 else f"{number} mistakes"
        raise UsageError(
            "\n".join([f"{self.path} has {what}; nothing was done", *lines]),
            hint=_HINT,
            subject=str(self.path),
            code="fleet_file",
        )


def read_fleet_file(path: Path) -> FleetFile:
    """Read and check a fleet file.

    Raises:
        UsageError: With every row that is wrong: its line, and why.
        ConfigError: The file cannot be read.
    """
    faults = _Faults(path)
    text = _text(path)
    tables = list(_from_toml(path, text, faults) if path.suffix == ".toml" else _from_csv(path, text, faults))
    faults.check()  # a column that is wrong would only repeat itself in each row
    if not tables:
        raise UsageError(f"{path} names no device", hint=_HINT, subject=str(path), code="fleet_file")
    if len(tables) > LIMITS.cohort:
        raise UsageError(
            f"{path} names more than {LIMITS.cohort} devices", hint="split it", subject=str(path)
        )
    rows = [row for line, cells in tables if (row := _row(path.parent, line, cells, faults)) is not None]
    _check_twice(rows, faults)
    faults.check()
    return FleetFile(path, tuple(rows))


# ---------------------------------------------------------------------- the two formats


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{path} is larger than {_MOST_BYTES} bytes", hint="split it", subject=str(path))
    try:
        return data.decode("utf-8-sig")  # spreadsheets put a mark in front
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}:{line}: this is no UTF-8 text", hint="save it as CSV in UTF-8", subject=str(path)
        ) from error


def _from_csv(path: Path, text: str, faults: _Faults) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, cells by column) of each row; empty lines and those that begin with # are passed over."""
    lines = text.splitlines(keepends=True)
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    separator = ";" if "," not in first and ";" in first else ","  # what spreadsheets write in half of Europe
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    header: list[str] | None = None
    line = 1
    try:
        for record in reader:
            line, begun = reader.line_num + 1, line
            cells = [cell.strip() for cell in record]
            if not any(cells) or cells[0].startswith("#"):
                continue
            if header is None:
                header = cells
                _check_header(header, begun, faults)
            elif len(cells) > len(header):
                faults.add(begun, f"{len(cells)} cells, but the header has {len(header)} columns")
            else:
                yield begun, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        faults.add(reader.line_num, f"this is no CSV: {error}")
    if header is None:
        raise UsageError(f"{path} is empty", hint=_HINT, subject=str(path), code="fleet_file")


def _check_header(header: list[str], line: int, faults: _Faults) -> None:
    for name in ("name", "url"):
        if name not in header:
            faults.add(line, f"the header has no column {name!r}")
    for name in header:
        problem = _unknown(name)
        if problem:
            faults.add(line, problem)
        elif header.count(name) > 1:
            faults.add(line, f"the column {name!r} comes twice")
            return


def _from_toml(path: Path, text: str, faults: _Faults) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}", hint="see toml.io", subject=str(path)) from error
    for name in document:
        if name != "device":
            faults.add(_line_of(text, name), f"unknown key {name!r}; devices are [[device]] tables")
    tables = document.get("device", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        faults.add(_line_of(text, "device"), "devices are [[device]] tables")
        return
    begun = [n for n, line in enumerate(text.splitlines(), start=1) if _TABLE_HEADER.match(line)]
    for number, table in enumerate(tables):
        line = begun[number] if len(begun) == len(tables) else _line_of(text, "device")
        cells = _toml_cells(line, table, faults)
        if cells is not None:
            yield line, cells


def _toml_cells(line: int, table: Mapping[str, Any], faults: _Faults) -> dict[str, str] | None:
    """A table's values as the cells of a CSV line; labels may be a table, and whole numbers."""
    cells = {}
    for name, value in table.items():
        if name == "labels" and isinstance(value, dict):
            cells.update({f"{_LABEL}{key}": label for key, label in value.items()})
        else:
            cells[name] = value
    for name, value in cells.items():
        problem = _unknown(name)
        if name.startswith(_LABEL) and isinstance(value, int) and not isinstance(value, bool):
            cells[name] = str(value)
        elif problem is None and not isinstance(value, str):
            problem = f"{name!r} is not a string"
        if problem is not None:
            faults.add(line, problem)
            return None
    return cells


def _line_of(text: str, key: str) -> int:
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(rf"\s*\[*\s*[\"']?{re.escape(key)}\b", line):
            return number
    return 1


def _unknown(column: str) -> str | None:
    from fedctl.core.selector import near_misses

    if column in _COLUMNS or (column.startswith(_LABEL) and len(column) > len(_LABEL)):
        return None
    hint = near_misses(column.lower(), _COLUMNS)
    return f"unknown column {column!r}" + (f", {hint}" if hint else "")


# ---------------------------------------------------------------------- one row


def _row(directory: Path, line: int, cells: Mapping[str, str], faults: _Faults) -> FileRow | None:
    """A checked row; None when something was wrong with it."""
    given = {column: cell for column, cell in cells.items() if cell}
    before = len(faults.found)
    for problem in _problems(directory, given):
        faults.add(line, problem)
    if len(faults.found) > before:
        return None
    source, token = given.get("source"), given.get("token_file")
    device = NewDevice(
        name=given["name"],
        url=given["url"],
        labels=_labels(given),
        source=directory / source if source else None,
        note=given.get("note"),
    )
    return FileRow(
        line=line,
        device=device,
        placement=cast("Placement | None", given.get("placement")),
        host_key=given.get("host_key"),
        token_file=directory / token if token else None,
    )


def _problems(directory: Path, given: Mapping[str, str]) -> Iterator[str]:
    for column in ("name", "url"):
        if column not in given:
            yield f"it has no {column}"
    checks: list[Callable[[], object]] = [
        lambda: checked_name(given.get("name", "a")),
        lambda: _labels(given),
        lambda: checked_note(given.get("note", "")),
    ]
    if "source" in given:
        checks.append(lambda: read_source(directory / given["source"]))
    for check in checks:
        try:
            check()
        except FedctlError as error:
            yield error.message
    if "url" in given:
        yield from _problems_of_url(directory, given)
    if given.get("placement", "auto") not in _PLACEMENTS:
        yield f"placement {given['placement']!r} is not one of {', '.join(_PLACEMENTS)}"
    if not _FINGERPRINT.fullmatch(given.get("host_key", "SHA256:" + 43 * "A")):
        yield f"host_key {given['host_key']!r} is no SHA256:… fingerprint"


def _problems_of_url(directory: Path, given: Mapping[str, str]) -> Iterator[str]:
    """What does not fit the way to the device."""
    try:
        scheme = Endpoint.parse(given["url"]).scheme
    except UsageError as error:
        yield error.message
        return
    for column in _ONLY_SSH:
        if column in given and scheme != "ssh":
            yield f"{column} is for ssh:// devices only"
    if "token_file" in given and scheme != "https":
        yield "token_file is for https:// devices only"
    elif "token_file" in given and not (directory / given["token_file"]).is_file():
        yield f"there is no token_file {given['token_file']}"


def _labels(given: Mapping[str, str]) -> dict[str, str]:
    """The labels of a row, from both kinds of columns.

    Raises:
        UsageError: One is not of the form, or comes twice.
    """
    words = [word.strip() for word in given.get("labels", "").split(";") if word.strip()]
    words += [f"{column.removeprefix(_LABEL)}={cell}" for column, cell in given.items() if _is_label(column)]
    wrong = next((word for word in words if "=" not in word), None)
    if wrong is not None:
        raise UsageError(
            f"label {wrong!r} is not of the form key=value", hint="for example: ward=3;role=train"
        )
    return {key: value for key, value in parse_label_changes(words).items() if value is not None}


def _is_label(column: str) -> bool:
    return column.startswith(_LABEL)


def _check_twice(rows: Iterable[FileRow], faults: _Faults) -> None:
    """No name and no address may stand in two rows."""
    seen: dict[str, int] = {}
    for row in rows:
        for what, word in (("name", row.device.name), ("url", Endpoint.parse(row.device.url).url)):
            first = seen.setdefault(f"{what} {word}", row.line)
            if first != row.line:
                faults.add(row.line, f"{what} {word} stands in line {first} already")

"""Rows as they come out of a source: columns of numbers, and how they grow cell by cell.

Everything is kept in arrays of the size that training needs (float32 cells), never as Python objects;
the growing arrays become NumPy's without a copy. NumPy is loaded when the last row is in.
"""

from __future__ import annotations

import math
import resource
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fedctl_agent.trainers.contract import JobError, refuse
from fedctl_wire.limits import MIB
from fedctl_wire.sources import SourceSpec, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedctl_agent.sources.source import Source

UNLABELLED = -1
LABELS = 10_000  # classes that a label column may have
_ARRAY_BYTES = 1024 * MIB
_ROOM_ROWS = 1024  # how often the room is looked at
_TOLERATED = 10  # one row in so many may be unreadable: a wearable's battery dies in the middle of a line
_MISSING_WORDS = frozenset({"", "na", "n/a", "nan", "null", "none", "nil", "?", "-", "--"})
_DATES = (19_000_101, 21_001_231)  # numbers that may be dates without separators
_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))  # a time of this size or more is in 1/so many seconds


@dataclass(slots=True)
class Rows:
    """What a source holds, in its own order; `arrange` takes it apart."""

    x: NDArray[np.float32]  # (rows, features), or (rows, features, samples) for windows that were saved
    y: NDArray[np.int64]  # (rows,); UNLABELLED where the cell is missing
    time: NDArray[np.float64] | None = None  # (rows,), Unix seconds
    group: NDArray[np.int32] | None = None  # (rows,), a number for each group
    unreadable: int = 0  # rows left out
    old: int = 0  # rows left out for their age


class RowBuilder:
    """Takes rows of cells, each `(*features, label, time?, group?)`, and becomes `Rows`."""

    def __init__(self, source: Source, features: Sequence[str], oldest: float | None) -> None:
        self._source = source
        self._spec = source.spec
        self._names = (*features, *asked_columns(source.spec))
        self._count = len(features)
        self._oldest = -math.inf if oldest is None else oldest
        numbers = {value for value in source.spec.missing_values if not isinstance(value, str)}
        words = {value for value in source.spec.missing_values if isinstance(value, str)}
        self._missing = frozenset(numbers), frozenset(word.strip().lower() for word in words) | _MISSING_WORDS
        self._classes = {word: number for number, word in enumerate(source.spec.classes)}
        self._groups: dict[Any, int] = {}
        self._x, self._y, self._time, self._group = array("f"), array("q"), array("d"), array("i")
        self._unreadable = self._old = 0
        self._first_fault: tuple[str, str] | None = None
        self._times = Times(f"source {source.name!r}: {shown(source.spec.time)!r}")
        self._room = room()

    def add(self, cells: Sequence[Any], where: str, line: int) -> None:
        """Take one row; `where` and `line` say in a message which one it is."""
        fault = self._count
        try:
            y = self._label(cells[fault])
            fault += 1
            moment = self._times.take(cells[fault]) if self._spec.time else 0.0
            fault = -1
            values = self._numbers(cells)
        except (ValueError, TypeError, OverflowError):
            self.skip(where, line, f"column {shown(self._fault(fault, cells))!r} cannot be read")
            return
        if self._spec.time and moment < self._oldest:
            self._old += 1
            return
        self._x.extend(values)
        self._y.append(y)
        if self._spec.time:
            self._time.append(moment)
        if self._spec.group:
            self._group.append(self._groups.setdefault(cells[-1], len(self._groups)))
        if len(self._y) % _ROOM_ROWS == 0 and len(self._x) * self._x.itemsize > self._room:
            raise JobError("data", f"source {self._source.name!r} has more than {self._room} bytes of rows")

    def skip(self, where: str, line: int, why: str) -> None:
        """Leave a row out, for this reason."""
        self._unreadable += 1
        if self._first_fault is None:
            self._first_fault = (f"{where} row {line}", why)

    def finish(self) -> Rows:
        """All rows.

        Raises:
            JobError: `data` when too many could not be read; refused, `no_data`, when there are none.
        """
        import numpy as np

        rows = len(self._y)
        if self._first_fault and self._unreadable * _TOLERATED > rows + self._old + self._unreadable:
            place, why = self._first_fault
            raise JobError("data", f"{place}: {why}, as {self._unreadable} rows")
        if not rows:
            raise no_examples(self._source, self._old)
        x = np.frombuffer(self._x, np.float32).reshape(rows, self._count)
        time = np.frombuffer(self._time, np.float64) if self._spec.time else None
        group = np.frombuffer(self._group, np.int32) if self._spec.group else None
        infinite_is_missing(x)
        y = np.frombuffer(self._y, np.int64)
        return Rows(x, y, time, group, self._unreadable, self._old)

    def _numbers(self, cells: Sequence[Any]) -> Sequence[float]:
        if not self._missing[0]:
            try:
                return [*map(float, cells[: self._count])]
            except (ValueError, TypeError):
                pass  # most rows have no missing cell, and no word in them
        return [self._number(cell) for cell in cells[: self._count]]

    def _fault(self, at: int, cells: Sequence[Any]) -> str:
        """The name of the column that cannot be read; `at` is -1 when it is one of the features."""
        if at >= 0:
            return self._names[at]
        for name, cell in zip(self._names, cells, strict=False):
            try:
                self._number(cell)
            except (ValueError, TypeError, OverflowError):
                return name
        raise AssertionError

    def _number(self, cell: Any) -> float:
        numbers, words = self._missing
        try:
            value = float(cell)
        except (ValueError, TypeError):
            if cell is None or (isinstance(cell, str) and cell.strip().lower() in words):
                return math.nan
            raise
        return math.nan if value in numbers else value

    def _label(self, cell: Any) -> int:
        if self._classes and isinstance(cell, str) and cell.strip() in self._classes:
            return self._classes[cell.strip()]
        value = self._number(cell)
        if math.isnan(value):
            return UNLABELLED
        if self._classes or not value.is_integer() or not 0 <= value < LABELS:
            raise ValueError
        return int(value)


def asked_columns(spec: SourceSpec) -> tuple[str, ...]:
    """The columns beside the features: label, and time and group where there are."""
    return tuple(name for name in (spec.label, spec.time, spec.group) if name is not None)


class Times:
    """The times of one column: as `seconds_of`, but numbers such as 20240131 throughout are dates.

    As seconds they all lie in 1970. A column whose first number is such a one and that goes on with others
    is refused: whether it has dates with a slip or seconds, nobody can tell.

    Args:
        what: The column, for the message.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._dates: bool | None = None  # as the first number says

    def take(self, cell: Any) -> float:
        """Unix seconds of the next cell.

        Raises:
            JobError: `data` when it cannot be told whether the column has dates.
            ValueError: It is no time.
            TypeError: Likewise.
        """
        moment = seconds_of(cell)
        if self._dates is False or _is_text(cell):
            return moment
        date = _date_of(moment)
        if date is None and self._dates:
            raise JobError(
                "data",
                f"{self._what} begins with numbers that read as dates, as 20240131 does, and goes on with "
                "others: write dates as 2024-01-31, or all times in seconds",
            )
        self._dates = date is not None
        return moment if date is None else date


def _is_text(cell: Any) -> bool:
    """Whether a time is a text, not a number or the text of one."""
    try:
        float(cell)
    except ValueError:
        return True
    return False


def _date_of(number: float) -> float | None:
    """Unix seconds of the start, in UTC, of the day of 20240131; None where it reads as none."""
    if not _DATES[0] <= number <= _DATES[1] or not number.is_integer():
        return None
    year, rest = divmod(int(number), 10_000)
    try:
        return datetime(year, *divmod(rest, 100), tzinfo=UTC).timestamp()
    except ValueError:
        return None


def seconds_of(cell: Any) -> float:
    """Unix seconds of a time: a number of seconds, ms, µs or ns, told by its size, or ISO 8601.

    A text without a time zone is UTC.

    Raises:
        ValueError: It is none.
        TypeError: Likewise.
    """
    try:
        value = float(cell)
    except ValueError:
        moment = datetime.fromisoformat(cell.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(value):
        raise ValueError
    for size, per_second in _UNITS:
        if abs(value) >= size:
            return value / per_second
    return value


def infinite_is_missing(x: NDArray[np.float32]) -> None:
    """Make what float32 cannot hold NaN, in place and block by block."""
    import numpy as np

    step = max(1, MIB // max(1, x[:1].nbytes))
    for start in range(0, len(x), step):
        block = x[start : start + step]
        block[np.isinf(block)] = np.nan


def room() -> int:
    """Bytes that the arrays of a source may take: what is compressed may claim any size."""
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return _ARRAY_BYTES if soft == resource.RLIM_INFINITY else min(_ARRAY_BYTES, soft)


def no_examples(source: Source, old: int = 0) -> JobError:
    """The refusal of a source that is there, but empty."""
    why = f": all {old} rows are older than {source.spec.max_age_days:g} days" if old else ""
    return refuse("no_data", f"source {source.name!r} holds no examples{why}")

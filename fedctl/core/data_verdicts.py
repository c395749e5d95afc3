"""What a device's data are good for: verdicts over a report of counts, as a person would give them.

Pure. A verdict that is `bad` means that the device will refuse or fail; a `note` that somebody should look.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fedctl_wire.messages import DataNeeds, DataReport, SourceFacts, SourceReport

DAY_S = 86_400.0
_RARE = 0.05  # a class with a smaller share of the examples
_OFTEN_MISSING = 0.2  # of all cells, or of one feature's
_LATE_S = 2 * DAY_S  # a recorder that writes has something newer
_AGES_S = 1000 * 365.25 * DAY_S  # no recorder has run so long: more is no length of time
_LISTED = 3  # names in a sentence


class Mark(StrEnum):
    """How good a finding is."""

    GOOD = "good"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One verdict."""

    mark: Mark
    subject: str  # error, rows, schema, labels, missing, gaps, age, unreadable, policy
    text: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model that the data are held against."""

    model: str  # e.g. "health@1"
    needs: DataNeeds


def age_s(report: DataReport, source: SourceReport) -> float | None:
    """Seconds since the newest row, by the device's clock; None without times."""
    if source.facts is None or source.facts.last is None:
        return None
    return _seconds(report.time) - _seconds(source.facts.last)


def days(source: SourceReport) -> float | None:
    """From the oldest to the newest row; None without times."""
    facts = source.facts
    if facts is None or facts.first is None or facts.last is None:
        return None
    return (_seconds(facts.last) - _seconds(facts.first)) / DAY_S


def missing_share(source: SourceReport) -> float | None:
    """The share of cells that are missing; None where nobody says."""
    if source.facts is None or not source.rows:
        return None
    features = source.shape[0] if source.shape else len(source.features)
    samples = 1 if source.kind != "npz" or not source.shape else _product(source.shape[1:])
    return sum(source.facts.missing.values()) / max(1, source.rows * features * samples)


def judge(
    report: DataReport, source: SourceReport, wanted: Wanted | None, *, trains: bool = True
) -> tuple[Finding, ...]:
    """All findings about one source of a device.

    Args:
        report: Of the device.
        source: One of its sources.
        wanted: The model that should learn from it, if one was named.
        trains: Whether the device trains; else all its examples are there to measure with.
    """
    if source.error is not None:
        return (Finding(Mark.BAD, "error", source.error.message),)
    found = [*_schema(source, wanted), *_rows(report, source, trains=trains)]
    if source.facts is None:
        return (*found, Finding(Mark.NOTE, "policy", "its policy keeps times, labels and gaps to itself"))
    needs = wanted.needs if wanted else None
    return (
        *found,
        *_labels(source, source.facts, needs),
        *_missing(source, source.facts),
        *_gaps(source.facts),
        *_age(age_s(report, source)),
        *_left_out(source.facts),
    )


def _schema(source: SourceReport, wanted: Wanted | None) -> Iterator[Finding]:
    if wanted is None:
        return
    problem = _misfit(source, wanted.needs)
    if problem:
        yield Finding(Mark.BAD, "schema", f"does not fit {wanted.model}: {problem}")
    else:
        yield Finding(Mark.GOOD, "schema", f"schema fits {wanted.model}")


def _misfit(source: SourceReport, needs: DataNeeds) -> str | None:
    """Why a device with this source would decline; the device itself has the last word."""
    if source.classes and len(source.classes) != needs.classes:
        return f"{len(source.classes)} classes, the model has {needs.classes}"
    shape = source.shape
    if needs.features and source.kind == "npz":
        return f"an array has no names of columns, the model takes {_few(list(needs.features))}"
    if needs.features:
        lacking = [name for name in needs.features if name not in source.features]
        if lacking:
            return f"it lacks {_few(lacking)}"
        shape = (len(needs.features), *(shape or ())[1:])
    if shape is not None and shape != needs.input_shape:
        return f"examples of {_shape(shape)}, the model takes {_shape(needs.input_shape)}"
    return None


def _rows(report: DataReport, source: SourceReport, *, trains: bool) -> Iterator[Finding]:
    count = source.training if trains else source.examples
    if count < max(1, report.min_examples):
        what = "examples to train on" if trains else "examples"
        yield Finding(Mark.BAD, "rows", f"{count} {what}, its policy asks for {report.min_examples}")


def _labels(source: SourceReport, facts: SourceFacts, needs: DataNeeds | None) -> Iterator[Finding]:
    if facts.labels is None:
        return
    name = f'label "{source.label}"' if source.label else "label"
    counts, total = facts.labels, sum(facts.labels.values())
    known = source.classes or tuple(str(y) for y in range(needs.classes if needs else 0))
    if needs and not source.classes and (beyond := [y for y in counts if int(y) >= needs.classes]):
        yield Finding(Mark.BAD, "labels", f"{name} has classes that the model lacks: {_few(beyond)}")
        return
    absent = [y for y in known if y not in counts]
    if len(counts) < 2 or absent:
        only = f"only class {next(iter(counts))}" if len(counts) == 1 else f"no example of {_few(absent)}"
        yield Finding(Mark.NOTE, "labels", f"{name}: {only}")
        return
    yield _balance(name, counts, total, two=set(counts) == {"0", "1"})


def _balance(name: str, counts: dict[str, int], total: int, *, two: bool) -> Finding:
    rarest = min(counts, key=lambda y: (counts[y], y))
    mark = Mark.NOTE if counts[rarest] < _RARE * total else Mark.GOOD
    if two:
        return Finding(mark, "labels", f"{name}: {_percent(counts['1'], total)} positive ({counts['1']})")
    share = _percent(counts[rarest], total)
    return Finding(mark, "labels", f"{name}: {len(counts)} classes, {rarest} the rarest with {share}")


def _missing(source: SourceReport, facts: SourceFacts) -> Iterator[Finding]:
    share = missing_share(source) or 0.0
    empty = [name for name, count in facts.missing.items() if count >= source.rows]
    often = [name for name, count in facts.missing.items() if count > _OFTEN_MISSING * source.rows]
    if empty:
        yield Finding(Mark.NOTE, "missing", f"no value at all for {_few(empty)}")
    elif often:
        yield Finding(Mark.NOTE, "missing", f"{_percent(share, 1)} of cells missing, most of {_few(often)}")
    else:
        text = f"{_percent(share, 1)} of cells missing" if share else "no cell missing"
        yield Finding(Mark.GOOD, "missing", text)


def _gaps(facts: SourceFacts) -> Iterator[Finding]:
    if facts.gaps is None or facts.gap_s is None:
        return
    if facts.gap_s >= _AGES_S:
        text = f"its times make no sense: rows are {span(facts.gap_s)} apart"
        yield Finding(Mark.NOTE, "gaps", text)
        return
    if not facts.gaps:
        yield Finding(Mark.GOOD, "gaps", f"no gaps over {span(facts.gap_s)}")
        return
    word = "gap" if facts.gaps == 1 else "gaps"
    longest = f", the longest {span(facts.longest_gap_s)}" if facts.longest_gap_s else ""
    yield Finding(Mark.NOTE, "gaps", f"{facts.gaps} {word} over {span(facts.gap_s)}{longest}")


def _age(seconds: float | None) -> Iterator[Finding]:
    if seconds is None:
        return
    if seconds > _LATE_S:
        yield Finding(Mark.NOTE, "age", f"nothing new for {span(seconds)}: does the recorder run?")
    elif seconds < -DAY_S:
        yield Finding(Mark.NOTE, "age", f"the newest row is {span(-seconds)} ahead of the device's clock")


def _left_out(facts: SourceFacts) -> Iterator[Finding]:
    if facts.unreadable_rows:
        yield Finding(Mark.NOTE, "unreadable", f"{facts.unreadable_rows} rows cannot be read")


def span(seconds: float) -> str:
    """A length of time in its largest fitting unit, e.g. `2 h`, `96 days`."""
    if seconds >= _AGES_S:
        return "over 1000 years"
    for size, unit in ((DAY_S, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= (2 * size if unit == "days" else size):
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.3g} s"


def since(seconds: float) -> str:
    """How long ago that was; a moment by a clock ahead of this one is told as such."""
    return f"{span(seconds)} ago" if seconds >= 0 else f"{span(-seconds)} in the future"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _shape(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} features" if len(shape) == 1 else " x ".join(map(str, shape))


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()

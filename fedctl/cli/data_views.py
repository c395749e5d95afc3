"""How the results of `fedctl data` look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fedctl.cli.device_views import NO_DEVICES, error_json, exit_of, reasons, short
from fedctl.cli.output import Column, Details, Table, View
from fedctl.core.data_verdicts import Finding, Mark, age_s, days, missing_share, since
from fedctl.core.errors import DeviceError, ExitCode, FedctlError
from fedctl_wire.codec import Json, to_json

if TYPE_CHECKING:
    from fedctl.ops.data import DataCheck, SourceCheck

_MARKS = {Mark.GOOD: "✓", Mark.NOTE: "!", Mark.BAD: "✗"}
_COLUMNS = (
    Column("name"),
    Column(""),
    Column("source", drop=3),
    Column("examples", right=True),
    Column("days", right=True, drop=2),
    Column("newest", drop=1),
    Column("missing (%)", right=True, drop=4),
    Column("model", drop=5),
    Column("error"),
)
Cells = tuple[str | None, ...]


def checked(outcomes: Sequence[DataCheck]) -> View:
    """Devices' data; names are those that can take part."""
    rows: list[Json] = [_json(outcome) for outcome in outcomes]
    if len(outcomes) == 1:
        blocks: list[Table | Details | Sequence[str]] = [list(_sentences(outcomes[0]))]
    else:
        cells = [row for outcome in outcomes for row in _cells(outcome)]
        blocks = [Table(_COLUMNS, cells), Details([e for o in outcomes for e in _remarks(o)])]
    why = reasons([(o.device, o.error) for o in outcomes])
    return View(
        {"devices": rows},
        [*blocks, why],
        rows,
        [o.device for o in outcomes if o.usable],
        nothing=NO_DEVICES,
        exit_code=exit_of([_problem(o) for o in outcomes]),
    )


def checked_here(outcome: DataCheck) -> View:
    """The data of a source file on this machine."""
    body = _json(outcome)
    code = ExitCode.OK if outcome.usable else ExitCode.PARTIAL
    return View(body, [list(_sentences(outcome))], [body], exit_code=code)


def _problem(outcome: DataCheck) -> FedctlError | None:
    """What makes the command fail: no answer, or data that cannot be trained on."""
    if outcome.error is not None or outcome.usable:
        return outcome.error
    return DeviceError(f"device {outcome.device} cannot train on its data", subject=outcome.device)


def _sentences(outcome: DataCheck) -> Iterator[str]:
    yield outcome.device
    if outcome.error is None and not outcome.sources:
        yield f"  ✗ no source of data: {_way_to_source(outcome)}"
    for check in outcome.sources:
        yield f'  source "{check.report.source}"   {_summary(outcome, check)}'.rstrip()
        for finding in check.findings:
            yield f"  {_MARKS[finding.mark]} {finding.text}"


def _way_to_source(outcome: DataCheck) -> str:
    """Only a device with a login takes a source file from here."""
    if outcome.scheme == "ssh":
        return f"put a TOML there, or fedctl devices add {outcome.device} URL --source FILE"
    return "put a TOML into sources/ of its agent's state directory, at the device"


def _summary(outcome: DataCheck, check: SourceCheck) -> str:
    source = check.report
    if source.error is not None or outcome.report is None:
        return ""
    parts = [f"{source.rows:,} rows"]
    if source.examples != source.rows:
        parts.append(f"{source.examples:,} examples")
    covered, age = days(source), age_s(outcome.report, source)
    if covered is not None:
        parts.append(f"{covered:.0f} days" if covered >= 2 else f"{covered * 24:.0f} h")
    if age is not None:
        parts.append(f"last one {since(age)}")
    return ", ".join(parts)


def _cells(outcome: DataCheck) -> Iterator[Cells]:
    if outcome.error is not None or not outcome.sources:
        problem = short(outcome.error) or "no source"
        yield (outcome.device, "✗", None, None, None, None, None, None, problem)
    for check in outcome.sources:
        source, report = check.report, outcome.report
        covered, share = days(source), missing_share(source)
        age = age_s(report, source) if report else None
        error = source.error.code.replace("_", " ") if source.error else None
        yield (
            outcome.device,
            _MARKS[_worst(check.findings)],
            source.source,
            None if source.error else f"{source.examples:,}",
            None if covered is None else f"{covered:.0f}",
            None if age is None else since(age),
            None if share is None else f"{100 * share:.1f}",
            check.model,
            error,
        )


def _remarks(outcome: DataCheck) -> Iterator[tuple[str, Sequence[str]]]:
    """Below the table: whatever is not good."""
    for check in outcome.sources:
        noted = [f"{_MARKS[f.mark]} {f.text}" for f in check.findings if f.mark is not Mark.GOOD]
        if noted:
            name = outcome.device if len(outcome.sources) == 1 else f"{outcome.device} {check.report.source}"
            yield name, noted


def _worst(findings: Sequence[Finding]) -> Mark:
    marks = {finding.mark for finding in findings}
    return Mark.BAD if Mark.BAD in marks else Mark.NOTE if Mark.NOTE in marks else Mark.GOOD


def _json(outcome: DataCheck) -> dict[str, Json]:
    report = outcome.report
    return {
        "name": outcome.device,
        "usable": outcome.usable,
        "time": report.time if report else None,
        "min_examples": report.min_examples if report else None,
        "sources": [
            {**to_json(check.report), "model": check.model, "findings": to_json(check.findings)}
            for check in outcome.sources
        ],
        "error": error_json(outcome.error),
    }

"""How the findings of `fedctl devices check` look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedctl.cli.device_views import NO_DEVICES, beside, error_json, exit_of
from fedctl.cli.output import Flow, View
from fedctl.core.check_verdicts import Finding, Verdict
from fedctl_wire.codec import Json

if TYPE_CHECKING:
    from fedctl.ops.check import DeviceCheck

_MARKS = {Verdict.WELL: "✓", Verdict.NOTE: "!", Verdict.FAILED: "✗", Verdict.NOT_REACHED: "·"}
_TITLES = {"host_key": "host key", "tls": "TLS", "cgroup": "cgroups"}
_INDENT = "  "


@dataclass(frozen=True, slots=True)
class _Report:
    """One device: what is well in few lines, each other finding on its own with its way out."""

    result: DeviceCheck
    named: bool

    def lines(self, width: int) -> Iterator[str]:
        """Lay it out in `width` columns."""
        if self.named:
            yield f"{self.result.device}   {self.result.url}"
        well: list[str] = []
        for finding in self.result.findings:
            if finding.verdict is Verdict.WELL:
                well.append(f"✓ {finding.text}")
            elif finding.verdict is not Verdict.NOT_REACHED or finding.text:
                yield from Flow(well, _INDENT).lines(width)
                well = []
                yield from self._alone(finding, width)
        yield from Flow(well, _INDENT).lines(width)
        unseen = [_title(f) for f in self.result.findings if f.verdict is Verdict.NOT_REACHED and not f.text]
        if unseen:
            yield from Flow([f"· not reached: {', '.join(unseen)}"], _INDENT).lines(width)

    def _alone(self, finding: Finding, width: int) -> Iterator[str]:
        text = beside(self.result.device, finding.text)
        title = f"{_title(finding)}: " if finding.verdict is Verdict.FAILED else ""
        title = "" if text.startswith(_title(finding)) else title
        yield from Flow([f"{_MARKS[finding.verdict]} {title}{text}"], _INDENT).lines(width)
        if finding.hint:
            yield from Flow([finding.hint], 2 * _INDENT).lines(width)


def checked(results: Sequence[DeviceCheck]) -> View:
    """Findings by device; names are the devices with which nothing is wrong."""
    rows: list[Json] = [_json(result) for result in results]
    named = len(results) > 1
    return View(
        {"devices": rows},
        [_Report(result, named=named) for result in results],
        rows,
        [result.device for result in results if result.error is None],
        nothing=NO_DEVICES,
        exit_code=exit_of([result.error for result in results]),
    )


def _title(finding: Finding) -> str:
    return _TITLES.get(finding.check, finding.check)


def _json(result: DeviceCheck) -> Json:
    return {
        "name": result.device,
        "url": result.url,
        "reached": result.reached,
        "checks": [
            {"check": f.check, "verdict": f.verdict, "text": f.text or None, "hint": f.hint or None}
            for f in result.findings
        ],
        "error": error_json(result.error),
    }

"""How rounds look: a table that grows while they run, lists, and one round in full."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedctl.cli.device_views import beside, seconds
from fedctl.cli.output import Column, Details, Lines, Table, View, facts
from fedctl.cli.screen import Screen, cells, clip, write
from fedctl.cli.units import byte_count, duration, fixed
from fedctl.core.errors import ExitCode, NotMetError
from fedctl.core.progress import Event, Note, RoundEnded, RoundStarted
from fedctl.core.round_records import RoundPhase
from fedctl_wire.codec import Json, to_json

if TYPE_CHECKING:
    from fedctl.cli.command import Session
    from fedctl.cli.progress import Watcher
    from fedctl.core.round_records import RoundSummary
    from fedctl.ops.round_results import RoundDetail, RoundDeviceReport, RunResult

_LEVELS = "▁▂▃▄▅▆▇█"
_NO_ROUNDS = "no rounds yet: fedctl round start MODEL"
_REASON_CELLS = 24  # of a reason in the table of devices; a longer one stands below it whole


class RoundTable:
    """An observer that writes one row to stdout as each round ends, and leaves the rest to a watcher.

    Only in table form and without `-q`: programs get everything at the end.
    """

    def __init__(self, session: Session, watcher: Watcher, *, indent: str = "", people: str = "") -> None:
        self._silent = session.quiet or session.machine
        self._watcher = watcher
        self._indent = indent
        self._people = people  # who the score is measured on
        self._begun = False

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, RoundStarted):
            self._watcher.forget()
            if event.rounds == 1:
                self._watcher(Note(_opening(event)))
        elif isinstance(event, RoundEnded):
            self._watcher.forget()
            self._end(event.summary)
        else:
            self._watcher(event)

    def _end(self, summary: RoundSummary) -> None:
        if self._silent or summary.phase is not RoundPhase.PUBLISHED:
            return  # a round that failed is told of in the error
        screen = Screen.of(sys.stdout)
        score = "accuracy" if summary.auroc is None else "AUROC"
        title = f"{score} ({self._people})" if self._people else score
        columns = (
            Column("round", width=5),
            Column("devices", width=7),
            Column("loss", width=5),
            Column(title, width=8),
            *([] if self._people else [Column("F1", width=5, drop=1)]),
            Column("up", right=True, width=7),
            Column("time", right=True, width=6 if self._people else 10),
        )
        row = (
            str(summary.id),
            f"{summary.contributors}/{summary.cohort}",
            fixed(summary.loss, 3),
            _score(summary) or "not measured",
            *([] if self._people else [fixed(summary.macro_f1, 3)]),
            byte_count(summary.bytes_up),
            duration(summary.duration_s),
        )
        lines = list(Table(columns, [row]).lines(screen.columns - len(self._indent)))
        head = [] if self._begun else ["", lines[0]] if self._indent else [lines[0]]
        self._begun = True
        write(sys.stdout, [screen.paint(f"{self._indent}{line}".rstrip()) for line in (*head, *lines[1:])])


def ran(result: RunResult, *, strict: bool) -> View:
    """The outcome of `round start`.

    Raises:
        NotMetError: The last round was not published, or the target was not reached.
    """
    rounds = (*result.resumed, *result.rounds)
    body = {
        "rounds": to_json(result.rounds),
        "resumed": to_json(result.resumed),
        "until": result.until,
        "until_met": result.until_met,
        "skipped": result.skipped,
    }
    if result.skipped:
        return View(body, [["another run has the model: skipped"]], [], action=True)
    if result.rounds:
        check_published(result.rounds[-1])
    if result.until_met is False:
        last = result.rounds[-1]
        raise NotMetError(
            f"target {result.until} not reached after {_count(len(result.rounds))}: {_measures(last)}",
            hint=f"{_standing(last)}; go on with: fedctl round start {last.model}",
            subject=last.model,
            code="target",
        )
    names = [f"{r.model}@{r.result_version}" for r in rounds if r.result_version is not None]
    partial = strict and any(summary.dropped or summary.unmeasured for summary in rounds)
    met = [f"target {result.until} met after {_count(len(result.rounds))}"] if result.until_met else []
    return View(
        body,
        [Lines([*closing(result.rounds[-1:]), *met])],
        to_json(rounds),
        names[-1:],
        action=True,
        warnings=_unmeasured(rounds),
        exit_code=ExitCode.PARTIAL if partial else ExitCode.OK,
    )


def resumed(rounds: Sequence[RoundSummary]) -> View:
    """The rounds that `round resume` finished.

    Raises:
        NotMetError: One of them was not published.
    """
    for summary in rounds:
        check_published(summary)
    lines = closing(rounds) if rounds else ["no round is unfinished"]
    rows: list[Json] = to_json(tuple(rounds))
    numbers = [str(r.id) for r in rounds]
    return View({"rounds": rows}, [Lines(lines)], rows, numbers, action=True, warnings=_unmeasured(rounds))


def cancelled(summary: RoundSummary) -> View:
    """A round that `round cancel` ended, or found ended."""
    row = to_json(summary)
    verb = "cancelled" if summary.phase is RoundPhase.CANCELLED else f"had ended: {summary.phase}"
    lines = [f"round {summary.id} {verb}; {_standing(summary)}"]
    return View({"round": row}, [Lines(lines)], [row], [str(summary.id)], action=True)


def listed(rounds: Sequence[RoundSummary]) -> View:
    """Rounds, one a row."""
    columns = (
        Column("round", right=True),
        Column("model"),
        Column("phase"),
        Column("devices", right=True),
        Column("loss", right=True, drop=1),
        Column("AUROC", right=True, drop=2),
        Column("F1", right=True, drop=4),
        Column("accuracy", right=True, drop=3),
        Column("up", right=True, drop=6),
        Column("time", right=True, drop=5),
        Column("started", drop=7),
    )
    lines = [
        (
            str(r.id),
            r.model if r.result_version is None else f"{r.model}@{r.result_version}",
            r.phase,
            f"{r.contributors}/{r.cohort}",
            fixed(r.loss, 3),
            fixed(r.auroc, 3),
            fixed(r.macro_f1, 3),
            fixed(r.accuracy, 3),
            byte_count(r.bytes_up),
            duration(r.duration_s),
            seconds(r.started_at),
        )
        for r in rounds
    ]
    rows: list[Json] = to_json(tuple(rounds))
    numbers = [str(r.id) for r in rounds]
    return View({"rounds": rows}, [Table(columns, lines)], rows, numbers, nothing=_NO_ROUNDS)


def shown(detail: RoundDetail) -> View:
    """One round with its devices."""
    r = detail.summary
    pairs = (
        ("round", str(r.id)),
        ("model", f"{r.model}, from {r.model}@{r.base_version}"),
        ("phase", f"{r.phase}: {r.reason}" if r.reason else r.phase),
        ("result", None if r.result_version is None else f"{r.model}@{r.result_version}"),
        ("gate", r.gate),
        ("devices", f"{r.contributors} of {r.cohort} contributed, {r.evaluated} evaluated"),
        ("loss", _change(r.loss, r.loss_before)),
        ("AUROC", _change(r.auroc, r.auroc_before)),
        ("F1 (macro)", _change(r.macro_f1, r.macro_f1_before)),
        ("accuracy", fixed(r.accuracy, 3)),
        ("attempt", str(r.attempt)),
        ("started", seconds(r.started_at)),
        ("ended", seconds(r.ended_at)),
        ("time", duration(r.duration_s)),
        ("traffic", f"{byte_count(r.bytes_up)} up, {byte_count(r.bytes_down)} down"),
        ("plan", r.plan),
        ("training", _words(detail.plan.get("train"))),
        ("rules", _words(detail.plan.get("rules"))),
    )
    body = {"round": to_json(r), "plan": detail.plan, "devices": to_json(detail.devices)}
    long = [(d.device, beside(d.device, d.reason)) for d in detail.devices if d.reason]
    below = Details([(name, (reason,)) for name, reason in long if cells(reason) > _REASON_CELLS])
    return View(body, [facts(pairs), _device_table(detail.devices), below], [body], [str(r.id)])


def watched(summary: RoundSummary) -> View:
    """A round that `round watch` followed to its end, or that nobody drives.

    Raises:
        NotMetError: It ended and was not published.
    """
    if summary.phase.final:
        check_published(summary)
    row = to_json(summary)
    return View({"round": row}, [Lines(closing([summary]))], [row], [str(summary.id)])


def check_published(summary: RoundSummary) -> None:
    """Let only a published round pass.

    Raises:
        NotMetError: Naming the round, the cause and each device that dropped out.
    """
    if summary.phase is RoundPhase.PUBLISHED:
        return
    causes = [d for d in summary.dropped if d.reason != summary.reason]  # the rest only follow from it
    dropped = "".join(f"\n  {d.device}  {beside(d.device, d.reason or 'dropped')}" for d in causes)
    reason = f": {summary.reason}" if summary.reason not in {None, "", summary.phase.value} else ""
    raise NotMetError(
        f"round {summary.id} of {summary.model} {_verb(summary.phase)}{reason}{dropped}",
        hint=f"{_standing(summary)}; see: fedctl round show {summary.id}",
        subject=summary.model,
        code=summary.phase.value,
    )


def closing(rounds: Sequence[RoundSummary]) -> list[str]:
    """The last lines of a run: what is published, and who dropped out."""
    lines = []
    for r in rounds:
        parts = [
            f"published {r.model}@{r.result_version}"
            if r.phase is RoundPhase.PUBLISHED  # a candidate that waits for its gate has a version too
            else f"round {r.id}: {r.phase}",
            f"{r.contributors} of {r.cohort}",
            *([_measures(r)] if r.loss is not None else []),
            *([f"gate {r.gate}"] if r.gate == "none" else []),
            duration(r.duration_s) or "",
            f"up {byte_count(r.bytes_up)}",
        ]
        lines.append("   ".join(filter(None, parts)))
        lines += [
            f"dropped {d.device}: {beside(d.device, d.reason or 'no reason is known')}" for d in r.dropped
        ]
    return lines


def _unmeasured(rounds: Sequence[RoundSummary]) -> list[str]:
    """What nobody should overlook: a gate that was to be held and was not."""
    return [
        f"{r.model}@{r.result_version} is published unmeasured: none of its {r.holdout} hold-out devices "
        f"answered (round {r.id}, gate none)"
        if r.holdout > 1
        else f"{r.model}@{r.result_version} is published unmeasured: its only hold-out device did not "
        f"answer (round {r.id}, gate none)"
        for r in rounds
        if r.unmeasured
    ]


def _count(rounds: int) -> str:
    return "1 round" if rounds == 1 else f"{rounds} rounds"


def _opening(event: RoundStarted) -> str:
    holdout = f", {len(event.holdout)} evaluate" if event.holdout else ""
    verb = "goes on" if event.resumed else "starts"
    return (
        f"round {event.round_id} {verb}   plan {event.plan[:8]}…   base {event.model}@{event.base_version}   "
        f"{len(event.train)} train{holdout}"
    )


def _score(summary: RoundSummary) -> str | None:
    if summary.auroc is not None:
        return f"{fixed(summary.auroc, 3)}  {_level((summary.auroc - 0.5) * 2)}"  # 0.5 is a coin's AUROC
    if summary.accuracy is not None:
        return f"{fixed(summary.accuracy, 3)}  {_level(summary.accuracy)}"
    return None


def _level(share: float) -> str:
    return _LEVELS[max(0, min(len(_LEVELS) - 1, int(share * len(_LEVELS))))]


def _measures(summary: RoundSummary) -> str:
    parts = [
        ("loss", _change(summary.loss, summary.loss_before)),
        ("AUROC", _change(summary.auroc, summary.auroc_before)),
        ("accuracy", fixed(summary.accuracy, 3) if summary.auroc is None else None),
        ("F1", _change(summary.macro_f1, summary.macro_f1_before) if summary.auroc is None else None),
    ]
    return "   ".join(f"{name} {text}" for name, text in parts if text)


def _change(now: float | None, before: float | None) -> str | None:
    if now is None or before is None:
        return fixed(now, 3)
    delta = now - before
    sign = "+" if delta >= 0 else "\N{MINUS SIGN}"
    return f"{fixed(now, 3)} ({sign}{fixed(abs(delta), 3)})"


def _verb(phase: RoundPhase) -> str:
    return {
        RoundPhase.FAILED: "failed",
        RoundPhase.REJECTED: "was rejected",
        RoundPhase.CANCELLED: "was cancelled",
    }.get(phase, f"is {phase.value}")


def _standing(summary: RoundSummary) -> str:
    if summary.phase is RoundPhase.PUBLISHED:
        return f"{summary.model}@{summary.result_version} is published"
    return f"nothing was published, {summary.model}@{summary.base_version} stays"


def _words(settings: Json) -> str | None:
    if not isinstance(settings, dict):
        return None
    given = {key: value for key, value in settings.items() if value is not None and value is not False}
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()
    )


def _device_table(devices: Sequence[RoundDeviceReport]) -> Table:
    columns = (
        Column("name"),
        Column("role"),
        Column("stage"),
        Column("examples", right=True),
        Column("loss", right=True, drop=3),
        Column("norm", right=True, drop=5),
        Column("up", right=True, drop=2),
        Column("down", right=True, drop=6),
        Column("CPU (ms)", right=True, drop=4),
        Column("peak (MiB)", right=True, drop=7),
        Column("reason"),
    )
    rows = [
        (
            d.device,
            d.role,
            d.stage,
            None if d.examples is None else str(d.examples),
            fixed(d.train_loss, 3),
            fixed(d.norm, 3),
            byte_count(d.bytes_up),
            byte_count(d.bytes_down),
            str(d.cpu_ms),
            f"{d.peak_rss_bytes / 1024**2:.0f}",
            clip(beside(d.device, d.reason), _REASON_CELLS) if d.reason else None,
        )
        for d in devices
    ]
    return Table(columns, rows)

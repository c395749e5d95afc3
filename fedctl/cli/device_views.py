"""How the results of `fedctl devices` look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedctl.cli.output import Column, Details, Table, View, facts
from fedctl.core.errors import ExitCode, FedctlError
from fedctl.core.records import DeviceState
from fedctl_wire.codec import Json, to_json

if TYPE_CHECKING:
    from fedctl.core.model_records import Deployment
    from fedctl.core.records import Device
    from fedctl.ops.devices import AddResult, PingOutcome, RemoveOutcome
    from fedctl.ops.enrolment.many import RowOutcome

_SHARED_CODES = {ExitCode.OK, ExitCode.UNREACHABLE, ExitCode.TRUST, ExitCode.REFUSED}
NO_DEVICES = "no devices yet: fedctl devices add NAME URL"
Cells = tuple[str | None, ...]


def listed(devices: Sequence[Device]) -> View:
    """Devices, one a row."""
    rows: list[Json] = [_device_json(device) for device in devices]
    columns = (
        Column("name"),
        Column("role"),
        Column("state"),  # only where one is in maintenance
        Column("labels", drop=1),
        Column("agent", drop=3),
        Column("arch", drop=4),
        Column("last seen", drop=2),
        Column("url", drop=5),
    )
    cells = (
        (
            d.name,
            d.role,
            d.state if d.state is not DeviceState.ENROLLED else None,
            _labels(d, leave_out="role"),
            d.agent_version,
            d.arch,
            seconds(d.last_seen),
            d.url,
        )
        for d in devices
    )
    names = [device.name for device in devices]
    return View({"devices": rows}, [Table(columns, cells)], rows, names, nothing=NO_DEVICES)


def shown(device: Device, deployments: Sequence[Deployment]) -> View:
    """One device and what is in its slots."""
    from fedctl_wire.signing import fingerprint

    pairs = (
        ("name", device.name),
        ("url", device.url),
        ("role", device.role),
        ("state", device.state),
        ("labels", _labels(device)),
        ("agent", device.agent_version),
        ("arch", device.arch),
        ("python", device.python),
        ("enrolled", seconds(device.enrolled_at)),
        ("last seen", seconds(device.last_seen)),
        ("identity", fingerprint(device.identity_key)),
        ("identity key", device.identity_key),
        ("host key", device.host_key),
        ("notes", device.notes),
    )
    columns = (Column("model"), Column("slot"), Column("active"), Column("since"))
    cells = [
        (f"{d.model}@{d.version}", d.slot, "✓" if d.active else None, seconds(d.at)) for d in deployments
    ]
    body = {**_device_json(device), "deployments": to_json(deployments)}
    return View({"device": body}, [facts(pairs), Table(columns, cells)], [body], [device.name])


def added(result: AddResult) -> View:
    """What `add` did, or would do."""
    sentences = [f"  {step}" for step in (*result.steps, result.verdict) if step]
    if result.round_trip_ms is not None:
        sentences.append(f"  ✓ answers in {result.round_trip_ms:.0f} ms")
    if result.dry_run:
        sentences.append(f"{result.name}: nothing was changed (--dry-run)")
    elif not result.changed:
        sentences.append(f"{result.name} is enrolled already; nothing was to do")
    else:
        sentences.insert(0, f"{result.name} is enrolled")
    body = {
        "name": result.name,
        "url": result.url,
        "changed": result.changed,
        "dry_run": result.dry_run,
        "steps": list(result.steps),
        "verdict": result.verdict or None,
        "round_trip_ms": result.round_trip_ms,
        "device": _device_json(result.device) if result.device else None,
    }
    return View(body, [sentences], names=[result.name], action=not result.dry_run)


def added_many(outcomes: Sequence[RowOutcome], *, dry_run: bool) -> View:
    """What became of each row of a fleet file; names are the devices that are members as the file wants."""
    rows: list[Json] = [_row_json(outcome) for outcome in outcomes]
    columns = (Column("name"), Column(""), Column("outcome"), Column("url", drop=1))
    cells = [
        (o.device, "✗" if o.error else "✓", short(o.error) or _row_words(o, dry_run=dry_run), o.url)
        for o in outcomes
    ]
    counts = Counter(_row_words(outcome, dry_run=dry_run) for outcome in outcomes)
    summary = ", ".join(f"{number} {words}" for words, number in counts.items())
    errors = [o.error for o in outcomes]
    failed = any(errors)
    return View(
        {"devices": rows, "dry_run": dry_run},
        [
            Table(columns, cells),
            Details([(o.device, (o.result.verdict,)) for o in outcomes if o.result and o.result.verdict]),
            reasons([(o.device, o.error) for o in outcomes]),
            [summary],
        ],
        rows,
        [o.device for o in outcomes if o.error is None],
        action=not failed and not dry_run,
        exit_code=exit_of(errors),
    )


def labelled(devices: Sequence[Device]) -> View:
    """Devices with their labels as they are now."""
    rows: list[Json] = [{"name": device.name, "labels": device.labels} for device in devices]
    table = Table((Column("name"), Column("labels")), [(device.name, _labels(device)) for device in devices])
    return View({"devices": rows}, [table], rows, [device.name for device in devices], action=True)


def noted(device: Device) -> View:
    """A device's note as it is now."""
    row: Json = {"name": device.name, "notes": device.notes}
    sentence = f"{device.name}: {device.notes}" if device.notes else f"{device.name} has no note now"
    return View({"device": row}, [[sentence]], [row], [device.name], action=True)


def maintained(devices: Sequence[Device]) -> View:
    """Devices with their state as it is now."""
    rows: list[Json] = [{"name": device.name, "state": device.state} for device in devices]
    table = Table((Column("name"), Column("state")), [(device.name, device.state) for device in devices])
    return View({"devices": rows}, [table], rows, [device.name for device in devices], action=True)


def left_out(names: Sequence[str]) -> Details:
    """Who was chosen but is in maintenance."""
    return Details([("left out", (f"{', '.join(names)} (in maintenance)",))] if names else [])


def pinged(outcomes: Sequence[PingOutcome]) -> View:
    """Who answered; names are those that did."""
    columns = (
        Column("name"),
        Column(""),
        Column("time (ms)", right=True),
        Column("agent", drop=1),
        Column("device's clock", drop=2),
        Column("error"),
    )
    rows: list[Json] = [
        {
            "name": outcome.device,
            "reached": outcome.error is None,
            "round_trip_ms": outcome.round_trip_ms,
            "health": to_json(outcome.health),
            "roster_pushed": outcome.roster_pushed,
            "error": error_json(outcome.error),
        }
        for outcome in outcomes
    ]
    cells = [_ping_cells(outcome) for outcome in outcomes]
    reached = [outcome.device for outcome in outcomes if outcome.error is None]
    exit_code = exit_of([outcome.error for outcome in outcomes])
    why = reasons([(o.device, o.error) for o in outcomes])
    return View(
        {"devices": rows},
        [Table(columns, cells), why],
        rows,
        reached,
        nothing=NO_DEVICES,
        exit_code=exit_code,
    )


def removed(outcomes: Sequence[RemoveOutcome]) -> View:
    """What became of each device to remove; names are those that are gone."""
    rows: list[Json] = [
        {"name": o.device, "removed": o.error is None, "steps": list(o.steps), "error": error_json(o.error)}
        for o in outcomes
    ]
    cells = [(o.device, "✗", short(o.error)) if o.error else (o.device, "✓", "removed") for o in outcomes]
    done = Details([(o.device, o.steps) for o in outcomes if o.steps])
    gone = [o.device for o in outcomes if o.error is None]
    return View(
        {"devices": rows},
        [
            Table((Column("name"), Column(""), Column("outcome")), cells),
            done,
            reasons([(o.device, o.error) for o in outcomes]),
        ],
        rows,
        gone,
        action=len(gone) == len(outcomes),
        exit_code=exit_of([o.error for o in outcomes]),
    )


def seconds(moment: str | None) -> str | None:
    """An RFC 3339 time in UTC without its fraction of a second; None stays."""
    return f"{moment[:19]}Z" if moment else None


def exit_of(errors: Sequence[FedctlError | None]) -> ExitCode:
    """0 when every device did it; 4, 8 or 9 when all failed for that same reason; else 3."""
    codes = {ExitCode.OK if error is None else error.exit_code for error in errors} or {ExitCode.OK}
    return codes.pop() if len(codes) == 1 and codes <= _SHARED_CODES else ExitCode.PARTIAL


def short(error: FedctlError | None) -> str | None:
    """The kind of an error, for a cell; `reasons` says the rest below the table."""
    return error.code.replace("_", " ") if error else None


def reasons(errors: Sequence[tuple[str, FedctlError | None]]) -> Details:
    """Each device's error in full, and its hint."""
    entries = [(name, (beside(name, e.message), *filter(None, [e.hint]))) for name, e in errors if e]
    return Details(entries)


def beside(device: str, message: str) -> str:
    """A message that stands beside the device's name, so that it need not say it again."""
    for start in (f"device {device}: ", f"device {device} ", f"{device}: "):
        message = message.removeprefix(start)
    return message.replace(f" on device {device}:", ":")


def error_json(error: FedctlError | None) -> Json:
    """A device's error inside a result."""
    return {"code": error.code, "message": error.message, "hint": error.hint or None} if error else None


def _labels(device: Device, *, leave_out: str = "") -> str | None:
    pairs = [f"{key}={value}" for key, value in sorted(device.labels.items()) if key != leave_out]
    return " ".join(pairs) or None


def _device_json(device: Device) -> dict[str, Json]:
    plain = {name: getattr(device, name) for name in device.__slots__}  # each a value of JSON already
    return {**plain, "role": device.role}


def _row_words(outcome: RowOutcome, *, dry_run: bool) -> str:
    would = dry_run and outcome.error is None and outcome.state != "unchanged"
    return f"would be {outcome.state}" if would else outcome.state


def _row_json(outcome: RowOutcome) -> dict[str, Json]:
    result = outcome.result
    return {
        "name": outcome.device,
        "url": outcome.url,
        "line": outcome.line,
        "outcome": outcome.state,
        "steps": list(result.steps) if result else [],
        "verdict": (result.verdict or None) if result else None,
        "error": error_json(outcome.error),
    }


def _ping_cells(outcome: PingOutcome) -> Cells:
    if outcome.error is not None:
        return (outcome.device, "✗", None, None, None, short(outcome.error))
    took = None if outcome.round_trip_ms is None else f"{outcome.round_trip_ms:.1f}"
    health = outcome.health
    if health is None:
        return (outcome.device, "✓", took, None, None, None)
    return (outcome.device, "✓", took, health.version, seconds(health.time), None)

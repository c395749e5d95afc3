"""Devices of the fleet: add, label, ping, remove.

Each function is one thing an admin asks for. Adding and removing make one new roster a command; a
device that is not reached now gets it at its next contact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from fedctl.core.errors import FedctlError, UsageError
from fedctl.core.home import Home
from fedctl.core.progress import DeviceProgress, Observer, silent
from fedctl.core.records import Device, DeviceState
from fedctl.ops.authority import fleet_root
from fedctl.ops.contact import greet, reach
from fedctl.ops.enrolment.add import Addition, AddResult, add_agents
from fedctl.ops.enrolment.enrol import Candidate, NewDevice
from fedctl.ops.enrolment.https import add_over_https
from fedctl.ops.enrolment.remove import Removal, RemoveOutcome
from fedctl.ops.enrolment.survey import Placement
from fedctl.ops.enrolment.visit import AdminLogin
from fedctl.ops.fleet import actor
from fedctl.store import Store
from fedctl.transport import sweep
from fedctl.transport.pool import PARALLEL
from fedctl_wire.codec import Json
from fedctl_wire.messages import Health

__all__ = [
    "AddResult",
    "AdminLogin",
    "NewDevice",
    "PingOutcome",
    "RemoveOutcome",
    "add",
    "add_local",
    "label",
    "maintenance",
    "note",
    "ping",
    "remove",
]

Enroller = Callable[[Candidate], Device]
_NOTE_CHARS = 500
_OWN_LOGIN = AdminLogin()  # the user's own OpenSSH configuration, nobody asked


@dataclass(frozen=True, slots=True, kw_only=True)
class PingOutcome:
    """One device's answer, or why there was none."""

    device: str
    round_trip_ms: float | None = None
    health: Health | None = None
    roster_pushed: bool = False
    error: FedctlError | None = None


def add(  # noqa: PLR0913 - one parameter an option
    store: Store,
    home: Home,
    device: NewDevice,
    *,
    admin: AdminLogin = _OWN_LOGIN,
    root_key: Path | None = None,
    wheels: Path | None = None,
    placement: Placement = "auto",
    dry_run: bool = False,
    observer: Observer = silent,
    enroller: Enroller | None = None,
    token: str | None = None,
) -> AddResult:
    """Enrol a device: over SSH install the agent where it is missing, and start it; elsewhere it runs.

    Run again it changes only what is missing. When it fails, what it did on the device is taken back and
    the device gets no row.

    Args:
        store: The fleet's database.
        home: Its keys and caches.
        device: Name, address, labels and source.
        admin: How to log in over SSH.
        root_key: Where the root key was moved to.
        wheels: A directory of wheels to use instead of the internet.
        placement: SSH: whether the agent is the system's or the login's; `auto`: the system's for root.
        dry_run: Look and say what would be done; change nothing.
        observer: Told each step.
        enroller: Makes the device a member together with others; None: alone.
        token: HTTPS: what `fedctl-agent enrol` printed at the device; None for one that is enrolled.

    Raises:
        UsageError: For a name, URL, label or source that cannot be used, or a name or URL in use.
        TrustError: Host key, login, or an enrolment in another fleet.
        UnreachableError: The device does not answer.
        DeviceError: It cannot carry an agent, or a step failed there.
        ConfigError: Keys, wheels, disk or database.
    """
    checked_note(device.note or "")
    addition = Addition.of(
        store, home, device, root_key=root_key, dry_run=dry_run, observer=observer, enroller=enroller
    )
    addition.check_placement(placement)
    if addition.endpoint.scheme == "unix":
        return _with_note(store, device, addition.at_socket())
    if addition.endpoint.scheme == "https":
        return _with_note(store, device, add_over_https(addition, token))
    result = addition.over_ssh(admin, wheels, placement)
    return _with_note(store, device, _keep_what_was_installed(store, device, result))


def add_local(
    store: Store, home: Home, devices: Sequence[NewDevice], *, root_key: Path | None = None
) -> tuple[Device, ...]:
    """Enrol agents that already listen on Unix sockets, all with one new roster.

    Raises:
        FedctlError: As `add` does; no device gets a row then.
    """
    return add_agents(store, home, devices, root_key=root_key)


def label(store: Store, devices: Sequence[Device], changes: Mapping[str, str | None]) -> tuple[Device, ...]:
    """Set labels, or remove those whose new value is None; returns the devices as they are now."""
    with store.transaction():
        for device in devices:
            store.set_labels(device.name, changes)
            store.add_event(
                actor=actor(), verb="device.label", subject=device.name, detail={"changes": dict(changes)}
            )
        return tuple(store.device(device.name) for device in devices)


def checked_note(text: str) -> str:
    """A note of one printable line.

    Raises:
        UsageError: It is longer, or has characters that could steer a terminal.
    """
    if len(text) > _NOTE_CHARS or not text.isprintable():
        raise UsageError(
            f"a note is one line of at most {_NOTE_CHARS} printable characters",
            hint="shorten it, and leave out line breaks and control characters",
            subject=text[:40],
        )
    return text


def note(store: Store, name: str, text: str) -> Device:
    """Replace what a person wrote about a device; returns the device as it is now.

    Raises:
        NotFoundError: There is no such device.
        UsageError: The note is too long, or no printable line.
    """
    with store.transaction():
        if store.device(name).notes != checked_note(text):
            store.set_device_notes(name, text)
            store.add_event(actor=actor(), verb="device.note", subject=name, detail={"note": text})
        return store.device(name)


def maintenance(store: Store, devices: Sequence[Device], *, on: bool) -> tuple[Device, ...]:
    """Keep devices out of rounds and pushes, or let them in again; returns them as they are now.

    A round that is under way keeps the devices that it began with.
    """
    state = DeviceState.MAINTENANCE if on else DeviceState.ENROLLED
    with store.transaction():
        for device in devices:
            if store.device(device.name).state is not state:
                store.set_device_state(device.name, state)
                store.add_event(
                    actor=actor(), verb="device.maintenance", subject=device.name, detail={"on": on}
                )
        return tuple(store.device(device.name) for device in devices)


def ping(
    store: Store,
    home: Home,
    devices: Sequence[Device],
    *,
    timeout_s: float = 10.0,
    parallel: int = PARALLEL,
    observer: Observer = silent,
) -> tuple[PingOutcome, ...]:
    """Ask every device for its health, concurrently; a failure is a value in its outcome.

    The round trip is that of an open connection.

    A device that holds an older roster gets the current one.

    Args:
        store: The fleet's database.
        home: Its keys and roster.
        devices: Which; the outcomes come in the same order.
        timeout_s: For each device.
        parallel: How many at the same time.
        observer: Told each answer.
    """
    serial = store.fleet().roster_serial

    def ask(device: Device) -> PingOutcome:
        with reach(home, device, timeout_s=timeout_s) as client:
            client.health()  # connects; what is timed is a call on an open connection, as after `add`
            contact = greet(client, device, home, roster_serial=serial)
        return PingOutcome(
            device=device.name,
            round_trip_ms=contact.round_trip_ms,
            health=contact.health,
            roster_pushed=contact.roster_pushed,
        )

    found: dict[str, PingOutcome] = {}
    for device, answer in sweep(devices, ask, parallel=parallel):
        outcome = PingOutcome(device=device.name, error=answer) if isinstance(answer, FedctlError) else answer
        found[device.name] = outcome
        observer(DeviceProgress(device.name, "no answer" if outcome.error else "answered"))
    _record_answers(store, found.values())
    return tuple(found[device.name] for device in devices)


def remove(
    store: Store,
    home: Home,
    devices: Sequence[Device],
    *,
    admin: AdminLogin = _OWN_LOGIN,
    root_key: Path | None = None,
    purge: bool = False,
    forget: bool = False,
    observer: Observer = silent,
) -> tuple[RemoveOutcome, ...]:
    """Stop and delete the agents and take the devices out of the roster, one device after the other.

    Args:
        store: The fleet's database.
        home: Its keys.
        devices: Which.
        admin: How to log in over SSH.
        root_key: Where the root key was moved to.
        purge: Delete the state directory too; never the data that its sources name.
        forget: Take a device out of the fleet even where its agent cannot be deleted.
        observer: Told each step.

    Raises:
        ConfigError: The root key, the disk or the database; nothing is removed then.
    """
    root = fleet_root(home, store.fleet(), root_key)
    return Removal(store, home, admin, purge=purge, forget=forget, observer=observer).run(devices, root)


def payload_fact() -> dict[str, Json]:
    """Names today's agent: kept with a device, it tells a later command that this one is installed there."""
    from fedctl.release.payload import build_payload

    return {"payload": build_payload().digest}


def source_fact(device: NewDevice) -> dict[str, Json]:
    """Names the source that a device was added with; empty without one."""
    if device.source is None:
        return {}
    return {"source_given": sha256(device.source.read_bytes()).hexdigest()}


def _keep_what_was_installed(store: Store, wanted: NewDevice, result: AddResult) -> AddResult:
    facts = {**payload_fact(), **source_fact(wanted)}
    if result.dry_run or result.device is None or facts.items() <= result.device.facts.items():
        return result
    store.set_device_seen(result.name, facts=facts)
    return replace(result, device=store.device(result.name))


def _with_note(store: Store, wanted: NewDevice, result: AddResult) -> AddResult:
    """Give the device its note, where that is another one."""
    before = result.device.notes if result.device else ""
    if wanted.note is None or wanted.note == before:
        return result
    if result.dry_run:
        return replace(result, steps=(*result.steps, "set its note"))
    device = note(store, result.name, wanted.note)
    return replace(result, device=device, changed=True, steps=(*result.steps, "have set its note"))


def _record_answers(store: Store, outcomes: Iterable[PingOutcome]) -> None:
    with store.transaction():
        for outcome in outcomes:
            if outcome.health is not None:
                store.set_device_seen(outcome.device, agent_version=outcome.health.version)

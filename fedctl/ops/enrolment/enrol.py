"""Making devices members of the fleet: the same exchange for every transport, one roster for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl.core.clock import SYSTEM_CLOCK, rfc3339
from fedctl.core.errors import FedctlError, TrustError, UsageError
from fedctl.core.home import Home
from fedctl.core.records import Device, DeviceState
from fedctl.ops.fleet import actor
from fedctl.ops.roster import issue_roster, keep_roster, roster_turn
from fedctl.release.trust import enrolment_request
from fedctl.store import ReadStore, Store
from fedctl.transport import AgentClient, sweep
from fedctl_wire.codec import Json
from fedctl_wire.messages import Identity, RosterDevice
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDevice:
    """A device to add; the name is checked by `add`."""

    name: str
    url: str  # unix://PATH, ssh://[user@]host[:port] or https://host[:port]
    labels: Mapping[str, str] = field(default_factory=dict)
    source: Path | None = None  # a source TOML, copied to the device on first add; ssh only
    note: str | None = None  # None: it keeps the one it has


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What an installation over SSH has learned of a device; nothing at a Unix socket."""

    host_key: str | None = None
    arch: str | None = None
    python: str | None = None
    facts: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A device that answers and is about to become a member."""

    name: Name
    url: str
    labels: Mapping[str, str]
    client: AgentClient
    identity: Identity
    agent_version: str
    known: Known
    token: str | None = field(default=None, repr=False)  # https: lets itself be enrolled with it, once


def check_free(store: ReadStore, name: str, url: str) -> Device | None:
    """The device that is already enrolled under both `name` and `url`, or None when both are free.

    Raises:
        UsageError: When one of the two is in use with another partner.
    """
    for device in store.devices():
        if device.name == name and device.url == url:
            return device
        if device.name == name:
            raise UsageError(
                f"device {name} is enrolled already, at {device.url}",
                hint=f"choose another name, or first: fedctl devices remove {name}",
                subject=name,
                code="name_in_use",
            )
        if device.url == url:
            raise UsageError(
                f"{url} is already device {device.name}",
                hint=f"use that name, or first: fedctl devices remove {device.name}",
                subject=device.name,
                code="url_in_use",
            )
    return None


def check_identity(store: ReadStore, name: str, identity: Identity) -> None:
    """Refuse a device that is in another fleet, has another name, or shows a member's identity.

    Raises:
        TrustError: Saying which.
    """
    if identity.enrolled:
        check_membership(store, name, identity.root_key, identity.device)
    for device in store.devices():
        if device.identity_key == identity.identity_key and device.name != name:
            raise TrustError(
                f"device {name} shows the identity of {device.name}",
                hint="it is the same device at another address, or a copy of its disk: "
                "a copy needs its own identity, so delete the state directory there",
                subject=name,
                code="identity_in_use",
            )


def check_membership(
    store: ReadStore, name: str, root_key: str | None, member: str | None, *, state: str = ""
) -> None:
    """Refuse an enrolled device that is in another fleet, or in this one under another name.

    Args:
        store: The fleet's database.
        name: What the device is to be called.
        root_key: That the device pinned.
        member: Its name in that root's fleet; None: not known.
        state: Its state directory, where that is known, for the way out.

    Raises:
        TrustError: Saying which.
    """
    known_as = f" as {member}" if member else ""
    at_device = f"at the device stop the agent and delete its state directory{state and f' {state}'}"
    if root_key != store.fleet().root_key:
        raise TrustError(
            f"device {name} is enrolled in another fleet{known_as}",
            hint=f"that fleet lets it go by: fedctl devices remove {member or 'NAME'} --purge "
            f"(without --purge the enrolment stays); or {at_device}",
            subject=name,
            code="other_root",
        )
    if member is not None and member != name:
        raise TrustError(
            f"this device is enrolled in this fleet already{known_as}, not as {name}",
            hint=f"add it under that name, or {at_device}",
            subject=name,
            code="other_name",
        )


def enrolled_as(device: Device | None, identity: Identity) -> bool:
    """Whether workstation and device agree already that this is `device`."""
    return (
        device is not None
        and identity.enrolled
        and identity.device == device.name
        and identity.identity_key == device.identity_key
    )


def enrol(
    store: Store, home: Home, candidates: Sequence[Candidate], root_key: Ed25519PrivateKey
) -> tuple[Device, ...]:
    """Enrol these devices with one new roster; all of them get a row, or none does.

    A candidate whose name is enrolled already (a device that lost its state) takes the row's place. When
    one fails after others succeeded, those hold this fleet's root without a row: adding them again is
    all they need.

    Raises:
        TrustError: A device has pinned another root.
        UnreachableError: A device hung up.
        ConfigError: The roster or the database cannot be written.
    """
    with roster_turn(home):
        entries = _entries(store, candidates)
        serial, roster = issue_roster(store, root_key, add=entries.values())
        for error in _put(store, candidates, entries, roster, root_key).values():
            raise error
        return _keep(store, home, candidates, entries, serial, roster)


def enrol_each(
    store: Store, home: Home, candidates: Sequence[Candidate], root_key: Ed25519PrivateKey
) -> dict[str, Device | FedctlError]:
    """Like `enrol`, but one that fails keeps nobody else out; by name, with its error in place of a row.

    It was promised a place in the roster that the others hold by then. The one that is kept, a later one,
    does not list it; they get that at their next contact.

    Raises:
        ConfigError: The roster or the database cannot be written.
    """
    with roster_turn(home):
        entries = _entries(store, candidates)
        serial, roster = issue_roster(store, root_key, add=entries.values())
        failed = _put(store, candidates, entries, roster, root_key)
        joined = [candidate for candidate in candidates if candidate.name not in failed]
        if not joined:
            return {**failed}
        if failed:
            serial, roster = issue_roster(store, root_key, add=[entries[c.name] for c in joined])
        devices = _keep(store, home, joined, entries, serial, roster)
        return {**failed, **{device.name: device for device in devices}}


def _entries(store: Store, candidates: Sequence[Candidate]) -> dict[str, RosterDevice]:
    now = rfc3339(SYSTEM_CLOCK.now())
    return {candidate.name: _entry(store, candidate, now) for candidate in candidates}


def _put(
    store: Store,
    candidates: Sequence[Candidate],
    entries: Mapping[str, RosterDevice],
    roster: Envelope,
    root_key: Ed25519PrivateKey,
) -> dict[str, FedctlError]:
    """Give each candidate its enrolment; the errors of those that did not take it, by name."""
    fleet = store.fleet().uuid

    def put(candidate: Candidate) -> None:
        entry = entries[candidate.name]
        request = enrolment_request(fleet=fleet, device=entry, roster=roster, root_key=root_key)
        candidate.client.enrol(request, token=candidate.token)

    outcomes = sweep(candidates, put)
    return {c.name: outcome for c, outcome in outcomes if isinstance(outcome, FedctlError)}


def _keep(
    store: Store,
    home: Home,
    joined: Sequence[Candidate],
    entries: Mapping[str, RosterDevice],
    serial: int,
    roster: Envelope,
) -> tuple[Device, ...]:
    """The roster's file durably, then the rows, in one transaction."""
    keep_roster(home, roster)
    with store.transaction():
        store.set_roster_serial(serial)
        return tuple(_store(store, c, entries[c.name]) for c in joined)


def _entry(store: Store, candidate: Candidate, now: str) -> RosterDevice:
    return RosterDevice(
        name=candidate.name,
        key=candidate.identity.identity_key,
        serial=store.next_serial(),
        enrolled_at=now,
    )


def _store(store: Store, candidate: Candidate, entry: RosterDevice) -> Device:
    again = next((d for d in store.devices() if d.name == candidate.name), None)
    labels = {**(again.labels if again else {}), **candidate.labels}
    if again is not None:
        store.remove_device(again.name)
    device = Device(
        name=candidate.name,
        url=candidate.url,
        host_key=candidate.known.host_key,
        identity_key=entry.key,
        serial=entry.serial,
        arch=candidate.known.arch,
        python=candidate.known.python,
        agent_version=candidate.agent_version,
        state=again.state if again else DeviceState.ENROLLED,
        enrolled_at=entry.enrolled_at,
        last_seen=entry.enrolled_at,
        facts=dict(candidate.known.facts),
        notes=again.notes if again else "",
        labels=labels,
    )
    store.add_device(device)
    store.add_event(
        actor=actor(),
        verb="device.add",
        subject=device.name,
        detail={"url": device.url, "identity_key": device.identity_key, "serial": device.serial},
    )
    return store.device(device.name)

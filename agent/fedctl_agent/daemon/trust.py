"""Who this device is and whom it obeys: enrolment, roster and policy, verified by the worker, then kept.

The daemon checks no signature itself. It asks the worker before it writes, and writes the pinned root
last: a device with half an enrolment is not enrolled, and the same request makes it whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedctl_agent import RELEASED_AT
from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.daemon.exchange import Role
from fedctl_agent.daemon.logs import AgentLog, utc_now
from fedctl_agent.daemon.workerlink import WorkerLink
from fedctl_agent.state import StateDir, read_json, write_durably
from fedctl_wire.codec import decode, dump_bytes, to_json
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import Enrolment, EnrolmentRequest, Identity, Policy, Roster
from fedctl_wire.signing import Envelope

_NO_ENTRY = "send the device the current roster over SSH or its socket, or enrol it anew"


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What the caller showed over TLS; that the root signed it has been checked, its time has not."""

    sha256: str  # of its DER, hex
    uris: tuple[str, ...]  # of its subjectAltName
    not_after: str  # RFC 3339, UTC


@dataclass(frozen=True, slots=True)
class _Held:
    identity: Identity
    signed_at: str = ""  # the latest time that the root wrote into what is held; RFC 3339, UTC
    members: Mapping[str, tuple[Role, str]] = field(default_factory=dict)  # by their certificate: role, URI


class Trust:
    """The device's identity and trust anchors. Thread-safe; reads are from memory."""

    def __init__(self, state: StateDir, worker: WorkerLink, log: AgentLog) -> None:
        self._state = state
        self._worker = worker
        self._log = log
        self._lock = threading.Lock()
        self._held = _read_held(state)

    @property
    def identity(self) -> Identity:
        """Who the device is now."""
        return self._held.identity

    @property
    def enrolled(self) -> bool:
        """Whether a root is pinned."""
        return self._held.identity.enrolled

    def role_of(self, certificate: PeerCertificate) -> Role:
        """What the fleet's roster allows the owner of a certificate to be.

        Raises:
            ApiError: 403 `certificate` when it is not listed, says another role or has expired.
        """
        held = self._held
        shown = ", ".join(certificate.uris)
        role, uri = held.members.get(certificate.sha256, (None, ""))
        if role is None:
            serial = held.identity.roster_serial
            raise _untrusted(f"is not in this device's roster, serial {serial}: revoked, or replaced", shown)
        if certificate.uris != (uri,):
            raise _untrusted(f"is listed for {uri} and says something else", shown)
        # A wearable boots in 1970: it is at least as late as anything that was certainly written before.
        now = max(utc_now(), RELEASED_AT, held.signed_at)
        if now > certificate.not_after:
            raise _untrusted(f"expired at {certificate.not_after}; for this device it is {now}", shown)
        return role

    def enrol(
        self, request: EnrolmentRequest, *, before_pinning: Callable[[], None] | None = None
    ) -> Identity:
        """Pin a root and take what it signed.

        The pinned root again changes nothing but what it signed since.

        Args:
            request: What the workstation sent.
            before_pinning: Called once nothing but the root itself is left to write.

        Raises:
            ApiError: 409 `enrolled` for another root or another device name; 403 when the worker
                does not believe it.
        """
        with self._lock:
            if self.enrolled:
                self._require_same(request)
                if self._holds(request):
                    return self.identity
            self._worker.verify("enrolment", request.enrolment, request=to_json(request))
            self._store(request, before_pinning)
            self._log.write("info", "enrolled", device=self.identity.device, fleet=self.identity.fleet)
            return self.identity

    def replace_roster(self, envelope: Envelope) -> int:
        """Take a newer roster; return its serial.

        Raises:
            ApiError: 403 when the worker does not believe it, e.g. `rollback`.
        """
        with self._lock:
            self._worker.verify("roster", envelope.to_json())
            serial = _roster(envelope).serial
            if self._replace(self._state.roster, envelope):
                self._held = _read_held(self._state)
                self._log.write("info", "roster replaced", serial=serial)
            return serial

    def replace_policy(self, envelope: Envelope) -> int:
        """Take a newer policy; return its serial.

        Raises:
            ApiError: 403 when the worker does not believe it, e.g. `rollback`.
        """
        with self._lock:
            self._worker.verify("policy", envelope.to_json())
            serial = decode(Policy, envelope.payload, limit=LIMITS.json_body_bytes).serial
            if self._replace(self._state.policy, envelope):
                self._log.write("info", "policy replaced", serial=serial)
            return serial

    def _replace(self, path: Path, envelope: Envelope) -> bool:
        """Write an anchor unless it is held already, and forget the verdicts that rested on the old one."""
        data = envelope.to_bytes()
        if path.read_bytes() == data:
            return False
        write_durably(path, data)
        self._worker.forget_verdicts()
        return True

    def _require_same(self, request: EnrolmentRequest) -> None:
        """Only the pinned root may enrol again, and only as the same device.

        Another name would have to change three files at one stroke.
        """
        offered = _enrolment(Envelope.from_json(request.enrolment, what="enrolment")).device
        held = self.identity
        if request.root_key == held.root_key and offered == held.device:
            return
        raise ApiError(
            409,
            "enrolled",
            f"this device is enrolled already, as {held.device} of fleet {held.fleet}",
            hint="someone at the device has to remove its identity directory first",
            subject=held.device or "",
        )

    def _holds(self, request: EnrolmentRequest) -> bool:
        return self._state.enrolment.read_bytes() == dump_bytes(request.enrolment) and (
            not request.certificate
            or (_holds(self._state.certificate, request.certificate) and self._state.authority.exists())
        )

    def _store(self, request: EnrolmentRequest, before_pinning: Callable[[], None] | None) -> None:
        state = self._state
        if request.certificate:  # without one, nobody can call over TLS
            write_durably(state.certificate, request.certificate.encode())
            write_durably(state.authority, request.authority.encode())
        elif not self.enrolled:
            state.authority.unlink(missing_ok=True)  # of an enrolment that was cut short
        for path, envelope in (
            (state.roster, request.roster),
            (state.policy, request.policy),
            (state.enrolment, request.enrolment),
        ):
            write_durably(path, dump_bytes(envelope))
        if before_pinning is not None:
            before_pinning()
        # Last: its presence means enrolled.
        write_durably(state.root_key, dump_bytes({"root_key": request.root_key}))
        self._worker.forget_verdicts()
        self._held = _read_held(state)


def _read_held(state: StateDir) -> _Held:
    key = state.identity_public.read_text().strip()
    try:
        root = str(read_json(state.root_key)["root_key"])
        enrolment = _enrolment(Envelope.from_json(read_json(state.enrolment)))
        roster = _roster(Envelope.from_json(read_json(state.roster)))
    except FileNotFoundError:
        return _Held(Identity(key, enrolled=False))
    identity = Identity(
        key,
        enrolled=True,
        fleet=enrolment.fleet,
        device=enrolment.device,
        root_key=root,
        roster_serial=roster.serial,
    )
    return _Held(identity, max(enrolment.enrolled_at, roster.issued_at), _members(roster))


def _members(roster: Roster) -> dict[str, tuple[Role, str]]:
    """Everyone in the roster who has a certificate, by its hash."""
    at = f"fedctl://{roster.fleet}"
    devices = {d.certificate: (Role.PEER, f"{at}/device/{d.name}") for d in roster.devices}
    operators = {o.certificate: (Role.OPERATOR, f"{at}/operator/{o.name}") for o in roster.operators}
    members = {**devices, **operators}
    members.pop("", None)
    return members


def _untrusted(why: str, shown: str) -> ApiError:
    return ApiError(
        403, "certificate", f"the certificate of {shown or 'nobody'} {why}", subject=shown, hint=_NO_ENTRY
    )


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except FileNotFoundError:
        return False


def _enrolment(envelope: Envelope) -> Enrolment:
    return decode(Enrolment, envelope.payload, limit=LIMITS.json_body_bytes)


def _roster(envelope: Envelope) -> Roster:
    return decode(Roster, envelope.payload, limit=LIMITS.json_body_bytes)

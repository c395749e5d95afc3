"""Who this device is and whom it obeys: enrolment, roster and policy, verified by the worker, then kept.

The daemon checks no signature itself. It asks the worker before it writes, and writes the pinned root
last: a device with half an enrolment is not enrolled, and the same request makes it whole.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.daemon.logs import AgentLog
from fedctl_agent.daemon.workerlink import WorkerLink
from fedctl_agent.state import StateDir, read_json, write_durably
from fedctl_wire.codec import decode, dump_bytes, to_json
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import Enrolment, EnrolmentRequest, Identity, Policy, Roster
from fedctl_wire.signing import Envelope


class Trust:
    """The device's identity and trust anchors. Thread-safe; reads are from memory."""

    def __init__(self, state: StateDir, worker: WorkerLink, log: AgentLog) -> None:
        self._state = state
        self._worker = worker
        self._log = log
        self._lock = threading.Lock()
        self._identity = _read_identity(state)

    @property
    def identity(self) -> Identity:
        """Who the device is now."""
        return self._identity

    @property
    def enrolled(self) -> bool:
        """Whether a root is pinned."""
        return self._identity.enrolled

    def enrol(self, request: EnrolmentRequest) -> Identity:
        """Pin a root and take what it signed.

        The pinned root again changes nothing but what it signed since.

        Raises:
            ApiError: 409 `enrolled` for another root or another device name; 403 when the worker
                does not believe it.
        """
        with self._lock:
            if self._identity.enrolled:
                self._require_same(request)
                if self._state.enrolment.read_bytes() == dump_bytes(request.enrolment):
                    return self._identity
            self._worker.verify("enrolment", request.enrolment, request=to_json(request))
            self._store(request)
            self._log.write("info", "enrolled", device=self._identity.device, fleet=self._identity.fleet)
            return self._identity

    def replace_roster(self, envelope: Envelope) -> int:
        """Take a newer roster; return its serial.

        Raises:
            ApiError: 403 when the worker does not believe it, e.g. `rollback`.
        """
        with self._lock:
            self._worker.verify("roster", envelope.to_json())
            serial = _roster(envelope).serial
            if self._replace(self._state.roster, envelope):
                self._identity = _read_identity(self._state)
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
        if request.root_key == self._identity.root_key and offered == self._identity.device:
            return
        raise ApiError(
            409,
            "enrolled",
            f"this device is enrolled already, as {self._identity.device} of fleet {self._identity.fleet}",
            hint="someone at the device has to remove its identity directory first",
            subject=self._identity.device or "",
        )

    def _store(self, request: EnrolmentRequest) -> None:
        state = self._state
        for path, envelope in (
            (state.roster, request.roster),
            (state.policy, request.policy),
            (state.enrolment, request.enrolment),
            (state.root_key, {"root_key": request.root_key}),  # last: its presence means enrolled
        ):
            write_durably(path, dump_bytes(envelope))
        self._worker.forget_verdicts()
        self._identity = _read_identity(state)


def _read_identity(state: StateDir) -> Identity:
    key = state.identity_public.read_text().strip()
    with contextlib.suppress(FileNotFoundError):
        root = str(read_json(state.root_key)["root_key"])
        enrolment = _enrolment(Envelope.from_json(read_json(state.enrolment)))
        roster = _roster(Envelope.from_json(read_json(state.roster)))
        return Identity(
            key,
            enrolled=True,
            fleet=enrolment.fleet,
            device=enrolment.device,
            root_key=root,
            roster_serial=roster.serial,
        )
    return Identity(key, enrolled=False)


def _enrolment(envelope: Envelope) -> Enrolment:
    return decode(Enrolment, envelope.payload, limit=LIMITS.json_body_bytes)


def _roster(envelope: Envelope) -> Roster:
    return decode(Roster, envelope.payload, limit=LIMITS.json_body_bytes)

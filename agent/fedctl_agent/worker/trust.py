"""Whether an envelope may be acted upon: the only place on the device that decides it.

Trust starts at the root key pinned at enrolment. The root signs enrolment, roster and policy; the
roster names the operators; an operator signs plans and bundles. Bytes are verified as sent, before
they are decoded, and decoded strictly. What a file in the state directory says is believed only
because the pinned root signed it, so a file that was tampered with stops the work instead of
steering it. No clock is involved: wearables boot in 1970.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fedctl_agent.state import StateDir, read_json
from fedctl_agent.worker.certificates import check_certificates
from fedctl_wire.codec import Json, decode, from_json
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import Manifest
from fedctl_wire.messages import Enrolment, EnrolmentRequest, Plan, Policy, Roster
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope, PayloadType, key_id, private_key_from_pem, public_key, verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_REMEMBERED = 4  # plans and manifests each; a round has one plan and two bundles
T = TypeVar("T")
Signed = TypeVar("Signed", Enrolment, Plan, Policy, Roster)


@dataclass(frozen=True, slots=True)
class Anchors:
    """What an enrolled device holds, verified under its pinned root."""

    root_key: str
    enrolment: Enrolment
    roster: Roster
    policy: Policy

    @property
    def fleet(self) -> str:
        """The fleet's uuid."""
        return self.enrolment.fleet

    @property
    def device(self) -> Name:
        """This device's name in the fleet."""
        return self.enrolment.device

    @property
    def operator_keys(self) -> tuple[str, ...]:
        """Who may sign plans and bundles."""
        return tuple(operator.key for operator in self.roster.operators)


class Trust:
    """Verifies envelopes against what the state directory holds at that moment.

    What a plan or bundle was found to say is remembered by all bytes of its envelope, until a file that
    the verdict rests on is replaced: the job of a task verified at its arrival costs no second look.

    Every method raises `WireError`: `signature` for a key that is not trusted or another payload
    type, `malformed` or `unknown_field` for a payload that does not decode, `fleet` and `device` for
    one that is meant for others, `rollback` for an older one than is held, `root` for another root
    than the pinned one, `identity`, `roster` and `certificate` for an enrolment at odds with itself,
    `not_enrolled`, and `state` when a file of the state directory cannot be read.
    """

    def __init__(self, state: StateDir) -> None:
        self._state = state
        # As text, once: they are looked at several times a task, and pathlib would take most of that.
        self._files = tuple(map(str, (state.root_key, state.enrolment, state.roster, state.policy)))
        self._stamp: tuple[tuple[int, ...], ...] | None = None
        self._anchors: Anchors | None = None
        self._plans: dict[Envelope, Plan] = {}
        self._bundles: dict[Envelope, Manifest] = {}

    def anchors(self) -> Anchors:
        """The anchors, verified anew whenever one of their files was replaced."""
        stamp = self._read_stamp()
        if self._anchors is None or stamp != self._stamp:
            self._plans.clear()
            self._bundles.clear()
            self._anchors = _guarded(self._read_anchors)
            self._stamp = stamp  # older than what was read, at worst: then it is read once more
        return self._anchors

    def plan(self, envelope: Envelope) -> Plan:
        """The plan in an envelope signed by an operator of this device's fleet."""
        anchors = self.anchors()
        if envelope in self._plans:
            return self._plans[envelope]
        payload = verify(envelope, PayloadType.PLAN, anchors.operator_keys, what="plan")
        plan = _decode(Plan, payload, what="plan")
        _check_fleet(plan.fleet, anchors.fleet, what="plan")
        return _remember(self._plans, envelope, plan)

    def bundle(self, envelope: Envelope) -> Manifest:
        """The manifest in an envelope signed by an operator of this device's fleet."""
        keys = self.anchors().operator_keys
        if envelope in self._bundles:
            return self._bundles[envelope]
        manifest = Manifest.from_bytes(verify(envelope, PayloadType.BUNDLE, keys, what="bundle"))
        return _remember(self._bundles, envelope, manifest)

    def roster(self, envelope: Envelope) -> Roster:
        """A roster that may replace the one held."""
        anchors = self.anchors()
        roster = verified_roster(envelope, anchors.root_key, fleet=anchors.fleet)
        _check_serial(roster.serial, anchors.roster.serial, what="roster")
        return roster

    def policy(self, envelope: Envelope) -> Policy:
        """A policy that may replace the one held."""
        anchors = self.anchors()
        policy = verified_policy(envelope, anchors.root_key, fleet=anchors.fleet, device=anchors.device)
        _check_serial(policy.serial, anchors.policy.serial, what="policy")
        return policy

    def enrolment(self, request: EnrolmentRequest) -> Enrolment:
        """An enrolment whose three envelopes are signed by the root it brings and fit each other.

        Once a root is pinned no other root is accepted, and none of the three may be older than
        what is held.
        """
        held = self._held(request.root_key)
        offered = verified_anchors(
            request.root_key,
            enrolment=Envelope.from_json(request.enrolment, what="enrolment"),
            roster=Envelope.from_json(request.roster, what="roster"),
            policy=Envelope.from_json(request.policy, what="policy"),
        )
        _check_membership(offered, public_key(_guarded(self.identity_key)))
        check_certificates(request, offered.enrolment, offered.roster)
        if held is not None:
            _check_fleet(offered.fleet, held.fleet, what="enrolment")
            _check_serial(offered.enrolment.serial, held.enrolment.serial, what="enrolment")
            _check_serial(offered.roster.serial, held.roster.serial, what="roster")
            _check_serial(offered.policy.serial, held.policy.serial, what="policy")
        return offered.enrolment

    def _held(self, root_key: str) -> Anchors | None:
        """The anchors once a root is pinned; before, files of an enrolment cut short do not count."""
        if not self._state.root_key.exists():
            return None
        held = self.anchors()
        if root_key != held.root_key:
            raise WireError("this device is enrolled under another root", code="root", subject="root_key")
        return held

    def identity_key(self) -> Ed25519PrivateKey:
        """The device's private key.

        Raises:
            OSError: When there is none to read.
        """
        return _private_key(self._state.identity_key.read_bytes(), self._state.identity_key.name)

    def _read_stamp(self) -> tuple[tuple[int, ...], ...]:
        try:
            found = [os.stat(path) for path in self._files]  # noqa: PTH116
        except FileNotFoundError as error:
            missing = Path(error.filename).name
            code = "not_enrolled" if error.filename == self._files[0] else "state"
            raise WireError(f"this device holds no {missing}", code=code, subject=missing) from error
        return tuple((s.st_mtime_ns, s.st_ino, s.st_size) for s in found)

    def _read_anchors(self) -> Anchors:
        state = self._state
        return verified_anchors(
            from_json(_Root, read_json(state.root_key), what="root.json").root_key,
            enrolment=_read_envelope(state.enrolment),
            roster=_read_envelope(state.roster),
            policy=_read_envelope(state.policy),
        )


def verified_anchors(root_key: str, *, enrolment: Envelope, roster: Envelope, policy: Envelope) -> Anchors:
    """Verify the three envelopes of an enrolment under one root; roster and policy must fit it.

    Raises:
        WireError: As `Trust` says.
    """
    payload = verify(enrolment, PayloadType.ENROLMENT, [root_key], what="enrolment")
    who = _decode(Enrolment, payload, what="enrolment")
    return Anchors(
        root_key=root_key,
        enrolment=who,
        roster=verified_roster(roster, root_key, fleet=who.fleet),
        policy=verified_policy(policy, root_key, fleet=who.fleet, device=who.device),
    )


def verified_roster(envelope: Envelope, root_key: str, *, fleet: str) -> Roster:
    """The roster of `fleet` in an envelope signed by the root; every key in it is a usable one.

    Raises:
        WireError: As `Trust` says.
    """
    payload = verify(envelope, PayloadType.ROSTER, [root_key], what="roster")
    roster = _decode(Roster, payload, what="roster")
    _check_fleet(roster.fleet, fleet, what="roster")
    for key in (*(o.key for o in roster.operators), *(d.key for d in roster.devices)):
        key_id(key)
    return roster


def verified_policy(envelope: Envelope, root_key: str, *, fleet: str, device: str) -> Policy:
    """The policy for `device` of `fleet` in an envelope signed by the root.

    Raises:
        WireError: As `Trust` says.
    """
    payload = verify(envelope, PayloadType.POLICY, [root_key], what="policy")
    policy = _decode(Policy, payload, what="policy")
    _check_fleet(policy.fleet, fleet, what="policy")
    if policy.device != device:
        raise WireError(
            f"policy is for device {policy.device}, not {device}", code="device", subject=policy.device
        )
    return policy


@functools.lru_cache(maxsize=1)
def _private_key(pem: bytes, name: str) -> Ed25519PrivateKey:
    return private_key_from_pem(pem, what=name)


@dataclass(frozen=True, slots=True)
class _Root:
    root_key: str


def _decode(cls: type[Signed], payload: bytes, *, what: str) -> Signed:
    value = decode(cls, payload, limit=LIMITS.json_body_bytes, what=what)
    if value.version != 1:
        raise WireError(f"{what} has version {value.version}; this agent reads 1", subject=f"{what}.version")
    return value


def _remember(verdicts: dict[Envelope, T], envelope: Envelope, value: T) -> T:
    while len(verdicts) >= _REMEMBERED:
        del verdicts[next(iter(verdicts))]
    verdicts[envelope] = value
    return value


def _read_envelope(path: Path) -> Envelope:
    held: Json = read_json(path)
    return Envelope.from_json(held, what=path.name)


def _guarded(read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError as error:
        raise WireError(f"cannot read the state directory: {error}", code="state") from error


def _check_fleet(found: str, ours: str, *, what: str) -> None:
    if found != ours:
        raise WireError(f"{what} is for fleet {found}, this device is in {ours}", code="fleet", subject=what)


def _check_serial(offered: int, held: int, *, what: str) -> None:
    if offered < held:
        raise WireError(
            f"{what} has serial {offered}, this device holds {held}", code="rollback", subject=what
        )


def _check_membership(offered: Anchors, identity_key: str) -> None:
    enrolment = offered.enrolment
    if enrolment.identity_key != identity_key:
        raise WireError(
            "the enrolment names another identity key than this device's",
            code="identity",
            subject=enrolment.device,
        )
    listed = [d for d in offered.roster.devices if d.name == enrolment.device]
    if [(d.key, d.serial) for d in listed] != [(enrolment.identity_key, enrolment.serial)]:
        raise WireError(
            f"the roster does not list {enrolment.device} as the enrolment does",
            code="roster",
            subject=enrolment.device,
        )

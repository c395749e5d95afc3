"""What the fleet root signs: a device's enrolment, the roster of everyone, a device's policy.

Pure: times and serials come in as arguments, envelopes come out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from fedctl.release.certificates import Authority, Certificate
from fedctl_wire.codec import encode
from fedctl_wire.messages import (
    Enrolment,
    EnrolmentRequest,
    Policy,
    Roster,
    RosterDevice,
    RosterOperator,
)
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope, PayloadType, public_key, sign

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

OPERATOR_NAME = "operator"


def sign_roster(
    *,
    fleet: str,
    serial: int,
    issued_at: str,
    operator_key: str,
    devices: Iterable[RosterDevice],
    root_key: Ed25519PrivateKey,
) -> Envelope:
    """Sign the list of everyone in the fleet, each with the hash of the certificate that the root gives it.

    Devices are put in the order of their names.

    Args:
        fleet: The fleet's uuid.
        serial: One more than the last roster's; a device refuses a lower one than it holds.
        issued_at: RFC 3339, UTC.
        operator_key: The operator's public key, hex.
        devices: Every enrolled device.
        root_key: The fleet's private root key.
    """
    authority = Authority(root_key, fleet)
    certified = [replace(d, certificate=_device_certificate(authority, d).sha256) for d in devices]
    operator = authority.operator(OPERATOR_NAME, operator_key)
    roster = Roster(
        fleet=fleet,
        serial=serial,
        issued_at=issued_at,
        operators=(RosterOperator(Name(OPERATOR_NAME), operator_key, operator.sha256),),
        devices=tuple(sorted(certified, key=lambda device: device.name)),
    )
    return sign(encode(roster), PayloadType.ROSTER, root_key)


def sign_policy(policy: Policy, root_key: Ed25519PrivateKey) -> Envelope:
    """Sign what a device agrees to."""
    return sign(encode(policy), PayloadType.POLICY, root_key)


def enrolment_request(
    *, fleet: str, device: RosterDevice, roster: Envelope, root_key: Ed25519PrivateKey
) -> EnrolmentRequest:
    """The body that makes `device` a member of `fleet`: enrolment, roster, first policy and certificates.

    Every device gets certificates, however it is reached now: it may listen for HTTPS later.

    Args:
        fleet: The fleet's uuid.
        device: The device's entry, as `roster` lists it.
        roster: A roster signed by the same root that lists the device.
        root_key: The fleet's private root key, which the device pins.
    """
    enrolment = Enrolment(
        fleet=fleet,
        device=device.name,
        identity_key=device.key,
        serial=device.serial,
        enrolled_at=device.enrolled_at,
    )
    policy = Policy(fleet=fleet, device=device.name, serial=device.serial)
    authority = Authority(root_key, fleet)
    return EnrolmentRequest(
        root_key=public_key(root_key),
        enrolment=sign(encode(enrolment), PayloadType.ENROLMENT, root_key).to_json(),
        roster=roster.to_json(),
        policy=sign_policy(policy, root_key).to_json(),
        certificate=_device_certificate(authority, device).pem,
        authority=authority.certificate().pem,
    )


def operator_certificate(fleet: str, operator_key: str, root_key: Ed25519PrivateKey) -> Certificate:
    """The operator's certificate, as the roster names it."""
    return Authority(root_key, fleet).operator(OPERATOR_NAME, operator_key)


def _device_certificate(authority: Authority, device: RosterDevice) -> Certificate:
    return authority.device(device.name, device.key, serial=device.serial, enrolled_at=device.enrolled_at)

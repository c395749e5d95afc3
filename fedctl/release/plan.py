"""Signed plans: what a round computes, as bytes that name themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedctl.core.errors import TrustError
from fedctl_wire.codec import decode, encode
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import Plan
from fedctl_wire.signing import Envelope, PayloadType, sign, verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def sign_plan(plan: Plan, operator_key: Ed25519PrivateKey) -> Envelope:
    """Sign a plan; its name is the envelope's `sha256`, the hash of the payload bytes."""
    return sign(encode(plan), PayloadType.PLAN, operator_key)


def read_plan(envelope: Envelope, operator_key: str) -> Plan:
    """Return the plan of an envelope that `operator_key` (public, hex) signed.

    Raises:
        TrustError: When it did not, or the payload is no plan.
    """
    try:
        payload = verify(envelope, PayloadType.PLAN, [operator_key], what="plan")
        return decode(Plan, payload, limit=LIMITS.json_body_bytes, what="plan")
    except WireError as error:
        raise TrustError(str(error), subject="plan", code=error.code) from error

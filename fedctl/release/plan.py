"""Signed plans: what a round computes, as bytes that name themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedctl_wire.codec import encode
from fedctl_wire.messages import Plan
from fedctl_wire.signing import Envelope, PayloadType, sign

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def sign_plan(plan: Plan, operator_key: Ed25519PrivateKey) -> Envelope:
    """Sign a plan; its name is the envelope's `sha256`, the hash of the payload bytes."""
    return sign(encode(plan), PayloadType.PLAN, operator_key)

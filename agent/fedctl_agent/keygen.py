"""The device's identity key, made once, by a process of its own: the daemon loads no cryptography."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fedctl_agent.state import StateDir, write_durably
from fedctl_wire.signing import generate_key, private_key_from_pem, private_key_to_pem, public_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_NOT_BEFORE = datetime(2000, 1, 1, tzinfo=UTC)
_NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # "no well-defined expiration", RFC 5280, 4.1.2.5
_COMMON_NAME = "fedctl device, not enrolled"


def keygen(state: StateDir) -> str:
    """Make the Ed25519 identity key and its self-signed certificate unless they are there.

    Returns:
        The key's public half in hex.

    Raises:
        WireError: When the key file holds no such key.
        OSError: When the state directory cannot be written.
    """
    state.create()
    if state.identity_key.exists():
        key = private_key_from_pem(state.identity_key.read_bytes(), what=str(state.identity_key))
    else:
        key = generate_key()
        write_durably(state.identity_key, private_key_to_pem(key))
    if not state.certificate.exists():
        write_durably(state.certificate, self_signed(key))
    public = public_key(key)
    if not state.identity_public.exists():
        write_durably(state.identity_public, public.encode())
    return public


def self_signed(key: Ed25519PrivateKey) -> bytes:
    """A certificate (PEM) that says nothing but the key: whoever calls compares that with a token's."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _COMMON_NAME)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NO_END)
    )
    return builder.sign(key, algorithm=None).public_bytes(Encoding.PEM)  # Ed25519 has its own hash

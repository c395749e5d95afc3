"""Ed25519 keys and signed envelopes in the manner of DSSE: the bytes as sent are what is signed.

An envelope is JSON: `payloadType`, `payload` (base64), `signatures` [{`keyid`, `sig`}]. The signature
covers the pre-authentication encoding of type and payload, so a plan can never pass for a policy. A
payload is never re-serialised to be verified. Reading an envelope needs no cryptography library;
signing and verifying import it when called.

Source: DSSE v1, https://github.com/secure-systems-lab/dsse/blob/master/protocol.md; Ed25519, RFC 8032.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from fedctl_wire.codec import Json, dump_bytes, from_json, parse_bytes
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PUBLIC_KEY_HEX = 64  # characters of a raw Ed25519 public key
_PUBLIC_KEY = re.compile(rf"[0-9a-f]{{{PUBLIC_KEY_HEX}}}")


class PayloadType(StrEnum):
    """What an envelope carries; part of what is signed."""

    PLAN = "application/vnd.fedctl.plan+json"
    BUNDLE = "application/vnd.fedctl.bundle+json"
    POLICY = "application/vnd.fedctl.policy+json"
    ROSTER = "application/vnd.fedctl.roster+json"
    ENROLMENT = "application/vnd.fedctl.enrolment+json"
    RESULT = "application/vnd.fedctl.result+json"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature: `keyid` is the SHA-256 of the raw public key in hex, `sig` base64."""

    keyid: str
    sig: str


@dataclass(frozen=True, slots=True)
class _EnvelopeJson:
    payloadType: str  # noqa: N815 - the field names are DSSE's
    payload: str
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signed payload, unverified until `verify` returned it."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the payload bytes: the name of a plan, bundle or result."""
        return hashlib.sha256(self.payload).hexdigest()

    def to_json(self) -> Json:
        """The envelope as plain JSON values, to embed in another message."""
        return {
            "payloadType": self.payload_type,
            "payload": base64.b64encode(self.payload).decode(),
            "signatures": [{"keyid": s.keyid, "sig": s.sig} for s in self.signatures],
        }

    def to_bytes(self) -> bytes:
        """The envelope as canonical JSON bytes."""
        return dump_bytes(self.to_json())

    @classmethod
    def from_json(cls, value: Json, *, what: str = "envelope") -> Envelope:
        """Read an envelope from parsed JSON.

        Raises:
            WireError: When a field is missing, unknown or not canonical base64, or there are too many
                signatures.
        """
        raw = from_json(_EnvelopeJson, value, what=what)
        if len(raw.signatures) > LIMITS.signatures:
            raise WireError(f"{what} has {len(raw.signatures)} signatures", code="too_large", subject=what)
        return cls(raw.payloadType, _unbase64(raw.payload, what), raw.signatures)

    @classmethod
    def from_bytes(cls, data: bytes, *, what: str = "envelope") -> Envelope:
        """Read an envelope from JSON bytes; see `from_json`."""
        return cls.from_json(parse_bytes(data, limit=LIMITS.json_body_bytes, what=what), what=what)


def sign(payload: bytes, payload_type: PayloadType, key: Ed25519PrivateKey) -> Envelope:
    """Sign `payload` as `payload_type` with one key."""
    signature = key.sign(_pre_authentication_encoding(payload_type, payload))
    keyid = key_id(public_key(key))
    return Envelope(payload_type.value, payload, (Signature(keyid, base64.b64encode(signature).decode()),))


def verify(envelope: Envelope, payload_type: PayloadType, public_keys: Iterable[str], *, what: str) -> bytes:
    """Return the payload when one of `public_keys` (hex) signed it as `payload_type`.

    Raises:
        WireError: With code `signature` when no key did, or the type is another one.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if envelope.payload_type != payload_type:
        raise WireError(
            f"{what} is signed as {envelope.payload_type!r}, not {payload_type.value!r}",
            code="signature",
            subject=what,
        )
    message = _pre_authentication_encoding(payload_type, envelope.payload)
    keys = {key_id(public): public for public in public_keys}
    for signature in envelope.signatures:
        public = keys.get(signature.keyid)
        if public is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(
                _unbase64(signature.sig, what), message
            )
        except InvalidSignature:
            continue
        return envelope.payload
    raise WireError(f"{what} is not signed by a key that this side trusts", code="signature", subject=what)


def generate_key() -> Ed25519PrivateKey:
    """Make a fresh Ed25519 private key from the system's random source."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate()


def private_key_to_pem(key: Ed25519PrivateKey) -> bytes:
    """PKCS#8 PEM, unencrypted: the file's mode protects it."""
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def private_key_from_pem(data: bytes, *, what: str) -> Ed25519PrivateKey:
    """Load an Ed25519 private key from PKCS#8 PEM.

    Raises:
        WireError: When the bytes are no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise WireError(f"{what} is not an unencrypted PEM private key", subject=what) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise WireError(f"{what} is not an Ed25519 key", subject=what)
    return key


def public_key(key: Ed25519PrivateKey) -> str:
    """The raw public key of a private key, 64 hex characters."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    # Not `public_bytes_raw`: a device may have the cryptography of its distribution, 38 on Debian 12.
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def key_id(public: str) -> str:
    """The SHA-256 of a raw public key (hex), in hex.

    Raises:
        WireError: When `public` is not 64 lower-case hexadecimal digits.
    """
    if not _PUBLIC_KEY.fullmatch(
        public
    ):  # bytes.fromhex would take spaces and capitals: two names for one key
        raise WireError(
            f"public key {public[:80]!r} is not {PUBLIC_KEY_HEX} lower-case hexadecimal digits", subject="key"
        )
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()


def fingerprint(public: str) -> str:
    """A short form of a public key for people: the first 16 bytes of its SHA-256, colon-separated."""
    digest = key_id(public)
    return ":".join(digest[i : i + 2] for i in range(0, 32, 2))


def _pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _unbase64(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"{what} holds a field that is not base64", subject=what) from error
    if base64.b64encode(data).decode() != text:  # stray bits or padding: a second spelling of the same bytes
        raise WireError(f"{what} holds a field that is not canonical base64", subject=what)
    return data

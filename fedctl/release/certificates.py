"""X.509 for TLS: the fleet's root as authority, and what it signs for the operator and each device.

The key in a certificate is the one that the roster lists, so a certificate adds no secret and no new
identity: it says in the words of TLS what the roster says. Every certificate is a function of its
arguments alone (Ed25519 signs deterministically, RFC 8032), so nobody has to store one: whoever holds the
root key makes the same bytes again. No validity begins later than 2000: wearables boot in 1970 and take
the time of their software until they have a better one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from fedctl_wire.signing import public_key

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_NOT_BEFORE = datetime(2000, 1, 1, tzinfo=UTC)
_NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # "no well-defined expiration", RFC 5280, 4.1.2.5
_DEVICE_VALIDITY = timedelta(days=20 * 365 + 5)  # from its enrolment; enrolling again renews it
_AUTHORITY_SERIAL = 1
_ROOT_NAME = "fleet root"  # no device can be called that: names have no spaces
_SERIAL_BYTES = 16  # RFC 5280 allows 20 bytes and wants a positive number


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as it is sent and as the roster names it."""

    pem: str
    sha256: str  # of the DER, hex


class Authority:
    """The fleet's root key as certificate authority.

    Args:
        root_key: The fleet's private root key.
        fleet: The fleet's uuid.
    """

    def __init__(self, root_key: Ed25519PrivateKey, fleet: str) -> None:
        self._key = root_key
        self._fleet = fleet

    def certificate(self) -> Certificate:
        """The root's own certificate, self-signed: what both sides of a connection check the other with."""
        from cryptography import x509

        builder = (
            _builder(
                public_key(self._key), self._subject(_ROOT_NAME), self._subject(_ROOT_NAME), _AUTHORITY_SERIAL
            )
            .not_valid_after(_NO_END)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
        )
        return self._sign(builder)

    def operator(self, name: str, key: str) -> Certificate:
        """The certificate with which an operator calls devices; it ends by leaving the roster.

        Args:
            name: The operator's, as in the roster.
            key: Its public key, hex.
        """
        from cryptography.x509.oid import ExtendedKeyUsageOID

        return self._member("operator", name, key, "", _NO_END, [ExtendedKeyUsageOID.CLIENT_AUTH])

    def device(self, name: str, key: str, *, serial: int, enrolled_at: str) -> Certificate:
        """The certificate of a device, with which it serves and calls its peers.

        Args:
            name: The device's, as in the roster.
            key: Its public identity key, hex.
            serial: Of its roster entry.
            enrolled_at: Of its roster entry: RFC 3339, UTC.
        """
        from cryptography.x509.oid import ExtendedKeyUsageOID

        begin = max(datetime.fromisoformat(enrolled_at).replace(microsecond=0), _NOT_BEFORE)
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        entry = f"{serial} {enrolled_at}"
        return self._member("device", name, key, entry, begin + _DEVICE_VALIDITY, usage)

    def _member(
        self, role: str, name: str, key: str, entry: str, end: datetime, usage: list[x509.ObjectIdentifier]
    ) -> Certificate:
        from cryptography import x509

        uri = f"fedctl://{self._fleet}/{role}/{name}"
        builder = (
            _builder(key, self._subject(name), self._subject(_ROOT_NAME), _serial(uri, key, entry))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        return self._sign(builder)

    def _subject(self, name: str) -> x509.Name:
        from cryptography import x509
        from cryptography.x509.oid import NameOID

        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"fedctl {self._fleet}"),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )

    def _sign(self, builder: x509.CertificateBuilder) -> Certificate:
        from cryptography.hazmat.primitives.serialization import Encoding

        signed = builder.sign(self._key, algorithm=None)  # Ed25519 has its own hash
        der = signed.public_bytes(Encoding.DER)
        return Certificate(signed.public_bytes(Encoding.PEM).decode(), hashlib.sha256(der).hexdigest())


def _builder(key: str, subject: x509.Name, issuer: x509.Name, serial: int) -> x509.CertificateBuilder:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(_NOT_BEFORE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _serial(*words: str) -> int:
    """A number of its own for every roster entry: two devices may share a roster's serial."""
    digest = hashlib.sha256("\n".join(words).encode()).digest()
    return int.from_bytes(digest[:_SERIAL_BYTES], "big") | 1  # never zero

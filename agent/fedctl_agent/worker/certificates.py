"""Whether the certificates of an enrolment are what the root-signed roster says they are.

The daemon hands them to TLS and compares no more than hashes afterwards, so that they are looked at
closely once: here, before they are stored.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NoReturn

from fedctl_wire.errors import WireError
from fedctl_wire.limits import KIB
from fedctl_wire.messages import Enrolment, EnrolmentRequest, Roster

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_PEM_BYTES = 16 * KIB  # of one certificate


def check_certificates(request: EnrolmentRequest, enrolment: Enrolment, roster: Roster) -> None:
    """Check the device's certificate and the root's, where the request brings them.

    The device's has to be the one in the roster, and both have to be signed by the root, for the keys
    and names that the enrolment says. An enrolment without certificates is fine: the device is then
    reached by other ways than TLS.

    Args:
        request: What the workstation sent, its envelopes verified.
        enrolment: The verified enrolment in it.
        roster: The verified roster in it, which lists the device.

    Raises:
        WireError: `certificate`.
    """
    if not request.certificate and not request.authority:
        return
    certificate = _load(request.certificate, "the device's certificate")
    authority = _load(request.authority, "the root's certificate")
    _check_authority(authority, request.root_key)
    listed = next(d.certificate for d in roster.devices if d.name == enrolment.device)
    if hashlib.sha256(_der(certificate)).hexdigest() != listed:
        _refuse("the device's certificate is not the one in the roster")
    if _key(certificate) != enrolment.identity_key:
        _refuse("the device's certificate has another key than the device")
    if _uris(certificate) != [f"fedctl://{enrolment.fleet}/device/{enrolment.device}"]:
        _refuse("the device's certificate is not for this fleet and name")
    _check_signed(certificate, authority, "the device's certificate")


def _check_authority(authority: Certificate, root_key: str) -> None:
    from cryptography import x509

    if _key(authority) != root_key:
        _refuse("the root's certificate has another key than the root")
    try:
        is_authority = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound):
        is_authority = False
    if not is_authority:
        _refuse("the root's certificate is not that of an authority")
    _check_signed(authority, authority, "the root's certificate")


def _check_signed(certificate: Certificate, by: Certificate, what: str) -> None:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = by.public_key()
        if certificate.issuer != by.subject or not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"it names {certificate.issuer} as its issuer")  # noqa: TRY301 - one error for all
        # Not `verify_directly_issued_by`: Debian 12 has cryptography 38.
        key.verify(certificate.signature, certificate.tbs_certificate_bytes)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise WireError(f"{what} is not signed by the root", code="certificate", subject=what) from error


def _load(pem: str, what: str) -> Certificate:
    from cryptography import x509

    if len(pem) > _PEM_BYTES:
        raise WireError(f"{what} has more than {_PEM_BYTES} characters", code="certificate")
    try:
        if pem.count("-----BEGIN") != 1:
            raise ValueError("there is not exactly one block")  # noqa: TRY301 - one error for all
        certificate = x509.load_pem_x509_certificate(pem.encode("ascii"))
    except ValueError as error:
        raise WireError(f"{what} is not one certificate in PEM: {error}", code="certificate") from error
    return certificate


def _der(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


def _key(certificate: Certificate) -> str:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return ""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex() if isinstance(key, Ed25519PublicKey) else ""


def _uris(certificate: Certificate) -> list[str]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _refuse(why: str) -> NoReturn:
    raise WireError(why, code="certificate", subject="certificate")

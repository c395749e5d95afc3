"""The certificates of a fleet: reproducible to the byte, and saying what the roster says."""

from __future__ import annotations

import hashlib
import ssl
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedctl.release.certificates import Authority, Certificate
from fedctl.release.trust import enrolment_request, operator_certificate, sign_roster
from fedctl_wire.codec import decode
from fedctl_wire.messages import Roster, RosterDevice
from fedctl_wire.names import Name
from fedctl_wire.signing import public_key

ROOT = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MEMBER = public_key(Ed25519PrivateKey.from_private_bytes(bytes(32)))
FLEET = "3f2a0000-0000-4000-8000-000000000000"
ENROLLED = "2026-01-01T00:00:00.250Z"
AUTHORITY = Authority(ROOT, FLEET)


def device(name: str = "watch-1", *, serial: int = 3, enrolled_at: str = ENROLLED) -> Certificate:
    return AUTHORITY.device(name, MEMBER, serial=serial, enrolled_at=enrolled_at)


def parsed(certificate: Certificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.pem.encode())


def test_the_same_bytes_whoever_makes_them_and_whenever() -> None:
    """A library that writes other bytes would change every certificate of every fleet."""
    made = (AUTHORITY.certificate(), device(), AUTHORITY.operator("operator", MEMBER))
    assert [c.sha256[:16] for c in made] == ["2d6fa1a1bf02598d", "df630837293c2097", "b8b30e93616829b4"]
    assert [hashlib.sha256(ssl.PEM_cert_to_DER_cert(c.pem)).hexdigest() for c in made] == [
        c.sha256 for c in made
    ]


@pytest.mark.parametrize(
    "other",
    [device("watch-2"), device(serial=4), device(enrolled_at="2026-01-01T00:00:01.000Z")],
    ids=["name", "serial", "time"],
)
def test_every_roster_entry_has_a_certificate_with_a_number_of_its_own(other: Certificate) -> None:
    assert other.sha256 != device().sha256
    assert parsed(other).serial_number != parsed(device()).serial_number


@pytest.mark.parametrize(
    ("certificate", "uri", "usage"),
    [
        (device(), "device/watch-1", [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
        (
            AUTHORITY.operator("operator", MEMBER),
            "operator/operator",
            [ExtendedKeyUsageOID.CLIENT_AUTH],
        ),
    ],
    ids=["device", "operator"],
)
def test_role_and_name_are_in_the_certificate_and_the_root_vouches_for_it(
    certificate: Certificate, uri: str, usage: list[x509.ObjectIdentifier]
) -> None:
    leaf, root = parsed(certificate), parsed(AUTHORITY.certificate())
    leaf.verify_directly_issued_by(root)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"fedctl://{FLEET}/{uri}"]
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == usage
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.public_key().public_bytes_raw().hex() == MEMBER  # type: ignore[union-attr]


def test_a_wearable_that_booted_in_1970_and_thinks_it_is_2000_believes_them() -> None:
    for certificate in (AUTHORITY.certificate(), device(), AUTHORITY.operator("operator", MEMBER)):
        assert parsed(certificate).not_valid_before_utc == datetime(2000, 1, 1, tzinfo=UTC)
    assert parsed(device()).not_valid_after_utc == datetime(2046, 1, 1, tzinfo=UTC)
    assert parsed(AUTHORITY.operator("operator", MEMBER)).not_valid_after_utc.year == 9999


def test_a_workstation_whose_clock_is_in_1970_makes_a_valid_one_too() -> None:
    made = parsed(device(enrolled_at="1970-01-01T00:01:00.000Z"))
    assert made.not_valid_after_utc > made.not_valid_before_utc


def test_no_device_can_be_called_as_the_root() -> None:
    root = parsed(AUTHORITY.certificate())
    assert root.issuer == root.subject
    for name in ("root", "operator", "fleet-root"):
        assert parsed(device(name)).subject != root.subject


def test_the_roster_names_what_enrolment_brings_and_the_operator_shows() -> None:
    member = RosterDevice(Name("watch-1"), MEMBER, 3, ENROLLED)
    envelope = sign_roster(
        fleet=FLEET, serial=3, issued_at=ENROLLED, operator_key=MEMBER, devices=[member], root_key=ROOT
    )
    roster = decode(Roster, envelope.payload, limit=10_000)
    request = enrolment_request(fleet=FLEET, device=member, roster=envelope, root_key=ROOT)
    assert request.authority == AUTHORITY.certificate().pem
    assert request.certificate == device().pem
    assert roster.devices[0].certificate == device().sha256
    assert roster.operators[0].certificate == operator_certificate(FLEET, MEMBER, ROOT).sha256

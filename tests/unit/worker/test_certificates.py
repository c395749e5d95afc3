"""Certificates that come with an enrolment: only those that the root made for this device are taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedctl_agent.worker.trust import Trust
from fedctl_wire.errors import WireError
from fedctl_wire.messages import EnrolmentRequest
from fedctl_wire.signing import generate_key
from tests.fakes.tls_bed import Issued, TlsBed, authority, member
from tests.unit.worker.signed_fleet import DEVICE


@pytest.fixture
def bed(tmp_path: Path) -> TlsBed:
    return TlsBed(tmp_path / "state")


def refusal(bed: TlsBed, request: EnrolmentRequest) -> str:
    with pytest.raises(WireError) as caught:
        Trust(bed.state).enrolment(request)
    assert caught.value.code == "certificate"
    return str(caught.value)


def shown(bed: TlsBed, certificate: Issued, **changes: Any) -> EnrolmentRequest:
    """An enrolment with another certificate of the device, listed as it should be."""
    bed.device = certificate
    return bed.enrolment(**changes)


def test_those_that_the_roster_names_are_taken(bed: TlsBed) -> None:
    assert Trust(bed.state).enrolment(bed.enrolment()).device == DEVICE


def test_none_at_all_is_fine(bed: TlsBed) -> None:
    request = bed.enrolment(certificate="", authority="")
    assert Trust(bed.state).enrolment(request).device == DEVICE


@pytest.mark.parametrize("missing", ["certificate", "authority"])
def test_one_without_the_other_is_not(bed: TlsBed, missing: str) -> None:
    assert "is not one certificate" in refusal(bed, bed.enrolment(**{missing: ""}))


@pytest.mark.parametrize(
    "text", ["rubbish", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "ü"]
)
@pytest.mark.parametrize("field", ["certificate", "authority"])
def test_what_is_no_certificate_is_named(bed: TlsBed, field: str, text: str) -> None:
    assert "is not one certificate" in refusal(bed, bed.enrolment(**{field: text}))


def test_one_is_enough(bed: TlsBed) -> None:
    assert "is not one" in refusal(bed, bed.enrolment(certificate=bed.device.pem.decode() * 2))
    assert "more than" in refusal(bed, bed.enrolment(certificate="x" * 20_000))


def test_one_that_the_roster_does_not_name_is_refused(bed: TlsBed) -> None:
    another = member(bed.fleet.root, f"device/{DEVICE}", bed.fleet.identity)
    assert "not the one in the roster" in refusal(bed, bed.enrolment(certificate=another.pem.decode()))
    without = json.loads(bed.fleet.roster().to_bytes())
    assert "not the one in the roster" in refusal(bed, bed.enrolment(roster=without))


def test_one_with_another_key_is_refused(bed: TlsBed) -> None:
    stranger = member(bed.fleet.root, f"device/{DEVICE}", generate_key())
    assert "another key than the device" in refusal(bed, shown(bed, stranger))


@pytest.mark.parametrize("uri", ["device/wrist-02", f"operator/{DEVICE}", f"device/{DEVICE}/x"])
def test_one_for_another_name_or_role_is_refused(bed: TlsBed, uri: str) -> None:
    other = member(bed.fleet.root, uri, bed.fleet.identity)
    assert "not for this fleet and name" in refusal(bed, shown(bed, other))


def test_one_that_the_root_did_not_sign_is_refused(bed: TlsBed) -> None:
    forged = member(bed.fleet.root, f"device/{DEVICE}", bed.fleet.identity, signer=generate_key())
    assert "not signed by the root" in refusal(bed, shown(bed, forged))


def test_the_authority_is_the_root_and_nobody_else(bed: TlsBed) -> None:
    other = authority(generate_key())
    assert "another key than the root" in refusal(bed, bed.enrolment(authority=other.pem.decode()))
    no_authority = member(bed.fleet.root, "operator/root", bed.fleet.root)
    text = no_authority.pem.decode()
    assert "not that of an authority" in refusal(bed, bed.enrolment(authority=text))

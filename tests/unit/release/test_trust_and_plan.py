"""What the root and the operator sign decodes under the wire's own strict rules."""

from __future__ import annotations

import pytest

from fedctl.release.plan import sign_plan
from fedctl.release.trust import enrolment_request, sign_roster
from fedctl_wire.codec import decode, encode
from fedctl_wire.errors import WireError
from fedctl_wire.messages import (
    BaseModel,
    Cohort,
    Enrolment,
    EnrolmentRequest,
    Plan,
    Policy,
    Roster,
    RosterDevice,
    TaskKind,
)
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope, PayloadType, generate_key, public_key, verify

ROOT, OPERATOR = generate_key(), generate_key()
FLEET = "3f2a0000-0000-4000-8000-000000000000"


def member(name: str, serial: int) -> RosterDevice:
    return RosterDevice(Name(name), f"{serial:064x}", serial, "2026-01-01T00:00:00.000Z")


def roster_of(*names: str) -> Envelope:
    return sign_roster(
        fleet=FLEET,
        serial=9,
        issued_at="2026-01-01T00:00:00.000Z",
        operator_key=public_key(OPERATOR),
        devices=[member(name, i) for i, name in enumerate(names, start=1)],
        root_key=ROOT,
    )


def plan() -> Plan:
    return Plan(
        fleet=FLEET,
        round="b0000000-0000-4000-8000-000000000000",
        model=Name("har"),
        base=BaseModel(1, "a" * 64),
        kinds=(TaskKind.GOLDEN,),
        seed=1,
        cohort=Cohort.of(["watch-1"]),
        holdout=Cohort.of([]),
    )


def test_the_roster_lists_devices_by_name_whatever_the_order() -> None:
    payload = verify(roster_of("b", "a"), PayloadType.ROSTER, [public_key(ROOT)], what="roster")
    roster = decode(Roster, payload, limit=10_000)
    assert [device.name for device in roster.devices] == ["a", "b"]
    assert [operator.key for operator in roster.operators] == [public_key(OPERATOR)]


def test_an_enrolment_request_carries_three_envelopes_of_one_root_that_agree() -> None:
    device = member("watch-1", 1)
    sent = encode(enrolment_request(fleet=FLEET, device=device, roster=roster_of("watch-1"), root_key=ROOT))
    request = decode(EnrolmentRequest, sent, limit=10_000)
    root = [public_key(ROOT)]
    assert [request.root_key] == root
    enrolment = decode(
        Enrolment,
        verify(Envelope.from_json(request.enrolment), PayloadType.ENROLMENT, root, what="e"),
        limit=10_000,
    )
    policy = decode(
        Policy, verify(Envelope.from_json(request.policy), PayloadType.POLICY, root, what="p"), limit=10_000
    )
    assert (enrolment.device, enrolment.identity_key, enrolment.serial) == (device.name, device.key, 1)
    assert (policy.fleet, policy.device, policy.min_examples) == (FLEET, device.name, 20)
    verify(Envelope.from_json(request.roster), PayloadType.ROSTER, root, what="r")


def test_a_plan_reads_back_only_under_the_operator_that_signed_it() -> None:
    envelope = sign_plan(plan(), OPERATOR)
    payload = verify(envelope, PayloadType.PLAN, [public_key(OPERATOR)], what="plan")
    assert decode(Plan, payload, limit=10_000) == plan()
    assert sign_plan(plan(), OPERATOR).sha256 == envelope.sha256
    with pytest.raises(WireError):
        verify(envelope, PayloadType.PLAN, [public_key(ROOT)], what="plan")

"""Verdicts on envelopes: what is accepted, and by which word everything else is refused."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedctl_agent.worker.trust import Trust
from fedctl_wire.codec import dump_bytes, encode, from_json, parse_bytes, to_json
from fedctl_wire.errors import WireError
from fedctl_wire.manifest import MANIFEST_FILE
from fedctl_wire.messages import EnrolmentRequest, RosterDevice, RosterOperator, TaskKind
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope, PayloadType, generate_key, public_key, sign
from tests.unit.worker.signed_fleet import (
    AT,
    DEVICE,
    FLEET,
    OTHER_FLEET,
    SignedFleet,
    as_received,
    new_fleet,
    sha256,
)


@pytest.fixture
def trust(fleet: SignedFleet) -> Trust:
    return Trust(fleet.state)


def refusal(verify: Callable[[], object]) -> str:
    with pytest.raises(WireError) as caught:
        verify()
    return caught.value.code


def tampered(envelope: Envelope, old: bytes, new: bytes) -> Envelope:
    assert old in envelope.payload
    return replace(envelope, payload=envelope.payload.replace(old, new))


def with_field(envelope: Envelope, payload_type: PayloadType, key: object, **fields: object) -> Envelope:
    value = parse_bytes(envelope.payload, limit=10**6, what="payload")
    return sign(dump_bytes({**value, **fields}), payload_type, key)


# ---------------------------------------------------------------- accepted


def test_what_the_right_keys_signed_is_accepted(fleet: SignedFleet, trust: Trust, tmp_path: Path) -> None:
    manifest = fleet.write_bundle(tmp_path / "bundle")
    bundle = Envelope.from_bytes((tmp_path / "bundle" / MANIFEST_FILE).read_bytes())

    assert trust.plan(fleet.plan()).seed == 7
    assert trust.bundle(bundle) == manifest
    assert bundle.sha256 == sha256(manifest)
    assert trust.roster(fleet.roster(serial=4)).serial == 4
    assert trust.policy(fleet.policy(serial=6, allow=(TaskKind.TRAIN,))).allow == (TaskKind.TRAIN,)


def test_the_same_serial_again_is_accepted(fleet: SignedFleet, trust: Trust) -> None:
    assert trust.roster(fleet.roster()).serial == 3
    assert trust.policy(fleet.policy()).serial == 5


def test_a_roster_may_drop_this_device(fleet: SignedFleet, trust: Trust) -> None:
    assert trust.roster(fleet.roster(serial=4, devices=())).devices == ()


# ---------------------------------------------------------------- signatures


def test_a_plan_needs_an_operator_of_the_roster(fleet: SignedFleet, trust: Trust) -> None:
    for key in (generate_key(), fleet.identity, fleet.root):
        plan = fleet.plan(key=key)
        assert refusal(lambda plan=plan: trust.plan(plan)) == "signature"


def test_roster_and_policy_need_the_root(fleet: SignedFleet, trust: Trust) -> None:
    for key in (generate_key(), fleet.operator):
        roster, policy = fleet.roster(key=key, serial=9), fleet.policy(key=key, serial=9)
        assert refusal(lambda roster=roster: trust.roster(roster)) == "signature"
        assert refusal(lambda policy=policy: trust.policy(policy)) == "signature"


def test_a_bundle_needs_an_operator(fleet: SignedFleet, trust: Trust, tmp_path: Path) -> None:
    manifest = fleet.write_bundle(tmp_path / "bundle")
    bundle = sign(manifest.to_bytes(), PayloadType.BUNDLE, fleet.root)
    assert refusal(lambda: trust.bundle(bundle)) == "signature"


def test_changed_bytes_are_refused(fleet: SignedFleet, trust: Trust) -> None:
    plan = tampered(fleet.plan(), b'"seed":7', b'"seed":8')
    policy = tampered(fleet.policy(), b'"min_examples":20', b'"min_examples":00')
    roster = tampered(fleet.roster(), b'"serial":3', b'"serial":9')
    assert refusal(lambda: trust.plan(plan)) == "signature"
    assert refusal(lambda: trust.policy(policy)) == "signature"
    assert refusal(lambda: trust.roster(roster)) == "signature"


def test_a_changed_or_missing_signature_is_refused(fleet: SignedFleet, trust: Trust) -> None:
    plan = fleet.plan()
    (good,) = plan.signatures
    other = replace(good, sig=base64.b64encode(bytes(64)).decode())
    short = replace(good, sig=base64.b64encode(b"short").decode())
    for signatures in ((), (other,), (short,)):
        changed = replace(plan, signatures=signatures)
        assert refusal(lambda changed=changed: trust.plan(changed)) == "signature"
    assert trust.plan(replace(plan, signatures=(other, good))).seed == 7


def test_one_signed_thing_never_passes_for_another(fleet: SignedFleet, trust: Trust) -> None:
    verdicts = {
        PayloadType.PLAN: trust.plan,
        PayloadType.BUNDLE: trust.bundle,
        PayloadType.POLICY: trust.policy,
        PayloadType.ROSTER: trust.roster,
    }
    offered = {
        PayloadType.PLAN: fleet.plan(),
        PayloadType.POLICY: fleet.policy(),
        PayloadType.ROSTER: fleet.roster(),
        PayloadType.ENROLMENT: fleet.enrolment(),
    }
    for wanted, verify in verdicts.items():
        for kind, envelope in offered.items():
            if kind is not wanted:
                assert refusal(lambda v=verify, e=envelope: v(e)) == "signature"
                relabelled = replace(envelope, payload_type=wanted.value)
                assert refusal(lambda v=verify, e=relabelled: v(e)) == "signature"


def test_a_right_signature_does_not_excuse_the_wrong_content(fleet: SignedFleet, trust: Trust) -> None:
    """The root could sign a plan's bytes as a policy by mistake: strict decoding catches it."""
    confused = sign(fleet.plan().payload, PayloadType.POLICY, fleet.root)
    assert refusal(lambda: trust.policy(confused)) in {"malformed", "unknown_field"}


# ---------------------------------------------------------------- content


def test_unknown_fields_are_refused(fleet: SignedFleet, trust: Trust) -> None:
    plan = with_field(fleet.plan(), PayloadType.PLAN, fleet.operator, also=1)
    policy = with_field(fleet.policy(), PayloadType.POLICY, fleet.root, unless="asked nicely")
    roster = with_field(fleet.roster(), PayloadType.ROSTER, fleet.root, extra={})
    assert refusal(lambda: trust.plan(plan)) == "unknown_field"
    assert refusal(lambda: trust.policy(policy)) == "unknown_field"
    assert refusal(lambda: trust.roster(roster)) == "unknown_field"


def test_another_version_is_refused(fleet: SignedFleet, trust: Trust) -> None:
    assert refusal(lambda: trust.plan(fleet.plan(version=2))) == "malformed"
    assert refusal(lambda: trust.policy(fleet.policy(version=2))) == "malformed"
    assert refusal(lambda: trust.roster(fleet.roster(version=0))) == "malformed"


def test_wrong_types_and_broken_json_are_refused(fleet: SignedFleet, trust: Trust) -> None:
    plan = with_field(fleet.plan(), PayloadType.PLAN, fleet.operator, seed="7")
    broken = sign(b'{"fleet":', PayloadType.PLAN, fleet.operator)
    twice = sign(b'{"seed":1,"seed":2}', PayloadType.PLAN, fleet.operator)
    for envelope in (plan, broken, twice):
        assert refusal(lambda envelope=envelope: trust.plan(envelope)) == "malformed"


def test_another_fleet_is_refused(fleet: SignedFleet, trust: Trust) -> None:
    assert refusal(lambda: trust.plan(fleet.plan(fleet=OTHER_FLEET))) == "fleet"
    assert refusal(lambda: trust.roster(fleet.roster(fleet=OTHER_FLEET, serial=9))) == "fleet"
    assert refusal(lambda: trust.policy(fleet.policy(fleet=OTHER_FLEET, serial=9))) == "fleet"


def test_a_policy_for_another_device_is_refused(fleet: SignedFleet, trust: Trust) -> None:
    assert refusal(lambda: trust.policy(fleet.policy(device=Name("wrist-02"), serial=9))) == "device"


def test_older_rosters_and_policies_are_refused(fleet: SignedFleet, trust: Trust) -> None:
    assert refusal(lambda: trust.roster(fleet.roster(serial=2))) == "rollback"
    assert refusal(lambda: trust.policy(fleet.policy(serial=4))) == "rollback"


def test_a_roster_with_an_unusable_key_is_refused(fleet: SignedFleet, trust: Trust) -> None:
    for key in ("zz", "ab", ""):
        roster = fleet.roster(serial=9, operators=(RosterOperator(Name("bob"), key),))
        assert refusal(lambda roster=roster: trust.roster(roster)) == "malformed"


# ---------------------------------------------------------------- what the device holds


def test_replaced_files_count_at_once(fleet: SignedFleet, trust: Trust) -> None:
    newcomer = generate_key()
    plan = fleet.plan(key=newcomer)
    assert refusal(lambda: trust.plan(plan)) == "signature"

    roster = fleet.roster(serial=4, operators=(RosterOperator(Name("bob"), public_key(newcomer)),))
    fresh = fleet.state.roster.with_suffix(".new")
    fresh.write_bytes(roster.to_bytes())
    fresh.replace(fleet.state.roster)

    assert trust.plan(plan).seed == 7
    assert refusal(lambda: trust.plan(fleet.plan())) == "signature", "the operator was revoked"
    assert refusal(lambda: trust.roster(fleet.roster())) == "rollback"


def test_unchanged_files_are_read_once(fleet: SignedFleet, trust: Trust) -> None:
    anchors = trust.anchors()
    assert trust.anchors() is anchors
    os.utime(fleet.state.policy)
    assert trust.anchors() is not anchors


def test_a_tampered_state_directory_stops_the_work(fleet: SignedFleet, trust: Trust) -> None:
    intruder = generate_key()
    forged = fleet.roster(key=intruder, operators=(RosterOperator(Name("eve"), public_key(intruder)),))
    fleet.state.roster.write_bytes(forged.to_bytes())
    assert refusal(lambda: trust.plan(fleet.plan(key=intruder))) == "signature"
    assert refusal(lambda: trust.plan(fleet.plan())) == "signature"


@pytest.mark.parametrize("name", ["roster", "policy", "enrolment", "root_key"])
def test_garbage_in_a_held_file_stops_the_work(fleet: SignedFleet, trust: Trust, name: str) -> None:
    getattr(fleet.state, name).write_bytes(b"\xff\x00")
    assert refusal(lambda: trust.plan(fleet.plan())) == "malformed"


@pytest.mark.parametrize("name", ["roster", "policy", "enrolment"])
def test_a_lost_file_stops_the_work(fleet: SignedFleet, trust: Trust, name: str) -> None:
    getattr(fleet.state, name).unlink()
    assert refusal(lambda: trust.plan(fleet.plan())) == "state"


def test_an_unreadable_file_stops_the_work(fleet: SignedFleet, trust: Trust) -> None:
    fleet.state.policy.unlink()
    fleet.state.policy.mkdir()
    assert refusal(lambda: trust.plan(fleet.plan())) == "state"


def test_before_enrolment_nothing_is_trusted(tmp_path: Path) -> None:
    fleet = new_fleet(tmp_path)
    trust = Trust(fleet.state)
    for verify in (
        lambda: trust.plan(fleet.plan()),
        lambda: trust.bundle(fleet.plan()),
        lambda: trust.roster(fleet.roster()),
        lambda: trust.policy(fleet.policy()),
    ):
        assert refusal(verify) == "not_enrolled"


# ---------------------------------------------------------------- enrolment


@pytest.fixture
def newcomer(tmp_path: Path) -> SignedFleet:
    return new_fleet(tmp_path / "fresh")


def enrolment_refusal(fleet: SignedFleet, request: EnrolmentRequest) -> str:
    return refusal(lambda: Trust(fleet.state).enrolment(request))


def test_an_enrolment_is_accepted_before_any_root_is_pinned(newcomer: SignedFleet) -> None:
    enrolment = Trust(newcomer.state).enrolment(newcomer.request())
    assert (enrolment.fleet, enrolment.device) == (FLEET, DEVICE)


def test_the_remains_of_an_enrolment_cut_short_do_not_count(newcomer: SignedFleet) -> None:
    newcomer.state.roster.write_bytes(newcomer.roster(key=generate_key(), serial=99).to_bytes())
    assert Trust(newcomer.state).enrolment(newcomer.request()).device == DEVICE


def test_each_envelope_must_be_signed_by_the_root_that_is_offered(newcomer: SignedFleet) -> None:
    other = generate_key()
    for changes in (
        {"enrolment": as_received(newcomer.enrolment(key=other))},
        {"roster": as_received(newcomer.roster(key=other))},
        {"policy": as_received(newcomer.policy(key=other))},
        {"root_key": public_key(other)},
    ):
        assert enrolment_refusal(newcomer, newcomer.request(**changes)) == "signature"


def test_the_three_envelopes_must_fit_each_other(newcomer: SignedFleet) -> None:
    for changes, code in (
        ({"enrolment": as_received(newcomer.enrolment(fleet=OTHER_FLEET))}, "fleet"),
        ({"roster": as_received(newcomer.roster(fleet=OTHER_FLEET))}, "fleet"),
        ({"policy": as_received(newcomer.policy(fleet=OTHER_FLEET))}, "fleet"),
        ({"policy": as_received(newcomer.policy(device=Name("wrist-02")))}, "device"),
        ({"enrolment": as_received(newcomer.enrolment(device=Name("wrist-02")))}, "device"),
    ):
        assert enrolment_refusal(newcomer, newcomer.request(**changes)) == code


def test_an_enrolment_is_for_this_devices_key(newcomer: SignedFleet) -> None:
    stranger = as_received(newcomer.enrolment(identity_key=public_key(generate_key())))
    assert enrolment_refusal(newcomer, newcomer.request(enrolment=stranger)) == "identity"


def test_the_roster_must_list_the_device_as_enrolled(newcomer: SignedFleet) -> None:
    key = public_key(newcomer.identity)
    for devices in (
        (),
        (RosterDevice(Name("wrist-02"), key, 1, AT),),
        (RosterDevice(DEVICE, public_key(generate_key()), 1, AT),),
        (RosterDevice(DEVICE, key, 2, AT),),
        (RosterDevice(DEVICE, key, 1, AT), RosterDevice(DEVICE, key, 1, AT)),
    ):
        roster = as_received(newcomer.roster(devices=devices))
        assert enrolment_refusal(newcomer, newcomer.request(roster=roster)) == "roster"


def test_a_device_without_a_key_cannot_be_enrolled(newcomer: SignedFleet) -> None:
    newcomer.state.identity_key.unlink()
    assert enrolment_refusal(newcomer, newcomer.request()) == "state"


def test_missing_and_misplaced_envelopes_are_refused(newcomer: SignedFleet) -> None:
    assert enrolment_refusal(newcomer, newcomer.request(roster=None)) == "malformed"
    swapped = newcomer.request(roster=as_received(newcomer.policy()))
    assert enrolment_refusal(newcomer, swapped) == "signature"
    assert enrolment_refusal(newcomer, newcomer.request(root_key="not hex")) == "malformed"


def test_the_same_root_again_is_accepted_another_is_not(fleet: SignedFleet) -> None:
    assert Trust(fleet.state).enrolment(fleet.request()).device == DEVICE
    other = SignedFleet(fleet.state, operator=fleet.operator, identity=fleet.identity)
    assert enrolment_refusal(fleet, other.request()) == "root"


def test_enrolling_again_cannot_bring_back_older_trust(fleet: SignedFleet) -> None:
    assert enrolment_refusal(fleet, fleet.request(roster=as_received(fleet.roster(serial=2)))) == "rollback"
    assert enrolment_refusal(fleet, fleet.request(policy=as_received(fleet.policy(serial=4)))) == "rollback"


# ---------------------------------------------------------------- anything at all

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> SignedFleet:
    fleet = new_fleet(tmp_path_factory.mktemp("fuzz"))
    fleet.enrol()
    return fleet


_TEXTS = st.text(alphabet=st.characters(codec=None, exclude_categories=()))


@given(
    payload_type=st.sampled_from([*PayloadType, "text/plain"]) | _TEXTS,
    payload=st.binary(max_size=64) | _JSON.map(dump_bytes),
    key_id=_TEXTS,
    sig=_TEXTS | st.binary(max_size=70).map(lambda b: base64.b64encode(b).decode()),
)
def test_no_envelope_makes_it_raise_anything_else(
    enrolled: SignedFleet, payload_type: str, payload: bytes, key_id: str, sig: str
) -> None:
    trust = Trust(enrolled.state)
    value = {
        "payloadType": str(payload_type),
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": key_id, "sig": sig}],
    }
    for verify in (trust.plan, trust.bundle, trust.policy, trust.roster):
        assert refusal(lambda verify=verify: verify(Envelope.from_json(value))) in {"signature", "malformed"}


@given(payload=_JSON.map(dump_bytes))
def test_no_signed_payload_makes_it_raise_anything_else(enrolled: SignedFleet, payload: bytes) -> None:
    trust = Trust(enrolled.state)
    plan = sign(payload, PayloadType.PLAN, enrolled.operator)
    assert refusal(lambda: trust.plan(plan)) in {"malformed", "unknown_field"}
    bundle = sign(payload, PayloadType.BUNDLE, enrolled.operator)
    assert refusal(lambda: trust.bundle(bundle)) in {"malformed", "unknown_field"}


def test_a_request_survives_its_own_encoding(newcomer: SignedFleet) -> None:
    request = newcomer.request()
    again = from_json(EnrolmentRequest, parse_bytes(encode(request), limit=10**6, what="request"))
    assert to_json(again) == to_json(request)
    assert Trust(newcomer.state).enrolment(again).device == DEVICE

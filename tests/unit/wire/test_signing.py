import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedctl_wire.codec import dump_bytes
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.signing import (
    Envelope,
    PayloadType,
    Signature,
    fingerprint,
    generate_key,
    key_id,
    private_key_from_pem,
    private_key_to_pem,
    public_key,
    sign,
    verify,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC, OTHER_PUBLIC = public_key(KEY), public_key(OTHER)
PAYLOAD = b'{"a": 1,  "b":2}'  # not canonical on purpose: bytes are signed as sent


@pytest.fixture
def envelope() -> Envelope:
    return sign(PAYLOAD, PayloadType.PLAN, KEY)


def refused(envelope: Envelope, keys: list[str], kind: PayloadType = PayloadType.PLAN) -> WireError:
    with pytest.raises(WireError) as caught:
        verify(envelope, kind, keys, what="plan")
    return caught.value


def test_the_payload_comes_back_as_it_was_signed(envelope: Envelope) -> None:
    assert verify(envelope, PayloadType.PLAN, [OTHER_PUBLIC, PUBLIC], what="plan") == PAYLOAD
    again = Envelope.from_bytes(envelope.to_bytes())
    assert again == envelope
    assert verify(again, PayloadType.PLAN, iter([PUBLIC]), what="plan") == PAYLOAD


@pytest.mark.parametrize("position", range(0, len(PAYLOAD), 5))
def test_one_flipped_bit_of_the_payload(envelope: Envelope, position: int) -> None:
    changed = bytearray(PAYLOAD)
    changed[position] ^= 1
    assert refused(replace(envelope, payload=bytes(changed)), [PUBLIC]).code == "signature"


@pytest.mark.parametrize("position", [0, 31, 32, 63])
def test_one_flipped_bit_of_the_signature(envelope: Envelope, position: int) -> None:
    raw = bytearray(base64.b64decode(envelope.signatures[0].sig))
    raw[position] ^= 1
    forged = Signature(envelope.signatures[0].keyid, base64.b64encode(raw).decode())
    assert refused(replace(envelope, signatures=(forged,)), [PUBLIC]).code == "signature"


@pytest.mark.parametrize("kind", [kind for kind in PayloadType if kind is not PayloadType.PLAN])
def test_a_plan_never_passes_for_anything_else(envelope: Envelope, kind: PayloadType) -> None:
    error = refused(envelope, [PUBLIC], kind)
    assert (error.code, error.subject) == ("signature", "plan")
    assert "is signed as 'application/vnd.fedctl.plan+json'" in str(error)
    relabelled = replace(envelope, payload_type=kind.value)
    assert "not signed by a key" in str(refused(relabelled, [PUBLIC], kind))


def test_the_boundary_between_type_and_payload_is_signed() -> None:
    moved = Envelope(
        "application/vnd.fedctl.plan+jso", b"n" + PAYLOAD, sign(PAYLOAD, PayloadType.PLAN, KEY).signatures
    )
    assert refused(moved, [PUBLIC]).code == "signature"


def test_other_keys_no_keys_and_no_signatures(envelope: Envelope) -> None:
    for bad, keys in [
        (envelope, [OTHER_PUBLIC]),
        (envelope, []),
        (replace(envelope, signatures=()), [PUBLIC]),
    ]:
        assert refused(bad, keys).code == "signature"


def test_a_key_id_that_names_a_trusted_key_but_another_signed(envelope: Envelope) -> None:
    forged = sign(PAYLOAD, PayloadType.PLAN, OTHER).signatures[0]
    assert (
        refused(replace(envelope, signatures=(replace(forged, keyid=key_id(PUBLIC)),)), [PUBLIC]).code
        == "signature"
    )


def test_one_good_signature_among_several_is_enough(envelope: Envelope) -> None:
    good = envelope.signatures[0]
    broken = replace(good, sig=base64.b64encode(bytes(64)).decode())
    short = replace(good, sig="")
    stranger = sign(PAYLOAD, PayloadType.PLAN, OTHER).signatures[0]
    for order in [(broken, stranger, good), (good, broken), (short, good)]:
        assert verify(replace(envelope, signatures=order), PayloadType.PLAN, [PUBLIC], what="plan") == PAYLOAD


def test_the_number_of_signatures_is_capped(envelope: Envelope) -> None:
    crowd = replace(envelope, signatures=envelope.signatures * LIMITS.signatures)
    assert Envelope.from_json(crowd.to_json()) == crowd
    crowd = replace(envelope, signatures=envelope.signatures * (LIMITS.signatures + 1))
    with pytest.raises(WireError, match="17 signatures") as caught:
        Envelope.from_json(crowd.to_json())
    assert caught.value.code == "too_large"


def test_a_signature_that_is_not_base64_is_malformed(envelope: Envelope) -> None:
    bad = replace(envelope, signatures=(replace(envelope.signatures[0], sig="%%%%"),))
    assert refused(bad, [PUBLIC]).code == "malformed"


@pytest.mark.parametrize(
    "text",
    ["QQ", "QQ=", "QQ===", "Q", "QQ==\n", " QQ==", "Q-_=", "ÄÖ==", "QR==", "QQ==QQ=="],  # QR== has stray bits
)
def test_a_payload_that_is_not_canonical_base64(envelope: Envelope, text: str) -> None:
    with pytest.raises(WireError, match="base64"):
        Envelope.from_json({**envelope.to_json(), "payload": text})


@pytest.mark.parametrize(
    "change",
    [
        {"payload": None},
        {"payload": 5},
        {"payloadType": []},
        {"signatures": {}},
        {"signatures": [{"keyid": "x"}]},
        {"signatures": [{"keyid": "x", "sig": "", "extra": 1}]},
        {"surprise": 1},
    ],
)
def test_an_envelope_of_another_shape(envelope: Envelope, change: dict[str, object]) -> None:
    with pytest.raises(WireError):
        Envelope.from_bytes(dump_bytes({**envelope.to_json(), **change}))


def test_an_envelope_without_a_field(envelope: Envelope) -> None:
    for name in envelope.to_json():
        plain = {key: value for key, value in envelope.to_json().items() if key != name}
        with pytest.raises(WireError, match=name):
            Envelope.from_json(plain)


@pytest.mark.parametrize(
    "public", ["", "00", "zz" * 32, "AB" * 32, " 0" * 32, "00" * 32 + " ", "00" * 33, "\u0660" * 64]
)
def test_a_public_key_has_one_spelling(public: str) -> None:
    for use in (key_id, fingerprint):
        with pytest.raises(WireError, match="64 lower-case hexadecimal"):
            use(public)


def test_a_trusted_key_that_is_no_point_verifies_nothing(envelope: Envelope) -> None:
    nowhere = "ff" * 32
    forged = replace(envelope, signatures=(replace(envelope.signatures[0], keyid=key_id(nowhere)),))
    assert refused(forged, [nowhere]).code == "signature"


def test_keys_survive_pem_and_fresh_ones_differ() -> None:
    pem = private_key_to_pem(KEY)
    assert public_key(private_key_from_pem(pem, what="operator key")) == PUBLIC
    assert public_key(generate_key()) != public_key(generate_key())


def test_a_fingerprint_is_short_and_stable() -> None:
    assert fingerprint(PUBLIC) == "56:47:5a:a7:54:63:47:4c:02:85:df:5d:bf:2b:ca:b7"


PKCS8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
        private_key_to_pem(KEY)[:-40],
        private_key_to_pem(KEY).replace(b"MC4", b"MC5"),
        KEY.private_bytes(*PKCS8, serialization.BestAvailableEncryption(b"word")),
        X25519PrivateKey.from_private_bytes(bytes(32)).private_bytes(*PKCS8, serialization.NoEncryption()),
        KEY.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    ],
    ids=["empty", "hollow", "cut", "garbled", "encrypted", "x25519", "public"],
)
def test_a_pem_that_holds_no_plain_ed25519_key(pem: bytes) -> None:
    with pytest.raises(WireError, match="operator key is not an"):
        private_key_from_pem(pem, what="operator key")

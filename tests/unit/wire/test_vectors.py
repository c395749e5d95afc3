"""The files in tests/vectors hold for this implementation, and for any other."""

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedctl_wire import manifest, messages
from fedctl_wire.codec import decode, dump_bytes, encode, from_json
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import Manifest
from fedctl_wire.messages import Cohort, TaskKind, job_seed, task_id
from fedctl_wire.signing import Envelope, PayloadType, fingerprint, key_id, public_key, sign, verify
from fedctl_wire.tensors import read_header
from tests.property.wire.messages import MESSAGES

VECTORS = Path(__file__).parents[2] / "vectors"


def vectors(name: str) -> Any:
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


KEYS = vectors("keys.json")["keys"]
ENVELOPES = vectors("envelopes.json")
TENSORS = vectors("tensors.json")


def named(items: list[dict[str, Any]], key: str) -> list[Any]:
    return [pytest.param(item, id=str(item[key])) for item in items]


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_keys(key: dict[str, str]) -> None:
    public = public_key(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key["secret"])))
    assert (public, key_id(public), fingerprint(public)) == (key["public"], key["key_id"], key["fingerprint"])


@pytest.mark.parametrize("name", ENVELOPES["envelopes"])
def test_envelopes(name: str) -> None:
    vector = ENVELOPES["envelopes"][name]
    key, kind = KEYS[vector["signer"]], PayloadType[name.upper()]
    envelope = Envelope.from_json(vector["envelope"])
    assert verify(envelope, kind, [key["public"]], what=name) == vector["payload"].encode()
    assert envelope.sha256 == vector["sha256"]
    secret = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key["secret"]))
    assert sign(vector["payload"].encode(), kind, secret).to_json() == vector["envelope"]


@pytest.mark.parametrize("vector", named(ENVELOPES["refused"], "why"))
def test_envelopes_to_refuse(vector: dict[str, Any]) -> None:
    with pytest.raises(WireError) as caught:
        verify(
            Envelope.from_bytes(dump_bytes(vector["envelope"])),
            PayloadType.PLAN,
            [KEYS["operator"]["public"]],
            what="plan",
        )
    assert caught.value.code == vector["code"]


def test_task_ids_seeds_and_cohorts() -> None:
    tasks = vectors("tasks.json")
    for v in tasks["task_ids"]:
        parts = {"attempt": v["attempt"], "device": v["device"], "plan": v["plan"], "bundle": v["bundle"]}
        assert task_id(round_id=v["round"], kind=TaskKind(v["kind"]), **parts) == v["task_id"]
    for v in tasks["job_seeds"]:
        assert str(job_seed(v["plan_seed"], v["device"], TaskKind(v["kind"]))) == v["seed"]
    for v in tasks["cohorts"]:
        assert Cohort.of(v["names"]) == Cohort(v["size"], v["names_sha256"])


def test_the_manifest_and_its_name() -> None:
    vector = vectors("manifest.json")
    data = vector["canonical"].encode()
    assert hashlib.sha256(data).hexdigest() == vector["sha256"]
    assert Manifest.from_bytes(data).to_bytes() == data
    assert from_json(Manifest, vector["value"]).to_bytes() == data


def test_every_message_has_a_vector() -> None:
    assert {v["class"] for v in vectors("messages.json")["messages"]} == {cls.__name__ for cls in MESSAGES}


@pytest.mark.parametrize("vector", named(vectors("messages.json")["messages"], "class"))
def test_messages(vector: dict[str, str]) -> None:
    cls: type = getattr(messages, vector["class"], None) or getattr(manifest, vector["class"])
    data = vector["canonical"].encode()
    assert encode(decode(cls, data, limit=LIMITS.json_body_bytes)) == data


@pytest.mark.parametrize("vector", named(TENSORS["files"], "what"))
def test_tensor_files(vector: dict[str, Any]) -> None:
    data = base64.b64decode(vector["base64"])
    header = read_header(io.BytesIO(data), total_bytes=len(data), what="file")
    assert [[i.name, i.dtype, list(i.shape), i.begin, i.end] for i in header.tensors] == vector["tensors"]
    assert header.metadata == vector["metadata"]
    assert {name for name, _ in safetensors.deserialize(data)} == {info.name for info in header.tensors}


@pytest.mark.parametrize("vector", named(TENSORS["refused"], "why"))
def test_tensor_files_to_refuse(vector: dict[str, str]) -> None:
    data = base64.b64decode(vector["base64"])
    with pytest.raises(WireError):
        read_header(io.BytesIO(data), total_bytes=len(data), what="file")

"""What a test reads from the directory of an ended job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedctl_wire.codec import decode
from fedctl_wire.messages import Result
from fedctl_wire.signing import Envelope, PayloadType, public_key, verify
from tests.unit.worker.signed_fleet import SignedFleet


def result_of(fleet: SignedFleet, task_dir: Path) -> Result:
    envelope = Envelope.from_bytes((task_dir / "result.json").read_bytes())
    payload = verify(envelope, PayloadType.RESULT, [public_key(fleet.identity)], what="result")
    assert not (task_dir / "failure.json").exists()
    return decode(Result, payload, limit=10**6)


def failure_of(task_dir: Path) -> dict[str, Any]:
    assert not (task_dir / "result.json").exists()
    assert not (task_dir / "result.safetensors").exists()
    failure: dict[str, Any] = json.loads((task_dir / "failure.json").read_bytes())
    assert failure.keys() == {"code", "message", "state"}
    return failure


def outcome(failure: dict[str, Any]) -> tuple[str, str]:
    return failure["code"], failure["state"]

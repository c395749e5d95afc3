"""The daemon with its real worker: what is verified is verified before it is answered."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedctl_agent.daemon.workerlink import WORKER_COMMAND
from fedctl_wire.codec import encode
from fedctl_wire.messages import TaskKind
from fedctl_wire.signing import generate_key
from tests.fakes.daemon_bed import Bed, served


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path / "state")
    with served(bed, worker=WORKER_COMMAND):
        yield bed


def test_only_what_the_right_key_signed_is_taken(bed: Bed) -> None:
    stranger = generate_key()
    forged = bed.fleet.request(policy=bed.fleet.policy(key=stranger).to_json())
    answer = bed.client("PUT", "/enrolment", encode(forged))
    assert (answer.status, answer.code) == (403, "signature")
    assert bed.client("GET", "/identity").json["enrolled"] is False
    assert bed.enrol().json["device"] == "wrist-01"
    assert bed.client("PUT", "/roster", bed.fleet.roster(key=stranger).to_bytes()).code == "signature"
    assert bed.client("PUT", "/roster", bed.fleet.roster(serial=2).to_bytes()).code == "rollback"
    assert bed.client("PUT", "/policy", bed.fleet.plan().to_bytes()).code == "signature"
    bundle = bed.push()
    assert bed.put_task(bed.request(bundle, key=stranger)).code == "signature"
    assert list(bed.state.tasks.iterdir()) == []


def test_a_worker_that_left_is_started_again(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "FEDCTL_WORKER_IDLE_S", "0")
    assert bed.enrol().status == 200
    for serial in range(4, 8):
        assert bed.client("PUT", "/roster", bed.fleet.roster(serial=serial).to_bytes()).status == 200


def test_a_jobs_refusal_reaches_the_caller(bed: Bed) -> None:
    bed.enrol()
    request = bed.request(bed.push(), TaskKind.STATS)
    bed.put_task(request)
    status = bed.final(request)
    assert (status["state"], status["reason"]["code"]) == ("refused", "no_source")


def test_a_damaged_bundle_fails_once_and_heals_with_the_next_push(bed: Bed) -> None:
    bed.enrol()
    bundle = bed.push(query="?activate=1")
    (bed.state.models / "har" / "A" / "train.json").write_bytes(b'{"version":2}')
    bed.put_task(request := bed.request(bundle, TaskKind.STATS))
    reason = bed.final(request)["reason"]
    assert (reason["code"], "train.json" in reason["message"]) == ("hash", True)
    assert bed.put_model(bed.bundle()[0]).status == 409
    assert bed.push(query="?activate=1") == bundle
    bed.put_task(request := bed.request(bundle, TaskKind.STATS))
    assert bed.final(request)["reason"]["code"] == "no_source"


def test_a_lost_file_of_a_bundle_is_named_and_heals_with_the_next_push(bed: Bed) -> None:
    bed.enrol()
    bundle = bed.push()
    (bed.state.models / "har" / "A" / "train.json").unlink()
    answer = bed.put_task(bed.request(bundle, TaskKind.STATS))
    assert (answer.status, answer.code, "train.json" in answer.json["message"]) == (409, "no_model", True)
    bed.push()
    bed.put_task(request := bed.request(bundle, TaskKind.STATS))
    assert bed.final(request)["reason"]["code"] == "no_source"


def test_a_large_upload_arrives_whole(bed: Bed) -> None:
    bed.enrol()
    data = os.urandom(1 << 20) * 24
    sha256 = hashlib.sha256(data).hexdigest()
    assert bed.upload(sha256, data).json["offset"] == len(data)

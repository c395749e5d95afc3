"""Every call of the client against an agent that behaves."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError, DeviceError, RefusedError, TrustError, UnreachableError
from fedctl.transport import AgentClient
from fedctl_wire.codec import encode
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import BUNDLE_FILES, MANIFEST_FILE, BundleFile, Manifest, TensorSpec
from fedctl_wire.messages import (
    EnrolmentRequest,
    ErrorBody,
    MissingBlob,
    ModelInstalled,
    TaskKind,
    TaskRequest,
    TaskState,
    TaskStatus,
    TrainSettings,
)
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope, PayloadType
from tests.contract.transport.conftest import Reach
from tests.fakes.agent_server import FakeAgent, error

PLAN = Envelope(PayloadType.PLAN, b'{"round": "r-1"}', ()).to_json()
TASK = TaskRequest("ab" * 32, 1, Name("watch-1"), TaskKind.TRAIN, "cd" * 32, PLAN)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose weights take several blocks; its signature is not looked at here."""
    files = {}
    for number, name in enumerate(BUNDLE_FILES):
        data = os.urandom(300_000 if number == 0 else 100)
        (tmp_path / name).write_bytes(data)
        files[name] = BundleFile(hashlib.sha256(data).hexdigest(), len(data))
    manifest = Manifest(
        Name("har"),
        3,
        "mlp",
        (4,),
        2,
        (TensorSpec("w", (4, 2)),),
        files,
        ("MatMul",),
        TrainSettings(lr=0.1),
    )
    envelope = Envelope(PayloadType.BUNDLE, manifest.to_bytes(), ())
    (tmp_path / MANIFEST_FILE).write_bytes(envelope.to_bytes())
    return tmp_path


def test_health_and_identity(agent: FakeAgent, client: AgentClient) -> None:
    assert client.health() == agent.health
    assert client.identity() == agent.identity


def test_what_a_device_says_of_its_data(agent: FakeAgent, client: AgentClient) -> None:
    assert client.data(timeout_s=30) == agent.data


def test_a_root_is_pinned_once(client: AgentClient) -> None:
    request = EnrolmentRequest("aa" * 32, {}, {}, {})
    assert client.enrol(request).enrolled
    assert client.enrol(request).root_key == "aa" * 32
    with pytest.raises(TrustError, match="watch-1: another root is pinned") as caught:
        client.enrol(replace(request, root_key="bb" * 32))
    assert caught.value.code == "other_root"


def test_a_roster_arrives_byte_for_byte(agent: FakeAgent, client: AgentClient) -> None:
    roster = Envelope(PayloadType.ROSTER, b'{ "odd" :  "spacing"}', ())
    client.put_roster(roster)
    assert Envelope.from_bytes(agent.received["roster"]) == roster


def test_calls_share_one_connection_and_are_counted(agent: FakeAgent, client: AgentClient) -> None:
    for _ in range(3):
        client.health()
    first_up, first_down = client.traffic.bytes_up, client.traffic.bytes_down
    client.health()
    assert client.traffic.bytes_up * 3 == first_up * 4
    assert client.traffic.bytes_down * 3 == first_down * 4
    assert 50 < first_down / 3 < 500
    assert [request[1] for request in agent.requests] == ["/health"] * 4


def test_a_restarted_agent_is_found_again(reach: Reach) -> None:
    client = reach.client()
    for _ in range(2):
        with FakeAgent(reach.place):
            assert client.health().boot_id == "boot-1"


def test_a_closed_client_connects_again(client: AgentClient) -> None:
    client.health()
    client.close()
    client.close()
    assert client.health().boot_id == "boot-1"


def test_nobody_answers_before_the_agent_runs(reach: Reach) -> None:
    client = reach.client()
    with pytest.raises(UnreachableError, match="agent is not running on device watch-1") as caught:
        client.health()
    assert caught.value.code == "agent_down"
    assert reach.place.name in caught.value.message
    with FakeAgent(reach.place):
        client.health()


# ------------------------------------------------------------------ models


def test_a_bundle_is_pushed_and_installed(agent: FakeAgent, client: AgentClient, bundle: Path) -> None:
    sent: list[int] = []
    installed = client.push_bundle(bundle, activate=True, on_bytes=sent.append)
    assert (installed.model, installed.version, installed.active) == ("har", 3, True)
    assert sum(sent) == 300_200
    for name in BUNDLE_FILES:
        data = (bundle / name).read_bytes()
        assert agent.blobs[hashlib.sha256(data).hexdigest()] == data


def test_what_the_device_holds_is_not_sent_again(agent: FakeAgent, client: AgentClient, bundle: Path) -> None:
    client.push_bundle(bundle, activate=False)
    agent.requests.clear()
    assert client.push_bundle(bundle, activate=True).active
    assert [method for method, _ in agent.requests] == ["PUT"]


def test_before_an_upload_the_device_may_say_no(agent: FakeAgent, client: AgentClient, bundle: Path) -> None:
    asked: list[int] = []

    def no() -> None:
        asked.append(len(agent.requests))
        raise RefusedError("it does not fit", code="schema")

    with pytest.raises(RefusedError, match="it does not fit"):
        client.push_bundle(bundle, activate=True, before_upload=no)
    assert asked == [1]
    assert [method for method, _ in agent.requests] == ["PUT"]  # no byte of a file
    client.push_bundle(bundle, activate=True)
    assert client.push_bundle(bundle, activate=True, before_upload=no).active  # nothing to be sent
    assert len(asked) == 1


@pytest.mark.parametrize("code", ["schema", "no_source", "policy"])
def test_a_device_s_own_no_is_a_refusal(agent: FakeAgent, client: AgentClient, code: str) -> None:
    agent.answers["/health"] = (403, {}, encode(ErrorBody(code, "not with me")))
    with pytest.raises(RefusedError, match="watch-1: not with me") as caught:
        client.health()
    assert caught.value.code == code


def test_a_file_that_the_device_cannot_have_is_sent_unasked(
    agent: FakeAgent, client: AgentClient, bundle: Path
) -> None:
    weights = hashlib.sha256((bundle / BUNDLE_FILES[0]).read_bytes()).hexdigest()
    assert client.push_bundle(bundle, activate=True, unseen=[weights]).active
    first, *rest = [(method, path) for method, path in agent.requests]
    assert first[0] == "PATCH"
    assert weights in first[1]
    assert not [path for method, path in rest if method == "PATCH" and weights in path]


def test_a_cut_upload_goes_on_where_it_stopped(agent: FakeAgent, client: AgentClient, bundle: Path) -> None:
    agent.cut_after = 100_000
    with pytest.raises(UnreachableError, match="watch-1"):
        client.push_bundle(bundle, activate=True)
    sent: list[int] = []
    assert client.push_bundle(bundle, activate=True, on_bytes=sent.append).active
    assert sum(sent) <= 200_200


def test_an_upload_follows_the_device_s_offset(agent: FakeAgent, client: AgentClient, bundle: Path) -> None:
    weights = (bundle / BUNDLE_FILES[0]).read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()
    missing = tuple(
        MissingBlob(hashlib.sha256(data).hexdigest(), len(data))
        for data in ((bundle / name).read_bytes() for name in BUNDLE_FILES)
    )
    agent.answers["/models/har/3"] = (409, {}, encode(ModelInstalled("har", 3, "cd" * 32, missing=missing)))
    agent.blobs[sha256] = bytearray(weights[:123_456])  # the answer above said 0
    with pytest.raises(DeviceError, match="still lacks 3 files"):
        client.push_bundle(bundle, activate=True)
    assert agent.blobs[sha256] == weights


@pytest.mark.parametrize("offset", [-1, 300_001])
def test_an_impossible_offset_is_not_believed(
    agent: FakeAgent, client: AgentClient, bundle: Path, offset: int
) -> None:
    sha256 = hashlib.sha256((bundle / BUNDLE_FILES[0]).read_bytes()).hexdigest()
    missing = (MissingBlob(sha256, 300_000, offset),)
    agent.answers["/models/har/3"] = (409, {}, encode(ModelInstalled("har", 3, "cd" * 32, missing=missing)))
    with pytest.raises(DeviceError) as caught:
        client.push_bundle(bundle, activate=True)
    assert caught.value.code == "bad_answer"


def test_a_device_gets_no_file_outside_the_bundle(
    agent: FakeAgent, client: AgentClient, bundle: Path
) -> None:
    missing = (MissingBlob("ee" * 32, 10),)
    agent.answers["/models/har/3"] = (409, {}, encode(ModelInstalled("har", 3, "cd" * 32, missing=missing)))
    with pytest.raises(DeviceError, match="not in the bundle"):
        client.push_bundle(bundle, activate=True)


def test_a_full_disk_on_the_device(agent: FakeAgent, client: AgentClient, bundle: Path) -> None:
    sha256 = hashlib.sha256((bundle / BUNDLE_FILES[0]).read_bytes()).hexdigest()
    agent.answers[f"/blobs/{sha256}"] = error(507, "disk_full", "no space left in /var/lib/fedctl-agent")
    with pytest.raises(DeviceError, match="watch-1: no space left") as caught:
        client.push_bundle(bundle, activate=True)
    assert caught.value.code == "disk_full"


def test_a_conflict_that_is_no_missing_list(agent: FakeAgent, client: AgentClient, bundle: Path) -> None:
    agent.answers["/models/har/3"] = error(409, "conflict", "har@3 is another bundle here")
    with pytest.raises(DeviceError, match="another bundle") as caught:
        client.push_bundle(bundle, activate=True)
    assert caught.value.code == "conflict"


@pytest.mark.parametrize("damage", ["missing manifest", "bad manifest", "missing file", "short file"])
def test_a_damaged_bundle_here_is_no_fault_of_the_device(
    client: AgentClient, bundle: Path, damage: str
) -> None:
    match damage:
        case "missing manifest":
            (bundle / MANIFEST_FILE).unlink()
        case "bad manifest":
            (bundle / MANIFEST_FILE).write_bytes(b"{}")
        case "missing file":
            (bundle / BUNDLE_FILES[0]).unlink()
        case "short file":
            (bundle / BUNDLE_FILES[0]).write_bytes(b"short")
    with pytest.raises(ConfigError) as caught:
        client.push_bundle(bundle, activate=True)
    assert str(bundle) in caught.value.message


# ------------------------------------------------------------------ tasks


def test_a_task_from_put_to_ack(agent: FakeAgent, client: AgentClient) -> None:
    assert client.put_task(TASK).state is TaskState.DONE
    assert client.put_task(TASK) == client.task(TASK.task_id, wait_s=30, seen=2)
    assert client.ack(TASK.task_id).acked
    assert (agent.requests[0], agent.requests[2][1]) == (
        ("PUT", f"/tasks/{TASK.task_id}"),
        f"/tasks/{TASK.task_id}?wait=30&seen=2",
    )


def test_a_running_task_is_cancelled(agent: FakeAgent, client: AgentClient) -> None:
    agent.work = lambda request: (TaskStatus(request.task_id, request.kind, "r-1", TaskState.RUNNING), b"")
    assert client.put_task(TASK).state is TaskState.RUNNING
    assert client.cancel(TASK.task_id).state is TaskState.CANCELLED


def test_a_policy_refuses(agent: FakeAgent, client: AgentClient) -> None:
    agent.answers[f"/tasks/{TASK.task_id}"] = error(403, "policy", "train is not allowed here")
    with pytest.raises(RefusedError, match="watch-1: train is not allowed here"):
        client.put_task(TASK)


def test_a_busy_device_names_the_holder(agent: FakeAgent, client: AgentClient) -> None:
    agent.answers[f"/tasks/{TASK.task_id}"] = error(409, "busy", "another task runs", subject="ff" * 32)
    with pytest.raises(DeviceError) as caught:
        client.put_task(TASK)
    assert (caught.value.code, caught.value.subject) == ("busy", "ff" * 32)


def test_a_result_streams_in_blocks(agent: FakeAgent, client: AgentClient) -> None:
    result = os.urandom(1_000_000)
    agent.work = lambda request: (TaskStatus(request.task_id, request.kind, "r-1", TaskState.DONE), result)
    client.put_task(TASK)
    blocks: list[bytes] = []
    sha256 = client.fetch_result(TASK.task_id, blocks.append, limit=len(result))
    assert b"".join(blocks) == result
    assert max(map(len, blocks)) <= 128 * 1024
    assert sha256 == hashlib.sha256(result).hexdigest()
    assert client.traffic.bytes_up > len(result)


def test_a_result_goes_on_at_an_offset(agent: FakeAgent, client: AgentClient) -> None:
    agent.work = lambda request: (
        TaskStatus(request.task_id, request.kind, "r-1", TaskState.DONE),
        b"0123456789",
    )
    client.put_task(TASK)
    blocks: list[bytes] = []
    assert (
        client.fetch_result(TASK.task_id, blocks.append, offset=4, limit=10)
        == hashlib.sha256(b"0123456789").hexdigest()
    )
    assert b"".join(blocks) == b"456789"


@pytest.mark.parametrize("offset", [0, 4])
def test_a_result_above_the_limit_is_cut_off(agent: FakeAgent, client: AgentClient, offset: int) -> None:
    agent.work = lambda request: (
        TaskStatus(request.task_id, request.kind, "r-1", TaskState.DONE),
        b"0123456789",
    )
    client.put_task(TASK)
    with pytest.raises(DeviceError, match="more than"):
        client.fetch_result(TASK.task_id, lambda _: None, offset=offset, limit=9)
    client.health()  # the connection that was broken off does no harm


def test_a_device_that_ignores_the_range_is_not_believed(agent: FakeAgent, client: AgentClient) -> None:
    etag = {"ETag": f'"{"ab" * 32}"'}
    agent.answers[f"/tasks/{TASK.task_id}/result"] = (200, etag, b"0123456789")
    with pytest.raises(DeviceError, match="from byte 4 on"):
        client.fetch_result(TASK.task_id, lambda _: None, offset=4, limit=10)


@pytest.mark.parametrize("etag", [{}, {"ETag": "weak"}, {"ETag": 'W/"' + "a" * 64 + '"'}])
def test_a_result_without_its_hash(agent: FakeAgent, client: AgentClient, etag: dict[str, str]) -> None:
    agent.answers[f"/tasks/{TASK.task_id}/result"] = (200, etag, b"x")
    with pytest.raises(DeviceError, match="ETag") as caught:
        client.fetch_result(TASK.task_id, lambda _: None, limit=10)
    assert caught.value.code == "bad_answer"


def test_no_result_is_the_device_s_error(client: AgentClient) -> None:
    with pytest.raises(DeviceError) as caught:
        client.fetch_result("ee" * 32, lambda _: None, limit=10)
    assert caught.value.code == "unknown_task"


def test_the_writer_s_own_exception_comes_out_unchanged(agent: FakeAgent, client: AgentClient) -> None:
    agent.work = lambda request: (TaskStatus(request.task_id, request.kind, "r-1", TaskState.DONE), b"data")
    client.put_task(TASK)

    def full_disk(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        client.fetch_result(TASK.task_id, full_disk, limit=10)


def test_a_body_above_the_cap_is_refused_by_its_early_answer(agent: FakeAgent, reach: Reach) -> None:
    """An agent answers 413 and closes without reading on; the answer must still arrive."""
    client = reach.client()
    big = Envelope(PayloadType.ROSTER, os.urandom(LIMITS.json_body_bytes), ())
    agent.refuse_unread["/roster"] = error(413, "too_large", "body of 5 MB")
    with pytest.raises(DeviceError, match="body of 5 MB") as caught:
        client.put_roster(big)
    assert caught.value.code == "too_large"


def test_four_threads_with_a_client_each(reach: Reach, agent: FakeAgent) -> None:
    seen = []

    def call() -> None:
        seen.append(reach.client().health())

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [agent.health] * 4

"""Each route over a real socket, with a worker process that trusts everything."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedctl_agent.daemon import workerlink
from fedctl_agent.daemon.exchange import Role
from fedctl_agent.daemon.routes import ROUTES
from fedctl_wire.codec import encode
from fedctl_wire.messages import TaskKind
from fedctl_wire.signing import generate_key, public_key
from tests.fakes.daemon_bed import Bed, served
from tests.fakes.unix_http import UnixConnection, open_socket
from tests.fakes.worker_program import result_content


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path / "state")
    with served(bed):
        yield bed


@pytest.fixture
def bed(fresh: Bed) -> Bed:
    assert fresh.enrol().status == 200
    return fresh


# ------------------------------------------------------------------ who may do what, and when


def test_health_and_identity_answer_before_enrolment(fresh: Bed) -> None:
    assert fresh.client("GET", "/health").json["device"] is None
    identity = fresh.client("GET", "/identity").json
    assert (identity["identity_key"], identity["enrolled"]) == (public_key(fresh.fleet.identity), False)


@pytest.mark.parametrize(
    "route", [r for r in ROUTES if not r.unenrolled], ids=lambda r: f"{r.method} {r.path}"
)
def test_every_other_route_waits_for_enrolment(fresh: Bed, route: object) -> None:
    path = getattr(route, "path").removeprefix("/v1")  # noqa: B009 - a Route, opaque to pytest
    for name, value in {"sha256": "0" * 64, "task_id": "0" * 64, "name": "har", "version": "1"}.items():
        path = path.replace(f"{{{name}}}", value)
    answer = fresh.client(getattr(route, "method"), path)  # noqa: B009
    assert answer.status == 403
    assert not answer.body or answer.code == "not_enrolled"  # HEAD has no body


def test_only_health_is_for_peers(tmp_path: Path) -> None:
    bed = Bed(tmp_path / "state")
    bed.fleet.enrol()
    with served(bed, role=Role.PEER):
        assert bed.client("GET", "/health").status == 200
        answer = bed.client("GET", "/status")
        assert (answer.status, answer.code) == (403, "role")


def test_unknown_paths_and_methods_are_named(bed: Bed) -> None:
    assert bed.client("GET", "/exec").code == "no_route"
    answer = bed.client("POST", "/status")
    assert (answer.status, answer.code, answer.headers["allow"]) == (405, "method", "GET")


@pytest.mark.parametrize("name", ["..", "%2e%2e", "a b", "'", '"', "Har", "-x", "x" * 64, "a%2fb"])
def test_names_that_are_none_never_reach_the_disk(bed: Bed, name: str) -> None:
    quoted = name.replace(" ", "+").replace('"', "%22")
    assert bed.client("DELETE", f"/models/{quoted}/1").code == "name"
    assert bed.client("HEAD", f"/blobs/{quoted}").status == 400
    assert bed.client("GET", f"/tasks/{quoted}").code == "malformed"


@pytest.mark.parametrize("version", ["0", "-1", "1.5", "x", "1" * 30])
def test_versions_that_are_none_are_refused(bed: Bed, version: str) -> None:
    assert bed.client("DELETE", f"/models/har/{version}").code == "malformed"


# ------------------------------------------------------------------ enrolment, roster, policy


def test_enrolment_is_kept_and_the_same_root_again_is_fine(bed: Bed) -> None:
    again = bed.enrol()
    assert (again.status, again.json["enrolled"], again.json["device"]) == (200, True, "wrist-01")
    assert bed.client("GET", "/health").json["roster_serial"] == 3


def test_another_fleets_root_is_refused(bed: Bed) -> None:
    request = bed.fleet.request(root_key=public_key(generate_key()))
    answer = bed.client("PUT", "/enrolment", encode(request))
    assert (answer.status, answer.code) == (409, "enrolled")


def test_the_same_root_cannot_rename_a_device(bed: Bed) -> None:
    request = bed.fleet.request(enrolment=bed.fleet.enrolment(device="wrist-02").to_json())
    assert bed.client("PUT", "/enrolment", encode(request)).code == "enrolled"


def test_an_enrolment_that_the_worker_does_not_believe_leaves_nothing(fresh: Bed) -> None:
    fresh.behave(refuse={"enrolment": "signature"})
    answer = fresh.enrol()
    assert (answer.status, answer.code) == (403, "signature")
    assert not fresh.state.roster.exists()
    assert not fresh.state.root_key.exists()


def test_a_newer_roster_replaces_the_held_one_and_verdicts_rest_on_it(bed: Bed) -> None:
    bundle = bed.push()
    assert bed.client("PUT", "/roster", bed.fleet.roster(serial=9).to_bytes()).json == {"serial": 9}
    assert bed.client("GET", "/identity").json["roster_serial"] == 9
    bed.behave(refuse={"bundle": "signature"})  # its signer is no longer listed
    assert bed.put_model(bed.bundle()[0]).code == "signature"
    assert bundle


def test_the_same_policy_again_is_not_written_again(bed: Bed) -> None:
    before = bed.state.policy.stat().st_mtime_ns
    assert bed.client("PUT", "/policy", bed.fleet.policy().to_bytes()).status == 200
    assert bed.state.policy.stat().st_mtime_ns == before


def test_a_policy_is_enforced_from_the_next_request_on(bed: Bed) -> None:
    bundle = bed.push()
    policy = bed.fleet.policy(serial=6, allow=(TaskKind.EVALUATE,), share=("metrics",))
    assert bed.client("PUT", "/policy", policy.to_bytes()).status == 200
    for answer in (
        bed.put_task(bed.request(bundle)),
        bed.client("GET", "/telemetry"),
        bed.client("GET", "/logs"),
    ):
        assert (answer.status, answer.code) == (403, "policy")
    status = bed.client("GET", "/status").json
    assert status["resources"] is None
    assert status["policy"]["allow"] == ["evaluate"]


def test_a_local_policy_tightens_and_a_mistake_in_it_refuses_everything(bed: Bed) -> None:
    bundle = bed.push()
    digest = bed.client("GET", "/status").json["policy"]["digest"]
    bed.state.policy_local.write_text('{"allow": ["stats"], "min_examples": 50}')
    policy = bed.client("GET", "/status").json["policy"]
    assert (policy["allow"], policy["min_examples"], policy["digest"] == digest) == (["stats"], 50, False)
    bed.state.policy_local.write_text('{"alow": ["stats"]}')
    answer = bed.put_task(bed.request(bundle, TaskKind.STATS))
    assert (answer.status, answer.code) == (403, "policy")
    assert "'alow'" in answer.json["message"]


# ------------------------------------------------------------------ looking


def test_status_has_the_figures_with_their_units(bed: Bed) -> None:
    bed.push(query="?activate=1")
    status = bed.client("GET", "/status").json
    resources = status["resources"]
    assert 0 < resources["memory"]["used_bytes"] < resources["memory"]["total_bytes"]
    assert resources["disk"]["free_bytes"] > 0
    assert resources["uptime_s"] > 0
    assert set(resources) >= {"battery", "temperatures", "network", "cpu"}
    assert status["agent"]["rss_bytes"] > 0
    assert [(m["slot"], m["version"], m["active"]) for m in status["models"]] == [("A", 1, True)]
    assert status["task"] is None


def test_telemetry_goes_on_until_the_caller_leaves(bed: Bed) -> None:
    connection = UnixConnection(bed.state.socket)
    connection.request("GET", "/v1/telemetry?every=0.1")
    response = connection.getresponse()
    lines = [json.loads(response.readline()) for _ in range(3)]
    response.close()
    connection.close()
    assert [set(line) for line in lines] == [set(lines[0])] * 3


def test_logs_are_filtered_by_priority_and_time(bed: Bed) -> None:
    bed.push()
    messages = [json.loads(line)["message"] for line in bed.client("GET", "/logs").body.splitlines()]
    assert messages == ["enrolled", "model installed"]
    assert bed.client("GET", "/logs?priority=error").body == b""
    assert bed.client("GET", "/logs?since=2999-01-01T00:00:00Z").body == b""
    assert bed.client("GET", "/logs?priority=loud").code == "malformed"


def test_followed_logs_bring_what_is_added(bed: Bed) -> None:
    connection = UnixConnection(bed.state.socket)
    connection.request("GET", "/v1/logs?follow=1")
    response = connection.getresponse()
    assert json.loads(response.readline())["message"] == "enrolled"
    bed.push()
    assert json.loads(response.readline())["message"] == "model installed"
    response.close()
    connection.close()


# ------------------------------------------------------------------ blobs and models


def test_a_cut_upload_goes_on_where_it_ended(bed: Bed) -> None:
    data = bytes(range(256)) * 40
    sha256 = hashlib.sha256(data).hexdigest()
    assert bed.client("HEAD", f"/blobs/{sha256}").headers["upload-offset"] == "0"
    assert bed.upload(sha256, data[:3000], total=len(data)).headers["upload-offset"] == "3000"
    head = bed.client("HEAD", f"/blobs/{sha256}")
    assert (head.headers["upload-offset"], "upload-length" in head.headers) == ("3000", False)
    wrong = bed.upload(sha256, data, offset=100)
    assert (wrong.status, wrong.code, wrong.headers["upload-offset"]) == (409, "offset", "3000")
    assert bed.upload(sha256, data, offset=3000).status == 200
    assert bed.client("HEAD", f"/blobs/{sha256}").headers["upload-length"] == str(len(data))


def test_bytes_that_do_not_hash_to_their_name_are_deleted(bed: Bed) -> None:
    answer = bed.upload("0" * 64, b"something else")
    assert (answer.status, answer.code) == (422, "hash")
    assert list(bed.state.blobs.iterdir()) == []


@pytest.mark.parametrize(
    ("query", "headers"),
    [("", {"Upload-Offset": "0"}), ("?bytes=4", {}), ("?bytes=-4", {"Upload-Offset": "0"})],
)
def test_an_upload_without_its_numbers_is_refused(bed: Bed, query: str, headers: dict[str, str]) -> None:
    assert bed.client("PATCH", f"/blobs/{'0' * 64}{query}", b"data", headers).code == "malformed"


def test_a_bundle_says_what_is_missing_and_then_installs(bed: Bed) -> None:
    envelope, contents = bed.bundle()
    answer = bed.put_model(envelope)
    assert (answer.status, {m["sha256"] for m in answer.json["missing"]}) == (409, set(contents))
    name = bed.push()
    installed = bed.put_model(envelope).json
    assert (installed["bundle"], installed["slot"], installed["missing"]) == (name, "A", [])
    assert list(bed.state.blobs.iterdir()) == []


def test_only_the_weights_travel_for_the_next_version(bed: Bed) -> None:
    bed.push(1, query="?activate=1")
    envelope, contents = bed.bundle(2, filling=1)
    (missing,) = bed.put_model(envelope, 2).json["missing"]
    assert len(contents[missing["sha256"]]) > 4096
    bed.push(2, filling=1)
    assert (bed.state.models / "har" / "B" / "train.json").read_bytes() == b'{"version":1}'


def test_versions_are_activated_and_deleted(bed: Bed) -> None:
    bed.push(1, query="?activate=1")
    bed.push(2, filling=1)
    assert bed.client("POST", "/models/har/2/activate").json["slot"] == "B"
    bed.push(3, filling=2)  # replaces version 1
    assert bed.client("POST", "/models/har/1/activate").code == "no_model"
    for version in (2, 3, 3):
        assert bed.client("DELETE", f"/models/har/{version}").status == 200
    assert bed.client("GET", "/status").json["models"] == []
    assert list(bed.state.models.iterdir()) == []


def test_a_bundle_under_another_name_is_refused(bed: Bed) -> None:
    assert bed.client("PUT", "/models/other/1", bed.bundle()[0].to_bytes()).code == "malformed"
    assert bed.client("PUT", "/models/har/2", bed.bundle()[0].to_bytes()).code == "malformed"


def test_verdicts_are_asked_for_once(bed: Bed) -> None:
    bed.push()
    envelope = bed.bundle()[0]
    for _ in range(3):
        assert bed.put_model(envelope).status == 200
    assert [r["what"] for r in bed.asked("verify")].count("bundle") == 1


# ------------------------------------------------------------------ tasks


def test_a_task_runs_and_its_result_is_collected_and_acknowledged(bed: Bed) -> None:
    bed.behave(result_bytes=3_000_000)
    request = bed.request(bed.push())
    assert bed.put_task(request).status == 201
    status = bed.final(request)
    assert (status["state"], status["runs"], status["usage"]["cpu_ms"]) == ("done", 1, 5)
    assert status["progress"]["seq"] == 1
    assert status["result"]["payloadType"].endswith("result+json")
    path = f"/tasks/{request.task_id}/result"
    whole = bed.client("GET", path)
    content = result_content(request.task_id, 3_000_000)
    assert whole.body == content
    assert whole.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    part = bed.client("GET", path, headers={"Range": "bytes=2999000-"})
    assert (part.status, part.body) == (206, content[2_999_000:])
    assert part.headers["content-range"] == "bytes 2999000-2999999/3000000"
    assert bed.client("GET", path, headers={"Range": "bytes=5-9"}).body == content[5:10]
    assert bed.client("GET", path, headers={"Range": "bytes=3000000-"}).status == 416
    assert bed.client("GET", path, headers={"Range": "lines=1-"}).status == 416
    assert bed.client("GET", "/status").json["spool"] == {"tasks": 1, "bytes": 3_000_000}
    assert bed.client("POST", f"/tasks/{request.task_id}/ack").json["acked"] is True
    assert bed.client("GET", path).code == "acked"
    again = bed.put_task(request)
    assert (again.status, again.json["state"], again.json["acked"]) == (200, "done", True)
    assert bed.client("GET", "/status").json["spool"] == {"tasks": 0, "bytes": 0}
    receipt = {file.name for file in (bed.state.spool / request.task_id).iterdir()}
    assert receipt >= {"task.json", "result.json", "marks"}
    assert not receipt & {"result.safetensors", "weights.safetensors", "manifest.dsse"}


def test_the_long_poll_ends_with_progress_and_with_the_task(bed: Bed) -> None:
    bed.behave(jobs=["wait"])
    request = bed.request(bed.push())
    bed.put_task(request)
    early = bed.client("GET", f"/tasks/{request.task_id}?wait=30").json
    assert (early["state"], early["progress"]["seq"]) == ("running", 1)
    (bed.state.path / "go").touch()
    late = bed.client("GET", f"/tasks/{request.task_id}?wait=30&seen=1").json
    assert late["state"] == "done"
    assert bed.client("GET", f"/tasks/{request.task_id}?wait=x").code == "malformed"


def test_one_task_at_a_time_and_each_only_once(bed: Bed) -> None:
    bed.behave(jobs=["wait"])
    bundle = bed.push()
    first = bed.request(bundle)
    assert bed.put_task(first).status == 201
    assert bed.put_task(first).status == 200
    busy = bed.put_task(bed.request(bundle))
    assert (busy.status, busy.code, busy.json["subject"]) == (409, "busy", first.task_id)
    other = json.loads(encode(first)) | {"note": "other bytes"}
    answer = bed.client("PUT", f"/tasks/{first.task_id}", json.dumps(other).encode())
    assert (answer.status, answer.code) == (409, "conflict")
    assert bed.client("GET", f"/tasks/{first.task_id}/result").code == "not_done"
    assert bed.client("POST", f"/tasks/{first.task_id}/ack").code == "not_final"
    assert bed.client("GET", "/status").json["task"]["task_id"] == first.task_id
    (bed.state.path / "go").touch()
    bed.final(first)
    assert bed.runs() == ["wait"]


def test_a_round_is_trained_once_but_again_in_its_next_attempt(bed: Bed) -> None:
    bundle = bed.push()
    first = bed.request(bundle, round_id="r-1")
    bed.put_task(first)
    bed.final(first)
    twin = bed.put_task(bed.request(bundle, round_id="r-1", seed=8))
    assert (twin.status, twin.code, twin.json["subject"]) == (409, "duplicate_round", first.task_id)
    assert bed.put_task(bed.request(bundle, round_id="r-1", attempt=2)).status == 201


def test_evaluation_gets_both_bundles_and_has_no_result_file(bed: Bed) -> None:
    base = bed.push(1, query="?activate=1")
    candidate = bed.push(2, filling=1)
    request = bed.request(candidate, TaskKind.EVALUATE, base=base)
    assert bed.put_task(request).status == 201
    assert bed.final(request)["state"] == "done"
    directory = bed.state.spool / request.task_id
    weights = [(directory / part / "weights.safetensors").read_bytes() for part in (".", "base")]
    assert weights[0] != weights[1]
    assert bed.client("GET", f"/tasks/{request.task_id}/result").code == "no_result"


def test_a_task_without_its_bundle_is_refused_and_leaves_nothing(bed: Bed) -> None:
    answer = bed.put_task(bed.request("0" * 64))
    assert (answer.status, answer.code) == (409, "no_model")
    assert list(bed.state.tasks.iterdir()) == []


def test_a_task_for_others_or_outside_its_plan_is_refused(bed: Bed) -> None:
    bundle = bed.push()
    assert bed.put_task(bed.request(bundle, device="wrist-02")).code == "device"
    assert bed.put_task(bed.request(bundle, TaskKind.STATS, kinds=(TaskKind.TRAIN,))).code == "plan"
    assert bed.put_task(bed.request(bundle, base="1" * 64)).code == "plan"
    renamed = bed.client("PUT", f"/tasks/{'0' * 64}", encode(bed.request(bundle)))
    assert (renamed.status, renamed.code) == (400, "task_id")
    assert bed.client("PUT", f"/tasks/{'0' * 64}", b"{}").code == "malformed"
    assert bed.client("GET", f"/tasks/{'0' * 64}").code == "no_task"


def test_an_unsigned_plan_never_becomes_a_task(bed: Bed) -> None:
    bundle = bed.push()
    bed.behave(refuse={"plan": "signature"})
    request = bed.request(bundle)
    answer = bed.put_task(request)
    assert (answer.status, answer.code) == (403, "signature")
    assert bed.client("GET", f"/tasks/{request.task_id}").code == "no_task"


def test_a_jobs_own_error_is_final(bed: Bed) -> None:
    bed.behave(jobs=["failure"])
    request = bed.request(bed.push())
    bed.put_task(request)
    status = bed.final(request)
    assert (status["state"], status["runs"], status["reason"]["code"]) == ("refused", 1, "no_source")


@pytest.mark.parametrize("word", ["crash", "exit", "take-worker-along"])
def test_a_job_that_dies_runs_again_three_times_in_all(bed: Bed, word: str) -> None:
    bed.behave(jobs=[word, word, "result"])
    request = bed.request(bed.push())
    bed.put_task(request)
    status = bed.final(request)
    assert (status["state"], status["runs"]) == ("done", 3)
    bed.behave(jobs=[word])
    hopeless = bed.request(request.bundle)
    bed.put_task(hopeless)
    status = bed.final(hopeless)
    assert (status["state"], status["runs"], status["reason"]["code"]) == ("failed", 3, "crashed")
    assert bed.runs() == [word, word, "result", word, word, word]


def test_a_job_that_found_the_disk_full_says_so(bed: Bed) -> None:
    bed.behave(jobs=["disk-full"])
    bed.put_task(request := bed.request(bed.push()))
    status = bed.final(request)
    assert (status["runs"], status["reason"]["code"]) == (3, "disk")


@pytest.mark.parametrize("name", ["tasks", "spool"])
def test_a_directory_removed_under_a_running_task_hangs_nobody(bed: Bed, name: str) -> None:
    bundle = bed.push()
    bed.behave(jobs=["wait"])
    bed.put_task(request := bed.request(bundle))
    bed.client("GET", f"/tasks/{request.task_id}?wait=30")  # until the job has made its files
    shutil.rmtree(bed.state.path / name)
    (bed.state.path / "go").touch()
    status = bed.final(request)
    if name == "spool":
        assert status["state"] == "done"
    else:
        assert (status["state"], status["reason"]["code"]) == ("failed", "lost")
        assert bed.client("GET", f"/tasks/{request.task_id}/result").status == 410
    assert bed.client("POST", f"/tasks/{request.task_id}/ack").json["acked"] is True
    bed.behave()
    bed.put_task(request := bed.request(bundle))
    assert bed.final(request)["state"] == "done"
    assert bed.client("GET", f"/tasks/{request.task_id}/result").status == 200


def test_what_was_removed_from_the_spool_is_gone_and_can_be_asked_for_again(bed: Bed) -> None:
    bed.put_task(request := bed.request(bed.push()))
    bed.final(request)
    shutil.rmtree(bed.state.spool)
    answer = bed.client("GET", f"/tasks/{request.task_id}/result")
    assert (answer.status, "removed" in answer.json["message"]) == (410, True)
    assert bed.put_task(request).status == 201
    assert bed.final(request)["state"] == "done"


def test_models_and_uploads_removed_under_the_agent_are_sent_again(bed: Bed) -> None:
    bundle = bed.push(query="?activate=1")
    for name in ("models", "blobs"):
        shutil.rmtree(bed.state.path / name)
    answer = bed.put_task(bed.request(bundle))
    assert (answer.status, answer.code) == (409, "no_model")
    bed.push(query="?activate=1")
    bed.put_task(request := bed.request(bundle))
    assert bed.final(request)["state"] == "done"


def test_a_fault_of_the_system_is_named(bed: Bed) -> None:
    bed.behave(jobs=["wait"])
    bundle = bed.push()
    shutil.rmtree(bed.state.tasks)
    bed.state.tasks.write_text("no directory")
    answer = bed.put_task(bed.request(bundle))
    assert answer.status == 500
    assert "Not a directory" in answer.json["message"]


def test_a_cancelled_task_is_over_and_frees_the_slot(bed: Bed) -> None:
    bed.behave(jobs=["hang"])
    bundle = bed.push()
    request = bed.request(bundle)
    bed.put_task(request)
    assert bed.client("DELETE", f"/tasks/{request.task_id}").json["state"] == "cancelled"
    assert bed.client("DELETE", f"/tasks/{request.task_id}").json["state"] == "cancelled"
    bed.behave()
    assert bed.put_task(bed.request(bundle)).status == 201


def test_a_worker_that_dies_when_asked_is_replaced_or_named(bed: Bed) -> None:
    bundle = bed.push()
    bed.behave(die_on="verify")
    answer = bed.put_task(bed.request(bundle))
    assert (answer.status, answer.code) == (503, "worker")
    bed.behave(die_on="run")
    request = bed.request(bundle)
    bed.put_task(request)
    assert bed.final(request)["reason"]["code"] == "crashed"


def test_a_worker_that_does_not_answer_is_ended_and_named(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bed.push()
    monkeypatch.setattr(workerlink, "_ANSWER_S", 0.2)
    bed.behave(hang_on="verify")
    answer = bed.put_task(bed.request(bundle))
    assert (answer.status, answer.code) == (503, "worker")
    monkeypatch.undo()
    bed.behave()
    assert bed.put_task(bed.request(bundle)).status == 201


def test_a_caller_who_hangs_up_does_not_go_on_waiting(bed: Bed) -> None:
    bed.behave(jobs=["wait"])
    request = bed.request(bed.push())
    bed.put_task(request)
    others = set(threading.enumerate())
    connection = UnixConnection(bed.state.socket)
    connection.request("GET", f"/v1/tasks/{request.task_id}?wait=60&seen=9")
    deadline = time.monotonic() + 10
    while not (threads := set(threading.enumerate()) - others):
        assert time.monotonic() < deadline, "nobody took the call"
        time.sleep(0.02)
    connection.close()
    while any(thread.is_alive() for thread in threads):
        assert time.monotonic() < deadline, "its thread still waits"
        time.sleep(0.02)
    (bed.state.path / "go").touch()
    assert bed.final(request)["state"] == "done"


def test_only_the_newest_receipts_are_kept(tmp_path: Path) -> None:
    bed = Bed(tmp_path / "state")
    bed.fleet.enrol()
    with served(bed) as agent:
        agent.tasks._receipts = 2
        bundle = bed.push()
        requests = [bed.request(bundle) for _ in range(4)]
        for request in requests:
            bed.put_task(request)
            bed.final(request)
        for request in requests[:0:-1]:  # the first one is never acknowledged
            bed.client("POST", f"/tasks/{request.task_id}/ack")
    with served(bed):
        states = [bed.client("GET", f"/tasks/{request.task_id}").status for request in requests]
    assert states == [200, 200, 200, 404]


def test_connections_beyond_the_cap_are_told_so(tmp_path: Path) -> None:
    bed = Bed(tmp_path / "state")
    bed.fleet.enrol()
    with served(bed, connections=1):
        with open_socket(bed.state.socket) as busy:
            busy.sendall(b"GET /v1/telemetry HTTP/1.1\r\nhost: a\r\n\r\n")
            assert busy.recv(100).startswith(b"HTTP/1.1 200")
            answer = bed.client("GET", "/health")
            assert (answer.status, answer.code) == (503, "overloaded")
        deadline = time.monotonic() + 10
        while bed.client("GET", "/health").status != 200:
            assert time.monotonic() < deadline, "the slot is not free again"


@pytest.mark.parametrize("sent", [b"", b"GET /v1/hea", b"GET /v1/health HTTP/1.1\r\nhost: a\r\n"])
def test_those_who_only_wait_make_room(tmp_path: Path, sent: bytes) -> None:
    bed = Bed(tmp_path / "state")
    bed.fleet.enrol()
    with served(bed, connections=4), contextlib.ExitStack() as stack:
        busy = stack.enter_context(open_socket(bed.state.socket))
        busy.sendall(b"GET /v1/telemetry?every=0.1 HTTP/1.1\r\nhost: a\r\n\r\n")
        assert busy.recv(100).startswith(b"HTTP/1.1 200")
        waiting = [stack.enter_context(open_socket(bed.state.socket)) for _ in range(20)]
        for idle in waiting:
            with contextlib.suppress(OSError):  # it made room already
                idle.sendall(sent)
        for _ in range(5):
            assert bed.client("GET", "/health").status == 200
        busy.setblocking(True)  # the one in the middle of its answer goes on
        assert all(busy.recv(1 << 16) for _ in range(10))


def test_an_upload_cut_by_a_vanished_caller_goes_on(bed: Bed) -> None:
    data = bytes(100_000)
    sha256 = hashlib.sha256(data).hexdigest()
    with open_socket(bed.state.socket) as caller:
        head = f"PATCH /v1/blobs/{sha256}?bytes=100000 HTTP/1.1\r\nhost: a\r\nupload-offset: 0\r\n"
        caller.sendall(head.encode() + b"content-length: 100000\r\n\r\n" + data[:40_000])
    deadline = time.monotonic() + 10
    while (here := int(bed.client("HEAD", f"/blobs/{sha256}").headers["upload-offset"])) < 40_000:
        assert time.monotonic() < deadline, here
    assert bed.upload(sha256, data, offset=40_000).status == 200

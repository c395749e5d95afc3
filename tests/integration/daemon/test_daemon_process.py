"""The daemon as a process: single, light, deaf to clocks, and killed at every stage."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedctl_agent.processes import lock_holder, stop
from fedctl_agent.state import StateDir
from tests.fakes.daemon_bed import Bed, served
from tests.fakes.unix_http import Client
from tests.fakes.worker_program import result_content
from tests.integration.daemon.conftest import ROOT, DaemonProcess, StartDaemon


def fedctl_agent(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedctl_agent.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | environment,
    )


def wait_for(condition: object, *, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


# ------------------------------------------------------------------ one daemon, its socket, its end


def test_a_second_daemon_on_a_state_directory_ends_with_one_line(
    process_bed: Bed, start_daemon: StartDaemon
) -> None:
    first = start_daemon(process_bed)
    second = fedctl_agent("serve", "--state-dir", str(process_bed.state.path))
    assert second.returncode == 7
    assert second.stderr == (
        f"fedctl-agent: an agent for {process_bed.state.path} is running already, process {first.pid}\n"
    )
    assert process_bed.client("GET", "/health").status == 200


def test_a_socket_that_another_daemon_serves_is_not_taken(
    process_bed: Bed, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    start_daemon(process_bed)
    socket = str(process_bed.state.socket)
    second = fedctl_agent("serve", "--state-dir", str(tmp_path / "other"), "--socket", socket)
    assert (second.returncode, second.stderr.count("\n")) == (7, 1)
    assert process_bed.client("GET", "/identity").json["enrolled"] is True


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "precious"
    place.write_text("data")
    result = fedctl_agent("serve", "--state-dir", str(tmp_path / "state"), "--socket", str(place))
    assert (result.returncode, result.stderr.count("\n")) == (10, 1)
    assert place.read_text() == "data"


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = fedctl_agent("serve", "--state-dir", str(tmp_path / "file" / "state"))
    assert (result.returncode, result.stderr.count("\n")) == (10, 1)
    assert "file/state" in result.stderr


def test_a_stale_socket_is_replaced_and_only_the_owner_may_open_the_new_one(
    process_bed: Bed, start_daemon: StartDaemon
) -> None:
    start_daemon(process_bed).kill()
    assert process_bed.state.socket.is_socket()
    daemon = start_daemon(process_bed)
    assert process_bed.state.socket.stat().st_mode & 0o777 == 0o600
    assert daemon.stop() == 0
    assert not process_bed.state.socket.exists()


def test_a_socket_path_longer_than_the_system_allows(tmp_path: Path, start_daemon: StartDaemon) -> None:
    bed = Bed(tmp_path / ("long-" * 30) / "state")
    assert len(str(bed.state.socket)) > 150
    start_daemon(bed)
    assert bed.client("GET", "/health").status == 200


def test_the_stop_command_ends_supervisor_and_daemon(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    command = [sys.executable, "-m", "fedctl_agent.main", "supervise", "--state-dir", str(state.path)]
    supervisor = subprocess.Popen(command)
    try:
        client = Client(state.socket)
        wait_for(state.socket.exists, what="the daemon listens")
        daemon = lock_holder(state.run_lock)
        assert daemon is not None
        assert b"MALLOC_ARENA_MAX=2" in Path(f"/proc/{daemon}/environ").read_bytes().split(b"\0")
        again = fedctl_agent("supervise", "--state-dir", str(state.path))
        assert (again.returncode, again.stderr.count("\n")) == (7, 1)
        os.kill(daemon, signal.SIGKILL)
        wait_for(lambda: lock_holder(state.run_lock) not in {None, daemon}, what="a new daemon")
        wait_for(lambda: answers(client), what="it answers")
        assert fedctl_agent("stop", "--state-dir", str(state.path)).returncode == 0
        assert supervisor.wait(20) == 0
        assert lock_holder(state.run_lock) is None
    finally:
        stop(state)
        supervisor.wait(20)


def answers(client: Client) -> bool:
    try:
        return client("GET", "/health").status == 200
    except OSError:
        return False


def test_stopping_never_acts_on_a_number_that_another_process_took_over(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    state.create()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        state.run_lock.write_text(str(bystander.pid))
        assert fedctl_agent("stop", "--state-dir", str(state.path)).returncode == 0
        assert bystander.poll() is None
        bystander.communicate(b"\n")


def test_the_key_is_made_once_and_by_another_process(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    first = fedctl_agent("keygen", "--state-dir", str(state.path))
    assert len(first.stdout) == 65
    state.identity_public.unlink()  # a crash between the two files
    assert fedctl_agent("keygen", "--state-dir", str(state.path)).stdout == first.stdout
    assert state.identity_public.read_text() == first.stdout.strip()
    assert state.identity_key.stat().st_mode & 0o777 == 0o600
    state.identity_key.write_text("rubbish")
    broken = fedctl_agent("keygen", "--state-dir", str(state.path))
    assert (broken.returncode, broken.stderr.count("\n")) == (8, 1)


def test_usage_errors_end_with_2_and_the_version_is_told() -> None:
    assert fedctl_agent("serve").returncode == 2
    assert fedctl_agent("frobnicate").returncode == 2
    assert fedctl_agent("--version").stdout.startswith("fedctl-agent 0.")


# ------------------------------------------------------------------ light


def test_the_daemon_loads_neither_numpy_nor_cryptography_and_stays_small(
    process_bed: Bed, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(process_bed)
    request = process_bed.request(process_bed.push())
    process_bed.put_task(request)
    process_bed.final(request)
    for _ in range(50):
        assert process_bed.client("GET", "/status").status == 200
    maps = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert "numpy" not in maps
    assert "cryptography" not in maps
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) <= 26 * 1024


def test_an_idle_daemon_never_wakes_up(process_bed: Bed, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(process_bed)

    def wake_ups() -> int:
        tasks = Path(f"/proc/{daemon.pid}/task").iterdir()
        texts = [(task / "status").read_text() for task in tasks]
        return sum(int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0]) for text in texts)

    wait_for(lambda: len(os.listdir(f"/proc/{daemon.pid}/task")) == 1, what="the connection's end")  # noqa: PTH208
    before = wake_ups()
    time.sleep(1.0)
    assert wake_ups() == before


# ------------------------------------------------------------------ killed at every stage


def test_a_daemon_killed_while_a_job_runs_runs_it_again(process_bed: Bed, start_daemon: StartDaemon) -> None:
    process_bed.behave(jobs=["hang", "result"])
    daemon = start_daemon(process_bed)
    request = process_bed.request(process_bed.push())
    assert process_bed.put_task(request).json["state"] == "running"
    wait_for(process_bed.runs, what="the job runs")
    daemon.kill()
    start_daemon(process_bed)
    status = process_bed.final(request)
    assert (status["state"], status["runs"], process_bed.runs()) == ("done", 2, ["hang", "result"])
    assert process_bed.put_task(request).status == 200


def test_a_third_restart_in_mid_run_is_the_last(process_bed: Bed, start_daemon: StartDaemon) -> None:
    process_bed.behave(jobs=["hang"])
    daemon = start_daemon(process_bed)
    request = process_bed.request(process_bed.push())
    process_bed.put_task(request)
    for run in (1, 2, 3):
        wait_for(lambda run=run: len(process_bed.runs()) == run, what=f"run {run}")
        daemon.kill()
        daemon = start_daemon(process_bed)
    status = process_bed.final(request)
    assert (status["state"], status["runs"], status["reason"]["code"]) == ("failed", 3, "crashed")


def test_a_result_written_while_the_daemon_was_dead_is_adopted(
    process_bed: Bed, start_daemon: StartDaemon
) -> None:
    process_bed.behave(jobs=["wait"])
    daemon = start_daemon(process_bed)
    request = process_bed.request(process_bed.push())
    process_bed.put_task(request)
    wait_for(process_bed.runs, what="the job runs")
    os.kill(daemon.pid, signal.SIGSTOP)  # the job ends, and nobody is there to hear it
    (process_bed.state.path / "go").touch()
    wait_for((process_bed.state.tasks / request.task_id / "result.json").exists, what="the result")
    daemon.kill()
    start_daemon(process_bed)
    status = process_bed.final(request)
    assert (status["state"], status["runs"], process_bed.runs()) == ("done", 1, ["wait"])
    answer = process_bed.client("GET", f"/tasks/{request.task_id}/result")
    assert answer.body == result_content(request.task_id, 1000)


def test_a_result_survives_the_daemon_until_it_is_acknowledged(
    process_bed: Bed, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(process_bed)
    request = process_bed.request(process_bed.push())
    process_bed.put_task(request)
    process_bed.final(request)
    daemon.kill()
    daemon = start_daemon(process_bed)
    assert process_bed.client("GET", f"/tasks/{request.task_id}/result").status == 200
    process_bed.client("POST", f"/tasks/{request.task_id}/ack")
    daemon.kill()
    start_daemon(process_bed)
    status = process_bed.put_task(request)
    assert (status.status, status.json["state"], status.json["acked"]) == (200, "done", True)
    assert process_bed.runs() == ["result"]


def test_a_run_that_cannot_be_counted_after_a_restart_is_told_in_the_log(
    process_bed: Bed, start_daemon: StartDaemon
) -> None:
    process_bed.behave(jobs=["hang"])
    daemon = start_daemon(process_bed)
    request = process_bed.request(process_bed.push())
    process_bed.put_task(request)
    daemon.kill()
    marks = process_bed.state.tasks / request.task_id / "marks"
    marks.unlink()
    marks.symlink_to("/nowhere/marks")
    start_daemon(process_bed)
    log = process_bed.state.log
    wait_for(lambda: "a job could not be started" in log.read_text(), what="the log tells")
    assert process_bed.client("GET", "/status").json["task"] is None


def test_a_cancelled_task_stays_cancelled_when_the_daemon_dies(
    process_bed: Bed, start_daemon: StartDaemon
) -> None:
    process_bed.behave(jobs=["hang"])
    daemon = start_daemon(process_bed)
    request = process_bed.request(process_bed.push())
    process_bed.put_task(request)
    with (process_bed.state.tasks / request.task_id / "marks").open("ab") as marks:
        marks.write(b"cancelled\n")  # durable, and then the crash
    daemon.kill()
    start_daemon(process_bed)
    assert process_bed.final(request)["state"] == "cancelled"
    assert len(process_bed.runs()) <= 1


def test_an_upload_goes_on_after_the_daemon_was_killed(process_bed: Bed, start_daemon: StartDaemon) -> None:
    _, contents = process_bed.bundle()
    sha256, data = max(contents.items(), key=lambda item: len(item[1]))
    daemon = start_daemon(process_bed)
    process_bed.upload(sha256, data[:1000], total=len(data))
    daemon.kill()
    start_daemon(process_bed)
    assert process_bed.client("HEAD", f"/blobs/{sha256}").headers["upload-offset"] == "1000"
    assert process_bed.upload(sha256, data, offset=1000).status == 200


def test_half_an_enrolment_is_none_and_the_same_request_makes_it_whole(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    bed = Bed(tmp_path / "state")
    bed.state.roster.write_bytes(bed.fleet.roster().to_bytes())
    bed.state.policy.write_bytes(bed.fleet.policy().to_bytes())
    start_daemon(bed)
    assert bed.client("GET", "/identity").json["enrolled"] is False
    assert bed.enrol().status == 200


@pytest.mark.parametrize("call", range(1, 15))
def test_a_task_survives_a_power_cut_at_each_durable_call(
    process_bed: Bed, start_daemon: StartDaemon, call: int
) -> None:
    with served(process_bed):
        request = process_bed.request(process_bed.push())
    daemon = start_daemon(process_bed, die_at_fsync=call)
    with contextlib.suppress(OSError, http.client.HTTPException):
        process_bed.put_task(request)
        process_bed.final(request)
        process_bed.client("POST", f"/tasks/{request.task_id}/ack")
    daemon.kill()
    with served(process_bed):
        assert process_bed.put_task(request).status in {200, 201}
        status = process_bed.final(request)
        assert (status["state"], status["runs"] <= 2) == ("done", True)
        content = process_bed.client("GET", f"/tasks/{request.task_id}/result")
        if not status["acked"] and content.status != 410:  # cut between freeing the result and saying so
            assert content.body == result_content(request.task_id, 1000)
        assert process_bed.client("POST", f"/tasks/{request.task_id}/ack").json["acked"] is True


# ------------------------------------------------------------------ a full disk, a wrong clock


def test_a_full_disk_is_named_and_leaves_nothing_behind(process_bed: Bed, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(process_bed, file_bytes=2000)
    _, contents = process_bed.bundle()
    sha256, data = max(contents.items(), key=lambda item: len(item[1]))
    answer = process_bed.upload(sha256, data)
    assert (answer.status, answer.code) == (507, "disk_full")
    assert list(process_bed.state.blobs.iterdir()) == []
    daemon.stop()
    daemon = start_daemon(process_bed)
    bundle = process_bed.push()
    daemon.stop()
    start_daemon(process_bed, file_bytes=100)
    request = process_bed.request(bundle)
    answer = process_bed.put_task(request)
    assert (answer.status, answer.code) == (507, "disk_full")
    assert list(process_bed.state.tasks.iterdir()) == []
    assert process_bed.client("GET", f"/tasks/{request.task_id}").code == "no_task"


def test_a_bundle_that_does_not_fit_leaves_the_slots_as_they_were(
    process_bed: Bed, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(process_bed)
    process_bed.push(query="?activate=1")
    envelope, contents = process_bed.bundle(2, filling=1)
    for missing in process_bed.put_model(envelope, 2).json["missing"]:
        process_bed.upload(missing["sha256"], contents[missing["sha256"]])
    daemon.stop()
    daemon = start_daemon(process_bed, file_bytes=100)
    assert process_bed.put_model(envelope, 2).code == "disk_full"
    assert sorted(p.name for p in (process_bed.state.models / "har").iterdir()) == ["A", "active"]
    daemon.stop()
    start_daemon(process_bed)
    assert process_bed.put_model(envelope, 2).json["slot"] == "B"


def test_a_clock_in_1970_breaks_nothing(
    process_bed: Bed, start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever reads the wall clock gets a minute after the epoch, and later a jump of fifty years."""
    site = process_bed.state.path.parent / "clock"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import time\nreal = time.time\nstart = real()\n"
        "time.time = lambda: 60.0 + real() - start\n"
        "gmtime = time.gmtime\ntime.gmtime = lambda *a: gmtime(*(a or (time.time(),)))\n"
    )
    monkeypatch.setattr("tests.integration.daemon.conftest.ROOT", f"{site}{os.pathsep}{ROOT}")
    daemon: DaemonProcess = start_daemon(process_bed)
    assert process_bed.client("GET", "/health").json["time"].startswith("1970-01-01T00:01")
    request = process_bed.request(process_bed.push())
    process_bed.put_task(request)
    assert process_bed.final(request)["state"] == "done"
    assert process_bed.client("GET", "/status").json["resources"]["uptime_s"] > 0
    assert b'"1970-' in process_bed.client("GET", "/logs?since=1970-01-01T00:00:00Z").body
    daemon.stop()
    monkeypatch.undo()
    start_daemon(process_bed)
    assert process_bed.client("GET", f"/tasks/{request.task_id}").json["state"] == "done"

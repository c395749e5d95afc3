"""The worker as the daemon sees it: verdicts, jobs, cancellation, and when it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fedctl_agent.worker.loop import LINE_BYTES
from fedctl_wire.codec import to_json
from fedctl_wire.manifest import MANIFEST_FILE
from fedctl_wire.messages import Usage
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope, generate_key
from tests.integration.worker.conftest import StartWorker, WorkerProcess
from tests.unit.worker.signed_fleet import OTHER_FLEET, SignedFleet, as_received, new_fleet


class Watched:
    """A process that is not our child, for waiting until it is gone."""

    def __init__(self, pid: int) -> None:
        self._descriptor = os.pidfd_open(pid)

    def gone(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        ended = bool(poll.poll(30_000))
        os.close(self._descriptor)
        return ended


def started(worker: WorkerProcess, task_dir: Path) -> int:
    """Start a job and wait for its first line of progress."""
    answer = worker.ask("run", task=task_dir.name)
    assert answer["ok"] is True, answer
    progress = task_dir / "progress.jsonl"
    while not (progress.exists() and progress.read_bytes()):
        assert not (task_dir / "failure.json").exists()
        time.sleep(0.005)
    pid: int = answer["pid"]
    return pid


def loaded(worker: WorkerProcess, library: str) -> bool:
    return library in Path(f"/proc/{worker.process.pid}/maps").read_text(encoding="utf-8")


def error(answer: dict[str, Any]) -> str:
    code: str = answer["error"]["code"]
    return code


# ---------------------------------------------------------------- verdicts


def test_verdicts_travel(fleet: SignedFleet, start: StartWorker, tmp_path: Path) -> None:
    fleet.write_bundle(tmp_path / "bundle")
    bundle = Envelope.from_bytes((tmp_path / "bundle" / MANIFEST_FILE).read_bytes())
    good = {"plan": fleet.plan(), "bundle": bundle, "policy": fleet.policy(), "roster": fleet.roster()}
    bad = {
        "plan": (fleet.plan(key=generate_key()), "signature"),
        "bundle": (fleet.plan(), "signature"),
        "policy": (fleet.policy(device=Name("wrist-02")), "device"),
        "roster": (fleet.roster(serial=1), "rollback"),
    }
    worker = start()
    for what, envelope in good.items():
        assert worker.ask("verify", what=what, envelope=as_received(envelope)) == {"ok": True}
    for what, (envelope, code) in bad.items():
        answer = worker.ask("verify", what=what, envelope=as_received(envelope))
        assert answer["error"].keys() == {"code", "message", "subject"}
        assert error(answer) == code


def test_an_enrolment_is_judged_before_and_after_the_root_is_pinned(
    tmp_path: Path, fleet: SignedFleet
) -> None:
    newcomer = new_fleet(tmp_path / "fresh")
    worker = WorkerProcess(newcomer.state.path, "train")
    try:
        request = to_json(newcomer.request())
        plan = as_received(newcomer.plan())
        assert error(worker.ask("verify", what="plan", envelope=plan)) == "not_enrolled"
        assert error(worker.ask("verify", what="enrolment", request=to_json(fleet.request()))) == "identity"
        assert error(worker.ask("verify", what="enrolment", request={"root_key": "00"})) == "malformed"
        assert worker.ask("verify", what="enrolment", request=request) == {"ok": True}
        newcomer.enrol()
        assert worker.ask("verify", what="plan", envelope=plan) == {"ok": True}
        assert error(worker.ask("verify", what="enrolment", request=to_json(fleet.request()))) == "root"
    finally:
        worker.finish()


def test_the_device_learns_of_a_new_roster_while_it_works(fleet: SignedFleet, start: StartWorker) -> None:
    worker = start()
    assert worker.ask("verify", what="plan", envelope=as_received(fleet.plan())) == {"ok": True}
    fleet.state.roster.write_bytes(fleet.roster(serial=4, operators=()).to_bytes())
    assert error(worker.ask("verify", what="plan", envelope=as_received(fleet.plan()))) == "signature"


def test_requests_it_cannot_serve_are_answered(fleet: SignedFleet, start: StartWorker) -> None:
    worker = start()
    plan = as_received(fleet.plan(fleet=OTHER_FLEET))
    assert error(worker.ask("verify", what="plan", envelope=plan)) == "fleet"
    assert error(worker.ask("verify", what="plan")) == "malformed"
    assert error(worker.ask("verify", what="plan", envelope={**plan, "more": 1})) == "unknown_field"
    assert error(worker.ask("verify", envelope=plan)) == "malformed"
    assert error(worker.ask("run", task="../../etc")) == "malformed"
    assert error(worker.ask("run", task="0" * 64)) == "no_task"
    assert worker.ask("cancel", task="0" * 64) == {"ok": True}


@pytest.mark.parametrize("line", [b"garbage\n", b'{"id":1,"verb":"launch"}\n', b'{"verb":"run"}\n'])
def test_a_line_that_is_no_request_ends_it(start: StartWorker, line: bytes) -> None:
    worker = start()
    worker.channel.sendall(line)
    assert worker.at_end()
    assert worker.finish() == 1
    assert worker.stderr.startswith("fedctl_agent.worker: request")


def test_an_endless_line_ends_it(start: StartWorker) -> None:
    worker = start()
    with pytest.raises(ConnectionError):
        worker.channel.sendall(b"x" * (2 * LINE_BYTES))
    assert worker.finish() == 1


def test_requests_may_come_in_pieces_and_together(fleet: SignedFleet, start: StartWorker) -> None:
    worker = start()
    one = {"verb": "verify", "what": "roster", "envelope": as_received(fleet.roster())}
    lines = b"".join(json.dumps({"id": n, **one}).encode() + b"\n" for n in (1, 2, 3))
    worker.channel.sendall(lines[:100])
    worker.channel.sendall(lines[100:-10])
    worker.channel.sendall(lines[-10:])
    assert [worker.read()["id"] for _ in range(3)] == [1, 2, 3]


# ---------------------------------------------------------------- jobs


def test_a_job_is_reported_with_what_it_cost(fleet: SignedFleet, start: StartWorker) -> None:
    task_dir = fleet.write_task()
    event = start("train").run(task_dir)
    usage = event.pop("usage")
    assert event == {"event": "ended", "task": task_dir.name, "exit": 0}
    assert usage.keys() == to_json(Usage()).keys()
    assert usage["wall_ms"] > 0
    assert usage["cpu_ms"] <= usage["wall_ms"] + 20
    assert 10 * 2**20 < usage["peak_rss_bytes"] < 200 * 2**20


def test_one_worker_runs_one_job_after_the_other(fleet: SignedFleet, start: StartWorker) -> None:
    worker = start("train")
    for attempt in (1, 2, 3):
        task_dir = fleet.write_task(attempt=attempt)
        assert worker.run(task_dir)["exit"] == 0
        assert (task_dir / "result.json").exists()
    assert worker.finish() == 0
    assert worker.stderr == ""


def test_a_second_job_is_busy_and_verdicts_go_on(fleet: SignedFleet, start: StartWorker) -> None:
    first, second = fleet.write_task(), fleet.write_task(attempt=2)
    worker = start("wait")
    started(worker, first)
    answer = worker.ask("run", task=second.name)
    assert (error(answer), answer["error"]["subject"]) == ("busy", first.name)
    assert worker.ask("verify", what="roster", envelope=as_received(fleet.roster())) == {"ok": True}


def test_a_job_ended_by_a_signal_is_reported_as_such(fleet: SignedFleet, start: StartWorker) -> None:
    crashed, killed = fleet.write_task(), fleet.write_task(attempt=2)
    assert start("crash").run(crashed)["exit"] == -signal.SIGSEGV

    worker = start("wait")
    os.kill(started(worker, killed), signal.SIGKILL)
    assert worker.ended()["exit"] == -signal.SIGKILL
    for task_dir in (crashed, killed):
        assert not (task_dir / "result.json").exists()
        assert not (task_dir / "failure.json").exists()


def test_cancel_asks_first(fleet: SignedFleet, start: StartWorker) -> None:
    task_dir = fleet.write_task()
    worker = start("wait")
    started(worker, task_dir)
    assert worker.ask("cancel", task="0" * 64) == {"ok": True}, "another task's job is left alone"
    assert worker.ask("cancel", task=task_dir.name) == {"ok": True}
    assert worker.ended()["exit"] == -signal.SIGTERM
    started(worker, fleet.write_task(attempt=2))


def test_cancel_ends_a_job_that_does_not_listen(fleet: SignedFleet, start: StartWorker) -> None:
    task_dir = fleet.write_task()
    worker = start("be_stubborn")
    started(worker, task_dir)
    worker.ask("cancel", task=task_dir.name)
    worker.ask("cancel", task=task_dir.name)
    assert worker.ended()["exit"] == -signal.SIGKILL


def test_a_job_is_confined(fleet: SignedFleet, start: StartWorker) -> None:
    task_dir = fleet.write_task()
    assert start("look_around").run(task_dir)["exit"] == 0
    log = (task_dir / "log").read_text(encoding="utf-8")
    assert "'nice': 10, 'group': True, 'oom': 1000, 'sockets': 0," in log
    assert "'threads': 1" in log
    limits = {line[:25].strip(): line[26:47].strip() for line in log.split("\\n")}
    assert limits["Max core file size"] == "0"
    assert limits["Max file size"] == str(2 * 2**30)
    assert (task_dir / "log").stat().st_mode & 0o077 == 0


# ---------------------------------------------------------------- when it ends


def test_worker_and_job_end_when_the_daemon_hangs_up(fleet: SignedFleet, start: StartWorker) -> None:
    worker = start("be_stubborn")
    job = Watched(started(worker, fleet.write_task()))
    assert worker.finish() == 0
    assert job.gone()
    assert worker.stderr == ""


def test_the_job_ends_when_the_worker_is_killed(fleet: SignedFleet, start: StartWorker) -> None:
    worker = start("be_stubborn")
    job = Watched(started(worker, fleet.write_task()))
    worker.process.kill()
    assert job.gone()


def test_without_work_it_ends_by_itself(fleet: SignedFleet, start: StartWorker) -> None:
    worker = start("train", idle_s=0.2)
    assert worker.ask("verify", what="plan", envelope=as_received(fleet.plan())) == {"ok": True}
    assert worker.at_end()
    assert worker.finish() == 0


def test_a_running_job_is_work(fleet: SignedFleet, start: StartWorker) -> None:
    task_dir = fleet.write_task()
    worker = start("be_stubborn", idle_s=0.05)
    started(worker, task_dir)
    worker.ask("cancel", task=task_dir.name)
    assert worker.ended()["exit"] == -signal.SIGKILL, "two seconds later, forty times the idle time"
    assert worker.at_end()


def test_an_interrupt_in_the_terminal_is_the_daemons(fleet: SignedFleet, start: StartWorker) -> None:
    worker = start()
    roster = as_received(fleet.roster())
    assert worker.ask("verify", what="roster", envelope=roster) == {"ok": True}
    worker.process.send_signal(signal.SIGINT)
    assert worker.ask("verify", what="roster", envelope=roster) == {"ok": True}


# ---------------------------------------------------------------- memory


def test_numpy_waits_for_the_first_plan(fleet: SignedFleet, start: StartWorker) -> None:
    worker = start("train")
    for what, envelope in (("roster", fleet.roster()), ("policy", fleet.policy())):
        assert worker.ask("verify", what=what, envelope=as_received(envelope)) == {"ok": True}
    assert not loaded(worker, "_multiarray_umath")
    assert worker.ask("verify", what="plan", envelope=as_received(fleet.plan())) == {"ok": True}
    while not loaded(worker, "_multiarray_umath"):
        assert worker.process.poll() is None
        time.sleep(0.005)


def test_memory_stays_small(fleet: SignedFleet, start: StartWorker) -> None:
    worker = start("train")
    worker.ask("verify", what="roster", envelope=as_received(fleet.roster()))
    assert rss_mib(worker) < 48
    for attempt in range(1, 6):
        assert worker.run(fleet.write_task(attempt=attempt))["exit"] == 0
    assert rss_mib(worker) < 72


def rss_mib(worker: WorkerProcess) -> float:
    status = Path(f"/proc/{worker.process.pid}/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024

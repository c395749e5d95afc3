"""A worker that trusts everything and whose jobs do as told: `worker_program.py --state-dir DIR --fd N`.

Speaks the worker's protocol as a real process with real, forked jobs. `fake-worker.json` in the state
directory tells it what to do; every request is noted in `fake-worker.jsonl`:

    {"refuse": {"plan": "signature"},      # what is not believed, and the code that says so
     "die_on": "verify",                   # end the worker on this verb instead of answering
     "hang_on": "verify",                  # or never answer it
     "jobs": ["crash", "result"],          # what the first, second ... run does; the last one repeats
     "result_bytes": 1000}

A job's words: result, failure, crash (SIGKILL), exit (code 3), disk-full, hang (until it is killed), wait
(for a file `go` in the state directory, then result), take-worker-along (kills the worker, then itself).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from fedctl_agent.state import DISK_FULL_EXIT, StateDir, write_durably
from fedctl_wire.codec import dump_bytes, encode, from_json
from fedctl_wire.messages import Evaluation, Progress, Result, TaskKind, TaskRequest
from fedctl_wire.signing import Envelope, PayloadType

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def result_content(task_id: str, size: int) -> bytes:
    """What the job of a task writes as its result: the same bytes in every run."""
    block = hashlib.sha256(task_id.encode()).digest()
    return (block * (size // len(block) + 1))[:size]


class FakeWorker:
    def __init__(self, state: StateDir, channel: socket.socket) -> None:
        self._state = state
        self._channel = channel
        self._job: tuple[str, int] | None = None  # task, pid
        self._killed_at = 0.0

    def serve(self) -> None:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer)
        buffered = b""
        import select

        while True:
            ready, _, _ = select.select([self._channel, reader], [], [], 0.05 if self._killed_at else None)
            if reader in ready:
                os.read(reader, 4096)
            self._reap()
            if self._channel not in ready:
                continue
            data = self._channel.recv(1 << 20)
            if not data:
                self._end_job(signal.SIGKILL)
                return
            *lines, buffered = (buffered + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, request: dict[str, Any]) -> None:
        behaviour = self._behaviour()
        with contextlib.suppress(OSError), (self._state.path / "fake-worker.jsonl").open("ab") as log:
            log.write(dump_bytes({k: v for k, v in request.items() if k in {"verb", "what", "task"}}) + b"\n")
        if behaviour.get("die_on") == request["verb"]:
            os._exit(9)
        if behaviour.get("hang_on") == request["verb"]:
            time.sleep(600)
        answer: dict[str, Any] = {"id": request["id"], "ok": True}
        if request["verb"] == "verify" and (code := behaviour.get("refuse", {}).get(request["what"])):
            message = f"{request['what']} is not to be trusted"
            answer = {"id": request["id"], "error": {"code": code, "message": message, "subject": ""}}
        if request["verb"] == "run":
            answer["pid"] = self._start(request["task"], behaviour)
        self._send(answer)
        if request["verb"] == "cancel" and self._job:
            self._killed_at = time.monotonic() + 2
            self._end_job(signal.SIGTERM)

    def _behaviour(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            read: dict[str, Any] = json.loads((self._state.path / "fake-worker.json").read_bytes())
            return read
        return {}

    def _start(self, task: str, behaviour: dict[str, Any]) -> int:
        pid = os.fork()
        if pid == 0:
            self._channel.close()
            signal.set_wakeup_fd(-1)
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            run_job(self._state, task, behaviour)
        self._job = (task, pid)
        return pid

    def _reap(self) -> None:
        if self._job is None:
            return
        task, pid = self._job
        if self._killed_at and time.monotonic() > self._killed_at:
            self._end_job(signal.SIGKILL)
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended == 0:
            return
        self._job, self._killed_at = None, 0.0
        cost = {"cpu_ms": 5, "wall_ms": 7, "peak_rss_bytes": usage.ru_maxrss * 1024}
        exit_code = os.waitstatus_to_exitcode(status)
        self._send({"event": "ended", "task": task, "exit": exit_code, "usage": cost})

    def _end_job(self, number: int) -> None:
        if self._job:
            os.kill(self._job[1], number)

    def _send(self, message: dict[str, Any]) -> None:
        self._channel.sendall(dump_bytes(message) + b"\n")


def run_job(state: StateDir, task_id: str, behaviour: dict[str, Any]) -> NoReturn:
    directory = state.tasks / task_id
    words = behaviour.get("jobs", ["result"])
    run = (directory / "marks").read_bytes().split(b"\n").count(b"run")
    word = words[min(run, len(words)) - 1]
    with (directory / "progress.jsonl").open("ab") as progress:
        progress.write(encode(Progress(seq=1, epoch=1, epochs=2)) + b"\n" + b'{"seq":2,"ep')
    with (state.path / "fake-runs.log").open("ab") as log:
        log.write(f"{task_id} {run} {word}\n".encode())
    if word == "take-worker-along":
        os.kill(os.getppid(), signal.SIGKILL)
    if word in {"crash", "take-worker-along"}:
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "exit":
        os._exit(3)
    if word == "disk-full":
        os._exit(DISK_FULL_EXIT)
    if word == "failure":
        failure = {"code": "no_source", "message": "there is no source", "state": "refused"}
        write_durably(directory / "failure.json", dump_bytes(failure))
        os._exit(0)
    while word == "hang" or (word == "wait" and not (state.path / "go").exists()):
        time.sleep(0.01)
    write_result(directory, task_id, behaviour)
    os._exit(0)


def write_result(directory: Path, task_id: str, behaviour: dict[str, Any]) -> None:
    request = from_json(TaskRequest, json.loads((directory / "task.json").read_bytes()))
    content = result_content(task_id, behaviour.get("result_bytes", 1000))
    with_file = request.kind in {TaskKind.TRAIN, TaskKind.STATS}
    if with_file:
        write_durably(directory / "result.safetensors", content)
    measured = Evaluation(8, 4.0, 6) if request.kind is TaskKind.EVALUATE else None
    result = Result(
        task_id=task_id,
        round=json.loads(Envelope.from_json(request.plan).payload)["round"],
        attempt=request.attempt,
        device=request.device,
        kind=request.kind,
        plan=Envelope.from_json(request.plan).sha256,
        bundle=request.bundle,
        examples=8,
        agent_version="0.1.0",
        runtime="fake",
        result_sha256=hashlib.sha256(content).hexdigest() if with_file else None,
        result_bytes=len(content) if with_file else None,
        base=measured,
        candidate=measured,
    )
    write_durably(directory / "result.json", Envelope(PayloadType.RESULT, encode(result), ()).to_bytes())


if __name__ == "__main__":
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    with socket.socket(fileno=int(options["--fd"])) as daemon:
        FakeWorker(StateDir(Path(options["--state-dir"])), daemon).serve()

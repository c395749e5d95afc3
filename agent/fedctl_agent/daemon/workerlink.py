"""The daemon's side of the worker: started on first need, asked in JSON lines, started again when it died.

The worker verifies envelopes and runs jobs; the daemon itself never loads what that needs. Verdicts
that are favourable are kept by hash until the trust anchors change. Whoever waits here waits in its
own request's thread; one more thread reads the worker's lines for as long as there is a worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.daemon.logs import AgentLog
from fedctl_agent.processes import child_environment
from fedctl_agent.state import PRIVATE_FILE, StateDir
from fedctl_wire.codec import Json, dump_bytes, from_json, parse_bytes
from fedctl_wire.errors import WireError
from fedctl_wire.limits import KIB, LIMITS
from fedctl_wire.messages import Usage

WORKER_COMMAND = (sys.executable, "-P", "-m", "fedctl_agent.worker")
_ANSWER_S = 60.0  # a cold start with NumPy takes 10 s on the slowest wearables
_GONE_S = 10.0  # for a worker and its job to be gone after they were told to, or died
_POLL_S = 0.01  # while waiting for that, and at no other time
_VERDICTS = 256
_WORKER_LOG_BYTES = 256 * KIB


class WorkerGoneError(Exception):
    """The worker died, hung or could not be started; the request may or may not have been seen."""


class JobEnded(Protocol):
    """Told from the link's own thread that a task's job is over."""

    def __call__(self, task_id: str, exit_code: int | None, usage: Usage) -> None:
        """`exit_code` is negative for a signal and None when the worker itself went away."""


@dataclass(slots=True)
class _Pending:
    done: threading.Event = field(default_factory=threading.Event)
    answer: dict[str, Json] | None = None
    runs: str | None = None  # the task that is running once the answer is ok


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    socket: socket.socket
    pending: dict[int, _Pending] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    sending: threading.Lock = field(default_factory=threading.Lock)
    gone: bool = False


class WorkerLink:
    """Requests to the one worker. Thread-safe.

    Args:
        state: The agent's state directory.
        command: What to start; `--state-dir DIR --fd N` is added.
        log: Where deaths are noted.

    Attributes:
        on_ended: Called once for every run whose `run` returned; not after `close`.
    """

    on_ended: JobEnded

    def __init__(self, state: StateDir, command: Sequence[str], log: AgentLog) -> None:
        self._state = state
        self._command = tuple(command)
        self._log = log
        self._ids = itertools.count(1)
        self._lock = threading.Lock()  # guards the fields below and the worker's tables
        self._starting = threading.Lock()
        self._worker: _Worker | None = None
        self._verdicts: dict[str, None] = {}
        self._closing = False

    @property
    def pid(self) -> int | None:
        """The worker's process id while there is one."""
        with self._lock:
            return self._worker.process.pid if self._worker else None

    def verify(self, what: str, envelope: Json, *, request: Json = None) -> None:
        """Have an envelope verified: `plan`, `bundle`, `policy`, `roster`, or `enrolment` with its request.

        Raises:
            ApiError: 403 with the worker's code when it is not to be trusted; 503 without a worker.
        """
        verdict = hashlib.sha256(what.encode() + b"\n" + dump_bytes(envelope)).hexdigest()
        with self._lock:
            if verdict in self._verdicts and request is None:
                return
        fields = {"what": what, "envelope": envelope}
        self._ask("verify", {**fields, "request": request} if request is not None else fields)
        with self._lock:
            self._verdicts[verdict] = None
            while len(self._verdicts) > _VERDICTS:
                del self._verdicts[next(iter(self._verdicts))]

    def forget_verdicts(self) -> None:
        """The trust anchors changed: what was trusted before has to be verified again."""
        with self._lock:
            self._verdicts.clear()

    def run(self, task_id: str) -> None:
        """Start a task's job; `ended` reports its end.

        Raises:
            WorkerGoneError: When it is not known whether the job started; it no longer runs then.
            ApiError: 503 when the worker refused.
        """
        self._call("run", {"task": task_id}, runs=task_id)

    def cancel(self, task_id: str) -> None:
        """End a task's job if it runs: SIGTERM, two seconds later SIGKILL."""
        with self._lock:
            worker = self._worker
            if worker is None or task_id not in worker.running:
                return
        with contextlib.suppress(WorkerGoneError, ApiError):  # over either way
            self._call("cancel", {"task": task_id})

    def wait_gone(self) -> None:
        """Wait until no worker or job of an earlier daemon is alive.

        Raises:
            WorkerGoneError: When one still is after 10 seconds.
        """
        os.close(self._lock_file())

    def close(self) -> None:
        """End the worker and its job, and report nothing any more."""
        with self._lock:
            self._closing = True
            worker = self._worker
        if worker is not None:
            with contextlib.suppress(OSError):
                worker.socket.shutdown(socket.SHUT_RDWR)
            _reap(worker.process)

    # ------------------------------------------------------------------ asking

    def _ask(self, verb: str, fields: dict[str, Json]) -> None:
        """Ask what may be asked twice: a worker that left just now is replaced."""
        try:
            self._call(verb, fields)
        except WorkerGoneError:
            try:
                self._call(verb, fields)
            except WorkerGoneError as error:
                raise ApiError(503, "worker", str(error), hint="see worker.log on the device") from error

    def _call(self, verb: str, fields: dict[str, Json], *, runs: str | None = None) -> None:
        worker = self._ensure()
        pending = _Pending(runs=runs)
        with self._lock:
            if worker.gone:
                raise WorkerGoneError("the worker ended")
            number = next(self._ids)
            worker.pending[number] = pending
        line = dump_bytes({"id": number, "verb": verb, **fields}) + b"\n"
        with worker.sending, contextlib.suppress(OSError):  # whoever reads from it notices, too
            worker.socket.sendall(line)
        if not pending.done.wait(_ANSWER_S):
            worker.process.kill()
            raise WorkerGoneError(f"the worker did not answer within {_ANSWER_S:g} s")
        if pending.answer is None:
            raise WorkerGoneError("the worker ended")
        if error := pending.answer.get("error"):
            status = 403 if verb == "verify" else 503
            raise ApiError(
                status,
                str(error.get("code", "worker")),
                str(error.get("message", "")),
                subject=str(error.get("subject", "")),
            )

    def _ensure(self) -> _Worker:
        with self._starting:
            with self._lock:
                if self._closing:
                    raise WorkerGoneError("the agent is stopping")
                if self._worker is not None and not self._worker.gone:
                    return self._worker
            worker = self._start()
            with self._lock:
                self._worker = worker
            threading.Thread(target=self._read, args=(worker,), name="worker-link", daemon=True).start()
            return worker

    def _start(self) -> _Worker:
        lock = self._lock_file()
        ours, theirs = socket.socketpair()
        # The worker and, through it, its jobs inherit the lock: it is free again when all are gone.
        with theirs, os.fdopen(lock), self._open_output() as output:
            try:
                process = subprocess.Popen(
                    [*self._command, "--state-dir", str(self._state.path), "--fd", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(theirs.fileno(), lock),
                    env=child_environment(),
                )
            except OSError as error:
                ours.close()
                raise WorkerGoneError(f"the worker could not be started: {error}") from error
        return _Worker(process, ours)

    def _open_output(self) -> BinaryIO:
        path = self._state.worker_log
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > _WORKER_LOG_BYTES:
                path.unlink()
        return path.open("ab")

    def _lock_file(self) -> int:
        lock = os.open(self._state.worker_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        deadline = time.monotonic() + _GONE_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise WorkerGoneError("an earlier worker or its job does not end") from error
                time.sleep(_POLL_S)
            else:
                return lock

    # ------------------------------------------------------------------ listening

    def _read(self, worker: _Worker) -> None:
        try:
            with worker.socket.makefile("rb") as lines:
                for line in lines:
                    self._take(worker, parse_bytes(line, limit=LIMITS.json_body_bytes, what="worker"))
        except (OSError, WireError) as error:
            if not self._closing:
                self._log.write("warning", f"the worker's line broke: {error}")
        self._bury(worker)

    def _take(self, worker: _Worker, message: dict[str, Json]) -> None:
        if message.get("event") == "ended":
            task_id = str(message["task"])
            with self._lock:
                worker.running.discard(task_id)
            self._report(task_id, message.get("exit"), from_json(Usage, message.get("usage") or {}))
            return
        with self._lock:
            pending = worker.pending.pop(message["id"], None)
            if pending is None:
                return
            if pending.runs is not None and message.get("ok"):
                worker.running.add(pending.runs)
            pending.answer = message
        pending.done.set()

    def _bury(self, worker: _Worker) -> None:
        exit_code = _reap(worker.process)
        with self._lock:
            worker.gone = True
            orphans = tuple(worker.running)
            waiting = tuple(worker.pending.values())
            worker.running.clear()
            worker.pending.clear()
            worker.socket.close()
            if self._worker is worker:
                self._worker = None
        if exit_code != 0 and not self._closing:
            self._log.write("warning", f"the worker ended with exit code {exit_code}")
        for pending in waiting:
            pending.done.set()
        for task_id in orphans:
            self._report(task_id, None, Usage())

    def _report(self, task_id: str, exit_code: int | None, usage: Usage) -> None:
        if not self._closing:
            self.on_ended(task_id, exit_code, usage)


def _reap(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(_GONE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()

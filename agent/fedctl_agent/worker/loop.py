"""The worker's loop: requests from the daemon in, verdicts and ends of jobs out, one thread.

JSON lines over one socket, described in `Request`. The worker belongs to its daemon: when the socket
closes it ends its job and returns. It also returns after `idle_s` without a request or a job, so that
an idle wearable does not pay for NumPy.
"""

from __future__ import annotations

import gc
import json
import math
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedctl_agent.state import StateDir
from fedctl_agent.worker.jobs import Ended, Jobs
from fedctl_agent.worker.trust import Trust
from fedctl_wire.codec import Json, from_json, parse_bytes, to_json
from fedctl_wire.errors import WireError
from fedctl_wire.limits import KIB, LIMITS
from fedctl_wire.messages import EnrolmentRequest
from fedctl_wire.names import check_sha256
from fedctl_wire.signing import Envelope

if TYPE_CHECKING:
    from fedctl_agent.trainers import JobContext, Outcome

LINE_BYTES = LIMITS.json_body_bytes + 64 * KIB  # a message of the largest size, and what is around it
_READ_BYTES = 256 * KIB


@dataclass(frozen=True, slots=True)
class Request:
    """One line from the daemon.

    `verify` answers whether `envelope` may be acted upon as `what` (for an enrolment: whether
    `request` may), `run` forks the job of `task`, `cancel` ends it. Each is answered by
    `{"id", "ok": true}` (`run`: and `pid`) or `{"id", "error": {"code", "message", "subject"}}`;
    a job's end is told by `{"event": "ended", "task", "exit", "usage"}`.
    """

    id: int
    verb: Literal["verify", "run", "cancel"]
    what: Literal["plan", "bundle", "policy", "roster", "enrolment"] | None = None
    envelope: Json = None
    request: Json = None
    task: str = ""


class Worker:
    """Serves one daemon over one socket."""

    def __init__(
        self,
        state: StateDir,
        channel: socket.socket,
        *,
        idle_s: float,
        load: Callable[[], Callable[[JobContext], Outcome]],
    ) -> None:
        """`load` imports what jobs need and returns the trainers' `run`; called before the first fork."""
        self._state = state
        self._channel = channel
        self._idle_s = idle_s
        self._load = load
        self._run_trainer: Callable[[JobContext], Outcome] | None = None
        self._task_expected = False
        self._trust = Trust(state)
        self._received = bytearray()
        self._wake, self._waker = socket.socketpair()
        self._jobs = Jobs(private=[s.fileno() for s in (channel, self._wake, self._waker)])

    def serve(self) -> None:
        """Answer requests until the daemon closes the socket or there was no work for `idle_s`.

        Raises:
            WireError: When a line is no request: nothing more of that stream can be trusted.
        """
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _interrupt)
        try:
            self._loop()
        except ConnectionError:
            pass  # the daemon is gone; whether reading or writing noticed it first does not matter
        finally:
            self._jobs.kill()
            signal.set_wakeup_fd(-1)
            self._wake.close()
            self._waker.close()

    def _loop(self) -> None:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        last_work = time.monotonic()
        while True:
            ready = {fd for fd, _ in poll.poll(self._timeout_ms(last_work))}
            if self._wake.fileno() in ready:
                self._wake.recv(KIB)
                self._report()
            if self._channel.fileno() in ready:
                for line in self._read_lines():
                    self._answer(line)
            self._jobs.kill_if_due()
            if ready or self._jobs.running:
                last_work = time.monotonic()
            elif self._task_expected:
                self._trainer()
            elif time.monotonic() >= last_work + self._idle_s:
                return

    def _timeout_ms(self, last_work: float) -> int | None:
        """How long nothing needs to be done; None for as long as a job runs."""
        if self._task_expected:
            return 0
        due = self._jobs.kill_at if self._jobs.running else last_work + self._idle_s
        return None if due is None else max(0, math.ceil((due - time.monotonic()) * 1000))

    def _read_lines(self) -> Iterator[bytes]:
        data = self._channel.recv(_READ_BYTES)
        if not data:
            raise ConnectionResetError("the daemon closed the socket")
        self._received += data
        while (end := self._received.find(b"\n")) >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            yield line
        if len(self._received) > LINE_BYTES:
            raise WireError(f"the daemon sent a line of more than {LINE_BYTES} bytes", code="too_large")

    def _answer(self, line: bytes) -> None:
        request = from_json(Request, parse_bytes(line, limit=LINE_BYTES, what="request"))
        try:
            answer = self._obey(request)
        except WireError as error:
            answer = {"error": _error(error)}
        self._send({"id": request.id, **answer})

    def _obey(self, request: Request) -> dict[str, Json]:
        if request.verb == "verify":
            self._verify(request)
            return {"ok": True}
        check_sha256(request.task, what="task")
        if request.verb == "cancel":
            self._jobs.cancel(request.task)
            return {"ok": True}
        return {"ok": True, "pid": self._start(request.task)}

    def _verify(self, request: Request) -> None:
        if request.what == "enrolment":
            self._trust.enrolment(from_json(EnrolmentRequest, request.request))
            return
        if request.what is None:
            raise WireError("verify does not say what", subject="what")
        verify: Callable[[Envelope], Any] = {
            "plan": self._trust.plan,
            "bundle": self._trust.bundle,
            "policy": self._trust.policy,
            "roster": self._trust.roster,
        }[request.what]
        verify(Envelope.from_json(request.envelope, what=request.what))
        # A task follows a plan: once nothing else is to be answered, get ready for it.
        self._task_expected = request.what == "plan" and self._run_trainer is None

    def _start(self, task: str) -> int:
        directory = self._state.tasks / task
        if not directory.is_dir():
            raise WireError("there is no such task", code="no_task", subject=task)
        run = self._trainer()
        from fedctl_agent.worker.job import prepare_job

        work = prepare_job(self._state, directory, trust=self._trust, run=run)
        return self._jobs.start(task, directory / "log", work)

    def _trainer(self) -> Callable[[JobContext], Outcome]:
        self._task_expected = False
        if self._run_trainer is None:
            self._run_trainer = self._load()
            gc.collect()
            gc.freeze()  # a collection in a job would write to, and so copy, every page of this process
        return self._run_trainer

    def _report(self) -> None:
        ended = self._jobs.reap()
        if ended is not None:
            self._send(_event(ended))

    def _send(self, message: Json) -> None:
        # ASCII: an error may quote half a surrogate pair, which UTF-8 cannot carry.
        self._channel.sendall(json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n")


def _interrupt(_number: int, _frame: object) -> None:
    """Nothing to do: the signal's number has already been written to the wake-up descriptor."""


def _error(error: WireError) -> Json:
    limit = LIMITS.message_chars
    return {"code": error.code, "message": str(error)[:limit], "subject": error.subject[:limit]}


def _event(ended: Ended) -> Json:
    return {"event": "ended", "task": ended.task, "exit": ended.exit, "usage": to_json(ended.usage)}

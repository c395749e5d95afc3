"""One task's directory, in `tasks/` while there is work left and in `spool/` when it is final.

The files are the truth and every answer is derived from them, so that a crash between any two of them
loses nothing: `cancelled` before `result.json` before `failure.json` before three runs without either.
What this process wrote, and what is final, it reads once and keeps; a job writes only what is read anew.

The daemon's own notes are the lines of one file, `marks`, made with the directory: a small file of its own
for each would cost a wearable's flash, and the time of a task, more than all that is in them.
"""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass, replace
from pathlib import Path

from fedctl_agent.daemon.marks import MARKS_FILE, Marks
from fedctl_agent.state import (
    PRIVATE_DIRECTORY,
    read_json,
    remove_directory,
    sync_directory,
    write_synced,
)
from fedctl_wire.codec import Json, decode, from_json
from fedctl_wire.errors import WireError
from fedctl_wire.limits import KIB, LIMITS
from fedctl_wire.manifest import BUNDLE_FILES, MANIFEST_FILE
from fedctl_wire.messages import (
    Plan,
    Progress,
    Reason,
    Result,
    TaskKind,
    TaskRequest,
    TaskState,
    TaskStatus,
    Usage,
)
from fedctl_wire.signing import Envelope

RUNS = 3  # of one task in all, the first included
REQUEST_FILE = "task.json"
RESULT_FILE = "result.safetensors"
BASE_DIRECTORY = "base"
_RESULT_ENVELOPE = "result.json"
_FAILURE_FILE = "failure.json"
_PROGRESS_FILE = "progress.jsonl"
_PROGRESS_TAIL = 4 * KIB  # bytes; a line of progress is far shorter


@dataclass(frozen=True, slots=True)
class Failure:
    """`failure.json`: the job's own, final error."""

    code: str
    message: str
    state: TaskState


@dataclass(slots=True)
class TaskDir:
    """A task on disk. Writes are for the holder of the task table's lock."""

    path: Path
    task_id: str
    kind: TaskKind
    round: str
    attempt: int
    model: str
    disk_full: bool = False  # whether that is how its last run ended; known until the next start
    _marks: Marks | None = None  # None: not read yet
    _final: TaskStatus | None = None

    @classmethod
    def read(cls, path: Path) -> TaskDir:
        """Read what was asked.

        Raises:
            FileNotFoundError: When the directory holds no request.
            WireError: When it holds no readable one.
        """
        request = from_json(TaskRequest, read_json(path / REQUEST_FILE), what=REQUEST_FILE)
        plan = plan_of(request)
        return cls(path, request.task_id, request.kind, plan.round, request.attempt, plan.model)

    # ------------------------------------------------------------------ reading

    @property
    def marks(self) -> Marks:
        """What this daemon, or an earlier one, noted about it."""
        if self._marks is None:
            self._marks = Marks.read(self._file(MARKS_FILE))
        return self._marks

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled it."""
        return self.marks.cancelled

    @property
    def acked(self) -> bool:
        """Whether the workstation has the result durably."""
        return self.marks.acked is not None

    @property
    def runs(self) -> int:
        """How often its job was started."""
        return self.marks.runs

    @property
    def ended(self) -> bool:
        """Whether no further run is due."""
        return (
            self.cancelled
            or self._has(_RESULT_ENVELOPE)
            or self._has(_FAILURE_FILE)
            or self.runs >= RUNS
            or self.lost
        )

    @property
    def lost(self) -> bool:
        """Whether somebody removed its directory."""
        return not os.path.isdir(self.path)

    @property
    def same_work(self) -> tuple[str, int]:
        """What at most one `train` task may be asked for."""
        return self.round, self.attempt

    def request_bytes(self) -> bytes:
        """The request as it was received."""
        return (self.path / REQUEST_FILE).read_bytes()

    def status(self, *, at_work: TaskState | None) -> TaskStatus:
        """The answer to whoever asks, derived from the files.

        Args:
            at_work: QUEUED or RUNNING while it is not final, whatever its job has written already.
        """
        if at_work:
            return self._status(at_work, None, None)
        status = self._final or self._status(*self._end())
        # Kept until the acknowledgement: afterwards nobody asks any more, but the directory stays.
        self._final = None if self.acked else status
        return status if status.acked == self.acked else replace(status, acked=self.acked)

    def result(self) -> Result | None:
        """What the finished job said of itself, or None before it is done."""
        envelope = self._read(_RESULT_ENVELOPE)
        if envelope is None:
            return None
        payload = Envelope.from_json(envelope, what=_RESULT_ENVELOPE).payload
        return decode(Result, payload, limit=LIMITS.json_body_bytes)

    def progress(self) -> Progress:
        """The last whole line of progress, read from the end of the file."""
        try:
            lines = _read_tail(self._file(_PROGRESS_FILE), _PROGRESS_TAIL).split(b"\n")[:-1]
        except FileNotFoundError:
            return Progress()
        for line in reversed(lines):
            with contextlib.suppress(WireError):  # a power cut may leave rubbish at the end
                return decode(Progress, line, limit=_PROGRESS_TAIL)
        return Progress()

    def waiting_bytes(self) -> int:
        """Size of the result that waits to be collected."""
        with contextlib.suppress(FileNotFoundError):
            return (self.path / RESULT_FILE).stat().st_size
        return 0

    def _status(self, state: TaskState, reason: Reason | None, envelope: Json) -> TaskStatus:
        return TaskStatus(
            task_id=self.task_id,
            kind=self.kind,
            round=self.round,
            state=state,
            runs=self.runs,
            acked=self.acked,
            progress=self.progress(),
            reason=reason,
            result=envelope,
            usage=self.marks.usage,
        )

    def _end(self) -> tuple[TaskState, Reason | None, Json]:
        if self.cancelled:
            return TaskState.CANCELLED, Reason("cancelled", "the task was cancelled"), None
        if (envelope := self._read(_RESULT_ENVELOPE)) is not None:
            return TaskState.DONE, None, envelope
        if (raw := self._read(_FAILURE_FILE)) is not None:
            failure = from_json(Failure, raw, what=_FAILURE_FILE)
            return failure.state, Reason(failure.code, failure.message), None
        if self.lost:
            return TaskState.FAILED, Reason("lost", "the task's directory was removed from the device"), None
        if self.disk_full:
            return (
                TaskState.FAILED,
                Reason("disk", "the device's disk is full: no result was written"),
                None,
            )
        return TaskState.FAILED, Reason("crashed", f"{self.runs} runs ended without a result"), None

    def _file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _has(self, name: str) -> bool:
        return os.path.exists(self._file(name))

    def _read(self, name: str) -> Json:
        try:
            return read_json(self._file(name))
        except FileNotFoundError:
            return None

    # ------------------------------------------------------------------ writing

    def count_run(self) -> None:
        """Note durably that one more run begins, and clear what an earlier one left half-done."""
        self.marks.count_run()
        if self.runs > 1:
            for name in (_PROGRESS_FILE, RESULT_FILE):
                (self.path / name).unlink(missing_ok=True)

    def add_usage(self, run: Usage) -> None:
        """Add what one run cost to what the earlier ones did."""
        before = self.marks.usage
        usage = Usage(
            cpu_ms=before.cpu_ms + run.cpu_ms,
            wall_ms=before.wall_ms + run.wall_ms,
            peak_rss_bytes=max(before.peak_rss_bytes, run.peak_rss_bytes),
        )
        if usage != before:
            self.marks.add_usage(usage)

    def mark_cancelled(self) -> None:
        """Note durably that it was cancelled."""
        if self.lost:
            self.marks.cancelled = True
        else:
            self.marks.cancel()

    def mark_acked(self, number: int) -> None:
        """Note durably that the workstation has the result."""
        if self.lost:  # there is nothing left that could come back
            self.marks.acked = number
        else:
            self.marks.ack(number)

    def free(self) -> None:
        """Remove what nobody needs after the acknowledgement; the rest is the receipt."""
        for name in (RESULT_FILE, MANIFEST_FILE, *BUNDLE_FILES):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._file(name))
        remove_directory(self._file(BASE_DIRECTORY))

    def move(self, directory: Path) -> None:
        """Move it to another directory.

        Not synced: a final task that a power cut puts back is found to be final, and moved again.
        """
        target = directory / self.task_id
        try:
            os.rename(self.path, target)
        except FileNotFoundError:
            os.makedirs(directory, PRIVATE_DIRECTORY, exist_ok=True)  # somebody removed it
            os.rename(self.path, target)
        self.path = target
        self.marks.path = self._file(MARKS_FILE)


def fill(directory: str, body: bytes) -> None:
    """Write what a new task's directory holds beside its bundles' files; durable but for its own name."""
    write_synced(f"{directory}/{REQUEST_FILE}", body)
    Marks.make(f"{directory}/{MARKS_FILE}")
    sync_directory(directory)


def plan_of(request: TaskRequest) -> Plan:
    """The plan inside a request, unverified.

    Raises:
        WireError: When there is none.
    """
    return _plan(Envelope.from_json(request.plan, what="plan").payload)


@functools.lru_cache(maxsize=1)  # a round's tasks have one plan
def _plan(payload: bytes) -> Plan:
    return decode(Plan, payload, limit=LIMITS.json_body_bytes, what="plan")


def _read_tail(path: str, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, size, max(0, os.fstat(descriptor).st_size - size))
    finally:
        os.close(descriptor)

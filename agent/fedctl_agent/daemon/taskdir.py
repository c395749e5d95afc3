"""One task's directory, in `tasks/` while there is work left and in `spool/` when it is final.

The files are the truth and every answer is derived from them, so that a crash between any two of them
loses nothing: `cancelled` before `result.json` before `failure.json` before three runs without either.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from fedctl_agent.state import read_json, sync_directory, write_durably
from fedctl_wire.codec import Json, decode, encode, from_json
from fedctl_wire.errors import WireError
from fedctl_wire.limits import KIB, LIMITS
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
MODEL_DIRECTORY = "model"
BASE_DIRECTORY = "base"
_RESULT_ENVELOPE = "result.json"
_FAILURE_FILE = "failure.json"
_CANCELLED_FILE = "cancelled"
_ACKED_FILE = "acked"
_RUNS_FILE = "runs"
_USAGE_FILE = "usage.json"
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

    @classmethod
    def read(cls, path: Path) -> TaskDir:
        """Read what was asked.

        Raises:
            FileNotFoundError: When the directory holds no request.
            WireError: When it holds no readable one.
        """
        request = from_json(TaskRequest, read_json(path / REQUEST_FILE), what=REQUEST_FILE)
        plan = plan_of(request)
        return cls(path, request.task_id, request.kind, plan.round, request.attempt)

    # ------------------------------------------------------------------ reading

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled it."""
        return (self.path / _CANCELLED_FILE).exists()

    @property
    def acked(self) -> bool:
        """Whether the workstation has the result durably."""
        return (self.path / _ACKED_FILE).exists()

    @property
    def ack_number(self) -> int:
        """The place of its acknowledgement among all; 0 before. Clocks are not to be trusted here."""
        return _read_number(self.path / _ACKED_FILE)

    @property
    def runs(self) -> int:
        """How often its job was started."""
        return _read_number(self.path / _RUNS_FILE)

    @property
    def ended(self) -> bool:
        """Whether no further run is due."""
        names = (_CANCELLED_FILE, _RESULT_ENVELOPE, _FAILURE_FILE)
        return any((self.path / name).exists() for name in names) or self.runs >= RUNS

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
        state, reason, envelope = (at_work, None, None) if at_work else self._end()
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
            usage=self._usage(),
        )

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
            with (self.path / _PROGRESS_FILE).open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - _PROGRESS_TAIL))
                lines = stream.read().split(b"\n")[:-1]
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

    def _end(self) -> tuple[TaskState, Reason | None, Json]:
        if self.cancelled:
            return TaskState.CANCELLED, Reason("cancelled", "the task was cancelled"), None
        if (envelope := self._read(_RESULT_ENVELOPE)) is not None:
            return TaskState.DONE, None, envelope
        if (raw := self._read(_FAILURE_FILE)) is not None:
            failure = from_json(Failure, raw, what=_FAILURE_FILE)
            return failure.state, Reason(failure.code, failure.message), None
        return TaskState.FAILED, Reason("crashed", f"{self.runs} runs ended without a result"), None

    def _usage(self) -> Usage:
        raw = self._read(_USAGE_FILE)
        return Usage() if raw is None else from_json(Usage, raw, what=_USAGE_FILE)

    def _read(self, name: str) -> Json:
        try:
            return read_json(self.path / name)
        except FileNotFoundError:
            return None

    # ------------------------------------------------------------------ writing

    def count_run(self) -> None:
        """Note durably that one more run begins, and clear what an earlier one left half-done."""
        write_durably(self.path / _RUNS_FILE, str(self.runs + 1).encode())
        for name in (_PROGRESS_FILE, RESULT_FILE):
            (self.path / name).unlink(missing_ok=True)

    def add_usage(self, run: Usage) -> None:
        """Add what one run cost to what the earlier ones did."""
        before = self._usage()
        total = Usage(
            cpu_ms=before.cpu_ms + run.cpu_ms,
            wall_ms=before.wall_ms + run.wall_ms,
            peak_rss_bytes=max(before.peak_rss_bytes, run.peak_rss_bytes),
        )
        if total != before:
            write_durably(self.path / _USAGE_FILE, encode(total))

    def mark_cancelled(self) -> None:
        """Note durably that it was cancelled."""
        write_durably(self.path / _CANCELLED_FILE, b"")

    def mark_acked(self, number: int) -> None:
        """Note durably that the workstation has the result."""
        write_durably(self.path / _ACKED_FILE, str(number).encode())

    def free(self) -> None:
        """Remove what nobody needs after the acknowledgement; the rest is the receipt."""
        (self.path / RESULT_FILE).unlink(missing_ok=True)
        for name in (MODEL_DIRECTORY, BASE_DIRECTORY):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def move(self, directory: Path) -> None:
        """Move it to another directory, durably."""
        source, self.path = self.path, directory / self.task_id
        source.rename(self.path)
        sync_directory(directory)
        sync_directory(source.parent)


def plan_of(request: TaskRequest) -> Plan:
    """The plan inside a request, unverified.

    Raises:
        WireError: When there is none.
    """
    envelope = Envelope.from_json(request.plan, what="plan")
    return decode(Plan, envelope.payload, limit=LIMITS.json_body_bytes, what="plan")


def _read_number(path: Path) -> int:
    try:
        return int(path.read_bytes())
    except FileNotFoundError:
        return 0

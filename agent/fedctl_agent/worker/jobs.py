"""The one job of a worker: a forked child, its limits, its cancellation and what it cost.

A fork of a process that has already imported NumPy is ready in milliseconds; a fresh one costs 100 ms
of processor time. The child is in its own process group, at the lowest priority that still makes
progress, first in line when memory runs out, and dies with the worker, however the worker ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from fedctl_agent.state import DISK_FULL_EXIT, NO_ROOM
from fedctl_wire.errors import WireError
from fedctl_wire.messages import Usage

CANCEL_GRACE_S = 2.0  # between SIGTERM and SIGKILL
_NICE = 10
_OOM_SCORE_ADJ = b"1000"  # the kernel's maximum: the job goes before anything else on the device
_FILE_BYTES = 2 * 1024**3
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl  # found before the fork: a look-up costs a job 0.2 ms


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended: its exit code, or minus the signal that ended it, and what this run cost."""

    task: str
    exit: int
    usage: Usage


@dataclass(slots=True)
class _Job:
    task: str
    pid: int
    started: float  # seconds, monotonic
    kill_at: float | None = None  # seconds, monotonic; from its cancellation until it was killed


class Jobs:
    """Starts and ends one job at a time. Single-threaded; the caller tells it when a child may have ended."""

    def __init__(self, *, private: Sequence[int]) -> None:
        """`private` are the worker's own descriptors, which a job must not have."""
        self._private = private
        self._job: _Job | None = None

    @property
    def running(self) -> str | None:
        """The task of the running job."""
        return self._job.task if self._job else None

    @property
    def kill_at(self) -> float | None:
        """When `kill_if_due` must be called, in seconds, monotonic."""
        return self._job.kill_at if self._job else None

    def start(self, task: str, log: Path, work: Callable[[], None]) -> int:
        """Fork a child that does `work` with `log` as its output, and return its process id.

        The child ends with exit code 0 after `work`, 1 when it raises, `DISK_FULL_EXIT` when that was
        for want of room; nothing of this process's
        buffers or handlers is run or flushed a second time.

        Raises:
            WireError: With code `busy`, naming the task of the running job, or `fork` when the
                system has no room for another process.
        """
        if self._job is not None:
            raise WireError("another task is running", code="busy", subject=self._job.task)
        worker = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            raise WireError(f"cannot start a job: {error}", code="fork", subject=task) from error
        if pid == 0:
            _child(worker, self._private, log, work)
        with contextlib.suppress(OSError):  # the child does the same: whoever comes first
            os.setpgid(pid, pid)
        self._job = _Job(task, pid, time.monotonic())
        return pid

    def cancel(self, task: str) -> None:
        """Ask the job of `task` to end; `kill_if_due` ends it. Without such a job there is nothing to do."""
        job = self._job
        if job is None or job.task != task or job.kill_at is not None:
            return
        job.kill_at = time.monotonic() + CANCEL_GRACE_S
        _signal(job.pid, signal.SIGTERM)

    def kill_if_due(self) -> None:
        """End a cancelled job that did not end by itself in time."""
        job = self._job
        if job is not None and job.kill_at is not None and time.monotonic() >= job.kill_at:
            job.kill_at = None  # nothing more can be done: a process in the kernel ends when it comes back
            _signal(job.pid, signal.SIGKILL)

    def reap(self) -> Ended | None:
        """Collect the job if it has ended."""
        job = self._job
        if job is None:
            return None
        pid, status, cost = os.wait4(job.pid, os.WNOHANG)
        if pid == 0:
            return None
        self._job = None
        usage = Usage(
            cpu_ms=round((cost.ru_utime + cost.ru_stime) * 1000),
            wall_ms=round((time.monotonic() - job.started) * 1000),
            peak_rss_bytes=cost.ru_maxrss * 1024,
        )
        return Ended(job.task, os.waitstatus_to_exitcode(status), usage)

    def kill(self) -> None:
        """End the job at once and wait until it is gone."""
        if self._job is not None:
            _signal(self._job.pid, signal.SIGKILL)
            os.waitpid(self._job.pid, 0)
            self._job = None


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _child(worker: int, private: Sequence[int], log: Path, work: Callable[[], None]) -> NoReturn:
    """Whatever happens, the child must not run on as a second worker."""
    code = 1
    try:
        _settle(worker)
        _redirect(log, private)
        _limit()
        work()
        code = 0
    except BaseException as error:  # noqa: BLE001 - the job's own log is where it belongs
        import traceback

        if isinstance(error, OSError) and error.errno in NO_ROOM:
            code = DISK_FULL_EXIT
        with contextlib.suppress(OSError):  # a full disk
            os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(code)


def _settle(worker: int) -> None:
    with contextlib.suppress(OSError):  # the worker was first
        os.setpgid(0, 0)
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != worker:  # it died before the line above
        os._exit(1)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _redirect(log: Path, private: Sequence[int]) -> None:
    for descriptor in private:
        os.close(descriptor)
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)


def _limit() -> None:
    os.nice(_NICE)
    with contextlib.suppress(OSError):  # not everywhere may a process say so of itself
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(score, _OOM_SCORE_ADJ)
        os.close(score)
    set_limit(resource.RLIMIT_CORE, 0)  # a core file would hold training data
    set_limit(resource.RLIMIT_FSIZE, _FILE_BYTES)


def set_limit(which: int, value: int) -> None:
    """Lower one resource limit of this process for good; a lower one stays."""
    hard = resource.getrlimit(which)[1]
    if hard == resource.RLIM_INFINITY or value < hard:
        resource.setrlimit(which, (value, value))

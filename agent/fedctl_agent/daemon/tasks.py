"""The device's tasks: one slot, every step durable before it is answered, nothing lost by a crash.

A task's directory is made beside the others and renamed into `tasks/`; it moves to `spool/` when it
is final and stays there as a receipt after its acknowledgement. What a crashed daemon leaves is final
already, and adopted, or runs again from the start. Running jobs are never adopted: the worker ends
them when its daemon goes away, and `recover` waits for that before it looks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from fedctl_agent.daemon.data import Data
from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.daemon.logs import AgentLog
from fedctl_agent.daemon.policy import PolicyStore
from fedctl_agent.daemon.slots import Slots, link_bundle
from fedctl_agent.daemon.taskdir import (
    BASE_DIRECTORY,
    RESULT_FILE,
    TaskDir,
    fill,
    plan_of,
)
from fedctl_agent.daemon.trust import Trust
from fedctl_agent.daemon.workerlink import WorkerGoneError, WorkerLink
from fedctl_agent.state import (
    DISK_FULL_EXIT,
    PRIVATE_DIRECTORY,
    TEMPORARY_SUFFIX,
    StateDir,
    sync_directory,
)
from fedctl_wire.codec import Json, decode
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import Plan, TaskKind, TaskRequest, TaskState, TaskStatus, Usage
from fedctl_wire.messages import task_id as name_of_task
from fedctl_wire.signing import Envelope

RECEIPTS = 200  # acknowledged tasks whose directories are kept
_PROGRESS_S = 0.25  # how often a job's progress is read, and only while somebody waits for it
_CANCEL_S = 5.0  # a cancelled job is gone after two seconds
_DAMAGE = {"hash", "malformed", "signature"}  # codes of a job whose bundle may have been damaged on disk


class Tasks:
    """The task table. Thread-safe. `recover` has to be called first, and once."""

    def __init__(
        self,
        state: StateDir,
        *,
        worker: WorkerLink,
        trust: Trust,
        slots: Slots,
        policy: PolicyStore,
        data: Data,
        log: AgentLog,
        receipts: int = RECEIPTS,
    ) -> None:
        self._state = state
        self._worker = worker
        self._trust = trust
        self._slots = slots
        self._policy = policy
        self._data = data
        self._log = log
        self._receipts = receipts
        self._changed = threading.Condition()  # its lock guards the task directories and all below
        self._tasks: dict[str, TaskDir] = {}
        self._queue: list[str] = []  # not final; the first one holds the device's slot
        self._running: str | None = None
        self._acked: deque[str] = deque()  # oldest first
        self._acks = 0
        worker.on_ended = self.job_ended

    # ------------------------------------------------------------------ asked by callers

    def put(self, task_id: str, body: bytes) -> tuple[TaskStatus, bool]:
        """Take a task and start it; return where it stands and whether it is new here.

        Args:
            task_id: From the request's path, checked.
            body: The `TaskRequest` as received. The same bytes again are the same task.

        Raises:
            WireError: When the body is no request.
            ApiError: 400 `task_id`; 403 for an untrusted plan, one for others, by policy, or because
                this device's data are not what the plan needs: `schema`, `no_source`;
                409 `conflict`, `duplicate_round`, `busy`, `no_model`.
        """
        request = decode(TaskRequest, body, limit=LIMITS.json_body_bytes, what="task")
        plan = plan_of(request)
        _check_name(task_id, request, plan)
        with self._changed:
            if (known := self._known(task_id, body)) is not None:
                return known, False
        self._worker.verify("plan", request.plan)
        self._check_addressed(request, plan)
        self._policy.effective().require_kind(request.kind)
        if plan.needs is not None:
            self._data.require_fit(plan.model, plan.needs)
        with self._changed:
            if (known := self._known(task_id, body)) is not None:
                return known, False
            self._check_free(request, plan)
            self._tasks[task_id] = self._create(request, plan, body)
            self._queue.append(task_id)
        self._start(task_id)
        return self.wait(task_id), True

    def wait(
        self,
        task_id: str,
        *,
        seen: int = 0,
        wait_s: float = 0.0,
        gone: Callable[[float], bool] = lambda _seconds: False,
    ) -> TaskStatus:
        """Where a task stands: at once, or when it is final, has progress beyond `seen`, or time is up.

        Raises:
            ApiError: 404 `no_task`.
            ConnectionError: When `gone` says that the caller hung up while it waited.
        """
        deadline = _boottime() + wait_s
        with self._changed:
            while True:
                task = self._find(task_id)
                remaining = deadline - _boottime()
                if task_id not in self._queue or remaining <= 0 or task.progress().seq > seen:
                    return self._status(task)
                if gone(0.0):
                    raise ConnectionAbortedError
                self._changed.wait(min(remaining, _PROGRESS_S))

    def cancel(self, task_id: str) -> TaskStatus:
        """Cancel a task that is not final, and wait a moment for its job's end.

        Raises:
            ApiError: 404 `no_task`.
        """
        with self._changed:
            task = self._find(task_id)
            if task_id in self._queue:
                task.mark_cancelled()
                if self._running != task_id:
                    self._finish(task)
                    self._start_next()
        self._worker.cancel(task_id)
        with self._changed:
            self._changed.wait_for(lambda: task_id not in self._queue, _CANCEL_S)
            return self._status(task)

    def ack(self, task_id: str) -> TaskStatus:
        """The workstation has the result durably: free what it takes, keep the receipt.

        Raises:
            ApiError: 404 `no_task`, 409 `not_final`.
        """
        with self._changed:
            task = self._find(task_id)
            if task_id in self._queue:
                raise ApiError(409, "not_final", "the task is not final yet", subject=task_id)
            if not task.acked:
                task.free()  # first: on a full disk it makes the room for the mark
                task.mark_acked(self._acks + 1)
                self._acks += 1
                self._acked.append(task_id)
                self._prune()
            return self._status(task)

    def result_file(self, task_id: str) -> tuple[Path, str]:
        """The result's file and SHA-256.

        Raises:
            ApiError: 404 `no_task` or `no_result`, 409 `not_done`, 410 `acked`.
        """
        with self._changed:
            task = self._find(task_id)
            result = None if task_id in self._queue else task.result()
            if result is None and task_id not in self._queue and task.lost:
                raise ApiError(410, "acked", "the task was removed from the device's spool", subject=task_id)
            if result is None:
                raise ApiError(409, "not_done", "the task has no result yet", subject=task_id)
            if result.result_sha256 is None:
                raise ApiError(
                    404, "no_result", f"a {task.kind.value} task has no result file", subject=task_id
                )
            path = task.path / RESULT_FILE
            if not path.exists():
                why = "was acknowledged" if task.acked else "was removed from the device's spool"
                raise ApiError(410, "acked", f"the result {why} and is gone", subject=task_id)
            return path, result.result_sha256

    def current(self) -> Json:
        """The task that holds the slot, for `/status`, or None."""
        with self._changed:
            if not self._queue:
                return None
            task = self._tasks[self._queue[0]]
            state = TaskState.RUNNING if self._running else TaskState.QUEUED
            return {"task_id": task.task_id, "kind": task.kind, "round": task.round, "state": state}

    def spool(self) -> Json:
        """How much waits to be collected, for `/status`."""
        with self._changed:
            waiting = [t for t in self._tasks.values() if t.task_id not in self._queue and not t.acked]
            return {"tasks": len(waiting), "bytes": sum(task.waiting_bytes() for task in waiting)}

    # ------------------------------------------------------------------ the road of a task

    def recover(self) -> None:
        """Read what an earlier daemon left, adopt what is finished, and start what is not.

        Raises:
            WorkerGoneError: When that daemon's worker or job does not end.
        """
        if any(self._state.tasks.iterdir()):
            self._worker.wait_gone()
        with self._changed:
            for task in _read_all(self._state.spool, self._log):
                self._tasks[task.task_id] = task
            for task in _read_all(self._state.tasks, self._log):
                self._tasks[task.task_id] = task
                self._queue.append(task.task_id)
                if task.ended:
                    self._finish(task)
            acked = sorted((t.marks.acked or 0, t.task_id) for t in self._tasks.values() if t.acked)
            self._acked.extend(task_id for _, task_id in acked)
            self._acks = acked[-1][0] if acked else 0
            self._prune()
            self._start_next()

    def job_ended(self, task_id: str, exit_code: int | None, usage: Usage) -> None:
        """A run is over: the task is final, or due again. Called by the worker link."""
        with self._changed:
            if self._running != task_id:
                return
            self._running = None
            task = self._tasks[task_id]
            task.disk_full = exit_code == DISK_FULL_EXIT
            try:
                task.add_usage(usage)
                over = task.ended
            except OSError as error:  # a full disk: no further run could be counted either
                self._log.write("error", f"the task is given up: {error}", task=task_id)
                over = True
            if over:
                self._finish(task)
            else:
                self._log.write(
                    "warning", "a job ended without a result", task=task_id, exit=exit_code, runs=task.runs
                )
            self._start_next()

    def _start(self, task_id: str) -> None:
        with self._changed:
            if self._running is not None or task_id not in self._queue:
                return
            task = self._tasks[task_id]
            self._running = task_id
            try:
                task.count_run()
            except OSError:  # never start what cannot be counted
                self._running = None
                self._give_up(task)
                raise
        try:
            self._worker.run(task_id)
        except (WorkerGoneError, ApiError) as error:
            self._log.write("error", f"a job could not be started: {error}", task=task_id)
            self.job_ended(task_id, None, Usage())
            return
        if task.cancelled:  # in between
            self._worker.cancel(task_id)

    def _start_next(self) -> None:
        if self._queue and self._running is None:
            arguments = (self._queue[0],)
            threading.Thread(target=self._start_alone, args=arguments, name="task-start", daemon=True).start()

    def _start_alone(self, task_id: str) -> None:
        """Start a task for which nobody waits."""
        try:
            self._start(task_id)
        except OSError as error:
            self._log.write("error", f"a job could not be started: {error}", task=task_id)

    def _finish(self, task: TaskDir) -> None:
        try:
            task.move(self._state.spool)
        except OSError as error:  # final none the less: it must not hold the slot until the next start
            self._log.write("error", f"the task cannot be moved to the spool: {error}", task=task.task_id)
        self._queue.remove(task.task_id)
        status = self._status(task)
        self._log.write("info", f"task {status.state.value}", task=task.task_id, kind=task.kind.value)
        if status.reason is not None and status.reason.code in _DAMAGE:
            self._heal(task.model)
        self._changed.notify_all()

    def _give_up(self, task: TaskDir) -> None:
        """The disk is full: a task that never ran leaves nothing behind, another one is final."""
        if task.runs:
            self._finish(task)
            return
        self._queue.remove(task.task_id)
        del self._tasks[task.task_id]
        shutil.rmtree(task.path, ignore_errors=True)

    def _create(self, request: TaskRequest, plan: Plan, body: bytes) -> TaskDir:
        path = self._state.tasks / request.task_id
        staging = f"{path}{TEMPORARY_SUFFIX}"
        try:
            os.mkdir(staging, PRIVATE_DIRECTORY)
        except FileNotFoundError:  # somebody removed the directory of all tasks
            self._state.create()
            os.mkdir(staging, PRIVATE_DIRECTORY)
        try:
            self._link(request.bundle, plan, staging)
            if request.kind is TaskKind.EVALUATE:
                base = f"{staging}/{BASE_DIRECTORY}"
                os.mkdir(base, PRIVATE_DIRECTORY)
                self._link(plan.base.sha256, plan, base)
                sync_directory(base)
            fill(staging, body)
            os.rename(staging, path)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        sync_directory(self._state.tasks)
        return TaskDir(path, request.task_id, request.kind, plan.round, request.attempt, plan.model)

    def _link(self, bundle: str, plan: Plan, target: str) -> None:
        with self._slots.holding(plan.model, bundle) as slot:
            try:
                link_bundle(slot, target)
            except FileNotFoundError as error:
                self._heal(plan.model)
                lost = os.path.basename(error.filename)
                raise ApiError(
                    409,
                    "no_model",
                    f"the device lost {lost} of {plan.model}@{slot.version}",
                    hint="push it again",
                    subject=bundle,
                ) from error

    def _heal(self, model: str) -> None:
        """A bundle was found damaged: forget it, so that the next push sends its files again."""
        for slot in self._slots.heal(model):
            self._log.write("error", "a damaged slot is emptied", model=model, version=slot.version)

    def _prune(self) -> None:
        while len(self._acked) > self._receipts:
            task = self._tasks.pop(self._acked.popleft())
            with contextlib.suppress(FileNotFoundError):  # somebody removed it
                doomed = task.path.rename(task.path.with_name(task.task_id + TEMPORARY_SUFFIX))
                shutil.rmtree(doomed, ignore_errors=True)

    # ------------------------------------------------------------------ checks

    def _find(self, task_id: str) -> TaskDir:
        task = self._tasks.get(task_id)
        if task is None:
            raise ApiError(404, "no_task", "this device does not know the task", subject=task_id)
        return task

    def _status(self, task: TaskDir) -> TaskStatus:
        if task.task_id not in self._queue:
            return task.status(at_work=None)
        return task.status(at_work=TaskState.RUNNING if self._running == task.task_id else TaskState.QUEUED)

    def _known(self, task_id: str, body: bytes) -> TaskStatus | None:
        task = self._tasks.get(task_id)
        if task is None:
            return None
        try:
            held = task.request_bytes()
        except FileNotFoundError:  # somebody removed it; one at work ends soon, and says so
            if task_id in self._queue:
                return self._status(task)
            del self._tasks[task_id]
            with contextlib.suppress(ValueError):
                self._acked.remove(task_id)
            return None
        if held != body:
            raise ApiError(409, "conflict", "this task is known with another request", subject=task_id)
        return self._status(task)

    def _check_addressed(self, request: TaskRequest, plan: Plan) -> None:
        device = self._trust.identity.device
        if request.device != device:
            raise ApiError(
                403,
                "device",
                f"the task is for {request.device}, this device is {device}",
                subject=request.device,
            )
        if request.kind not in plan.kinds:
            raise ApiError(
                403, "plan", f"the plan has no {request.kind.value} task", subject=request.kind.value
            )
        if request.kind is not TaskKind.EVALUATE and request.bundle != plan.base.sha256:
            raise ApiError(403, "plan", "the task's bundle is not the plan's base", subject=request.bundle)

    def _check_free(self, request: TaskRequest, plan: Plan) -> None:
        same_work = (plan.round, request.attempt)
        for task in self._tasks.values():
            if request.kind is task.kind is TaskKind.TRAIN and task.same_work == same_work:
                raise ApiError(
                    409,
                    "duplicate_round",
                    f"this device has trained for round {plan.round}, attempt {request.attempt}, already",
                    subject=task.task_id,
                )
        if self._queue:
            holder = self._queue[0]
            raise ApiError(409, "busy", "another task runs", hint="wait for it or cancel it", subject=holder)


def _check_name(task_id: str, request: TaskRequest, plan: Plan) -> None:
    named = name_of_task(
        round_id=plan.round,
        attempt=request.attempt,
        device=request.device,
        plan=Envelope.from_json(request.plan).sha256,
        kind=request.kind,
        bundle=request.bundle,
    )
    if not task_id == request.task_id == named:
        raise ApiError(400, "task_id", f"this request's task id is {named}", subject=task_id)


def _read_all(directory: Path, log: AgentLog) -> Iterator[TaskDir]:
    for path in sorted(directory.iterdir()):
        if path.name.endswith(TEMPORARY_SUFFIX):
            shutil.rmtree(path, ignore_errors=True)
            continue
        try:
            yield TaskDir.read(path)
        except (OSError, WireError) as error:
            log.write("error", f"a task directory cannot be read and is removed: {error}", task=path.name)
            shutil.rmtree(path, ignore_errors=True)


def _boottime() -> float:
    """Seconds since boot, suspended time included; the wall clock may be in 1970 and jump."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)

"""One device's part in one round, carried out in a thread of its own.

A site never touches the round's rows: it posts what happened, and acknowledges a result on the device
only after the driver said that it is recorded. Every step may be repeated.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fedctl.aggregation.update import ExpectedFile, UpdateSink
from fedctl.core import round_machine as machine
from fedctl.core.errors import ConfigError, DeviceError, FedctlError, UnreachableError
from fedctl.core.gate import plausible
from fedctl.core.progress import DeviceProgress
from fedctl.core.records import Device
from fedctl.core.round_records import Round, Stage, Task
from fedctl.ops.session import RELEASED, FleetSession
from fedctl.ops.training.exchange import Assignment, StoppedError, carry_out, offer, verified_result
from fedctl.release.bundle import Bundle
from fedctl.transport import AgentClient, retrying
from fedctl_wire.codec import to_json
from fedctl_wire.manifest import GRAPH_FILE
from fedctl_wire.messages import Plan, Result, TaskKind, TaskState, TaskStatus
from fedctl_wire.signing import Envelope
from fedctl_wire.update import update_metadata

BUSY_CODE = "busy"
LOST_MODEL_CODE = "no_model"
WAITING = "waiting"  # progress of a device that does not answer, until its next try


@dataclass(frozen=True, slots=True)
class RoundContext:
    """What all sites of a round share."""

    session: FleetSession
    round: Round
    plan: Plan
    envelope: Envelope  # the signed plan
    golden: tuple[str, Envelope]  # round uuid and one-task plan, for devices new to this graph
    base: Bundle

    def update_path(self, device: str) -> Path:
        """Where a device's update of this attempt is kept."""
        directory = self.session.home.round(self.round.id) / "updates"
        return directory / f"{device}.{self.round.attempt}.safetensors"


@dataclass(frozen=True, slots=True)
class UpdateFacts:
    """What the round's row says of a collected update."""

    sha256: str
    norm: float  # L2
    examples: int


@dataclass(frozen=True, slots=True)
class Posted:
    """Something that happened at a device, for the driver to record."""

    device: str
    event: machine.Event | None = None
    task: Task | None = None
    update: UpdateFacts | None = None
    golden: dict[str, str] | None = None  # agent and runtime that passed the base's golden batch


@dataclass(frozen=True, slots=True)
class Wiring:
    """How a site talks to its driver."""

    post: Callable[[Posted], threading.Event]  # the event is set once it is durably recorded
    report: Callable[[DeviceProgress], None]
    stop: threading.Event  # set when the round no longer needs its sites
    deadline: float  # instant of `time.monotonic` at which it no longer will


class Site:
    """One device in one round."""

    def __init__(self, context: RoundContext, device: Device, wiring: Wiring) -> None:
        self._context = context
        self._device = device
        self._name = device.name
        self._wiring = wiring
        self._traffic = (0, 0)  # (up, down) on the client when the current task began

    def train(self) -> None:
        """Bring the device from where it is to a collected update, or to a reason for its drop."""
        error = self._try(self._train_once, self._wiring.deadline)
        if error is not None:
            self._report("dropped", error.message)
            self._wiring.post(Posted(self._name, machine.Dropped(self._name, error.message)))

    def evaluate(self, candidate: Bundle, *, newborn: bool, contact_s: float) -> None:
        """Have the device measure base and candidate.

        Args:
            candidate: The version that the round made.
            newborn: Whether this command made it, so that no device has it yet.
            contact_s: How long a device that does not answer is waited for.
        """
        until = min(self._wiring.deadline, time.monotonic() + contact_s)
        error = self._try(lambda: self._evaluate_once(candidate, newborn=newborn), until)
        if error is not None:
            self._report("not evaluated", error.message)
            self._wiring.post(
                Posted(self._name, machine.EvaluationFailed(self._name, error.message, code=error.code))
            )

    # ------------------------------------------------------------------ the two tasks

    def _train_once(self) -> None:
        assignment = self._assignment(TaskKind.TRAIN, self._context.base.sha256)
        client = self._prepare(assignment)
        self._post(machine.Advanced(self._name, Stage.SENT), self._task(assignment, "sent"))
        status = self._run(client, assignment)
        result = verified_result(assignment, status)
        self._post(machine.Advanced(self._name, Stage.READY))
        update = self._collect(client, assignment, result)
        task = replace(self._task(assignment, "collected", client, status), metrics={"loss": result.loss})
        self._report("collected", f"{update.examples} examples", client)
        self._finish(client, assignment, Posted(self._name, machine.Collected(self._name), task, update))

    def _evaluate_once(self, candidate: Bundle, *, newborn: bool) -> None:
        assignment = self._assignment(TaskKind.EVALUATE, candidate.sha256)
        client = self._prepare(assignment)
        self._context.session.install(client, candidate, activate=False, newborn=newborn)
        self._post(machine.Advanced(self._name, Stage.SENT), self._task(assignment, "sent"))
        status = self._run(client, assignment)
        result = verified_result(assignment, status)
        if result.base is None or result.candidate is None:
            raise DeviceError("the evaluation came without numbers", subject=self._name, code="result")
        if not (plausible(result.base) and plausible(result.candidate)):
            raise DeviceError("the evaluation's numbers are impossible", subject=self._name, code="result")
        pair = {"base": to_json(result.base), "candidate": to_json(result.candidate)}
        task = replace(self._task(assignment, "collected", client, status), metrics=pair)
        self._report("evaluated", f"{result.candidate.examples} examples", client)
        self._finish(client, assignment, Posted(self._name, machine.Evaluated(self._name), task))

    # ------------------------------------------------------------------ steps

    def _try(self, work: Callable[[], None], deadline: float) -> FedctlError | None:
        """Do `work`, connecting anew after a lost connection, until `deadline`; None when it went well."""
        try:
            retrying(lambda: self._attempt(work), deadline=deadline, sleep=self._wiring.stop.wait)
        except StoppedError:
            return None
        except ConfigError:  # this machine's disk or home: no fault of the device
            raise
        except FedctlError as error:
            return error
        return None

    def _attempt(self, work: Callable[[], None]) -> None:
        stopped = StoppedError("no longer needed", subject=self._name)
        if self._wiring.stop.is_set():
            raise stopped
        try:
            self._with_bundles(work)
        except UnreachableError as error:
            self._context.session.forget(self._name)
            if self._wiring.stop.is_set():
                raise stopped from error
            self._report(WAITING, error.message)
            raise

    def _with_bundles(self, work: Callable[[], None]) -> None:
        """Do `work`, once more where the device lost a bundle that this command had installed there."""
        try:
            work()
        except DeviceError as error:
            if error.code != LOST_MODEL_CODE or not self._context.session.mistrust(self._name):
                raise
            work()

    def _prepare(self, assignment: Assignment) -> AgentClient:
        """A client of the device, which holds the base and has passed its golden batch.

        A device without the base is asked first whether it would do what it is to be given next.
        """
        base = self._context.base
        client = self._context.session.client(self._device)
        self._traffic = (client.traffic.bytes_up, client.traffic.bytes_down)
        self._context.session.install(client, base, activate=True, offer=lambda: offer(client, assignment))
        graph = base.manifest.files[GRAPH_FILE].sha256
        if (self._name, graph) not in self._context.session.passed_golden:
            self._pass_golden(client, base, graph)
        return client

    def _pass_golden(self, client: AgentClient, base: Bundle, graph: str) -> None:
        """Have the device run the golden batch, unless this agent passed it before."""
        session = self._context.session
        agent = session.health(self._device).version
        if self._device.facts.get("golden", {}).get(graph, {}).get("agent") != agent:
            round_uuid, plan = self._context.golden
            assignment = Assignment(self._device, TaskKind.GOLDEN, round_uuid, 1, plan, base.sha256)
            task = replace(self._task(assignment, "sent"), round_id=None)
            session.errands.add(task.task_id)
            self._report("checking", "golden batch")
            self._wiring.post(Posted(self._name, task=task))
            result = verified_result(assignment, self._run(client, assignment))
            client.ack(assignment.task_id)
            passed = {"agent": agent, "runtime": result.runtime}
            self._wiring.post(Posted(self._name, task=replace(task, state=RELEASED), golden=passed))
        session.passed_golden.add((self._name, graph))

    def _assignment(self, kind: TaskKind, bundle: str) -> Assignment:
        context = self._context
        return Assignment(
            self._device, kind, context.round.uuid, context.round.attempt, context.envelope, bundle
        )

    def _run(self, client: AgentClient, assignment: Assignment) -> TaskStatus:
        try:
            return self._carry_out(client, assignment)
        except DeviceError as error:
            holder = error.subject
            if error.code != BUSY_CODE or not self._context.session.is_stale(holder):
                raise
        client.cancel(holder)
        return self._carry_out(client, assignment)

    def _carry_out(self, client: AgentClient, assignment: Assignment) -> TaskStatus:
        return carry_out(
            client,
            assignment,
            stop=self._wiring.stop,
            deadline=self._wiring.deadline,
            on_status=self._follow,
        )

    def _follow(self, status: TaskStatus) -> None:
        if status.state is not TaskState.RUNNING:
            return
        if status.kind is TaskKind.TRAIN:
            self._post(machine.Advanced(self._name, Stage.TRAINING))
        progress = status.progress
        detail = f"epoch {progress.epoch} of {progress.epochs}" if progress.epochs else ""
        fraction = progress.epoch / progress.epochs if progress.epochs else None
        word = {TaskKind.TRAIN: "training", TaskKind.EVALUATE: "evaluating"}.get(status.kind, "checking")
        self._wiring.report(DeviceProgress(self._name, word, detail, fraction))

    def _collect(self, client: AgentClient, assignment: Assignment, result: Result) -> UpdateFacts:
        """Receive the update into its file, checked while it arrives."""
        context, manifest = self._context, self._context.base.manifest
        if result.result_bytes is None or result.result_sha256 is None or result.examples < 1:
            raise DeviceError("the result names no update", subject=self._name, code="result")
        cap = context.plan.train.max_examples if context.plan.train else None
        if cap is not None and result.examples > cap:
            message = f"the result claims {result.examples} examples, more than the plan's {cap}"
            raise DeviceError(message, subject=self._name, code="result")
        metadata = update_metadata(
            round_id=context.round.uuid,
            plan=context.envelope.sha256,
            base=context.base.sha256,
            examples=result.examples,
        )
        expected = ExpectedFile(
            self._name, manifest.update_layout(), result.result_sha256, result.result_bytes, metadata
        )
        with UpdateSink(context.update_path(self._name), expected) as sink:
            client.fetch_result(assignment.task_id, sink.write, limit=result.result_bytes)
            received = sink.commit()
        limit = context.plan.rules.max_update_norm if context.plan.rules else None
        if limit is not None and received.norm > limit:
            message = f"the update's norm is {received.norm:.4g}, more than the plan's {limit:.4g}"
            raise DeviceError(message, subject=self._name, code="norm")
        return UpdateFacts(received.sha256, received.norm, result.examples)

    def _finish(self, client: AgentClient, assignment: Assignment, posted: Posted) -> None:
        self._wiring.post(posted).wait()
        with contextlib.suppress(FedctlError):  # the next contact releases what this one could not
            client.ack(assignment.task_id)
            if posted.task is not None:
                self._wiring.post(Posted(self._name, task=replace(posted.task, state=RELEASED)))

    def _post(self, event: machine.Event, task: Task | None = None) -> None:
        self._wiring.post(Posted(self._name, event, task))

    def _report(self, stage: str, detail: str, client: AgentClient | None = None) -> None:
        up = client.traffic.bytes_up - self._traffic[0] if client else 0
        down = client.traffic.bytes_down - self._traffic[1] if client else 0
        self._wiring.report(DeviceProgress(self._name, stage, detail, bytes_up=up, bytes_down=down))

    def _task(
        self,
        assignment: Assignment,
        state: str,
        client: AgentClient | None = None,
        status: TaskStatus | None = None,
    ) -> Task:
        row = Task(
            task_id=assignment.task_id,
            round_id=self._context.round.id,
            device=self._name,
            kind=assignment.kind.value,
            attempt=assignment.attempt,
            state=state,
        )
        if client is None or status is None:
            return row
        return replace(
            row,
            bytes_up=client.traffic.bytes_up - self._traffic[0],
            bytes_down=client.traffic.bytes_down - self._traffic[1],
            cpu_ms=status.usage.cpu_ms,
            wall_ms=status.usage.wall_ms,
            peak_rss_bytes=status.usage.peak_rss_bytes,
        )

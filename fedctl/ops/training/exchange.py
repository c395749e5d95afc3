"""One task on one device: hand it over, follow it, hold its signed result against what was asked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedctl.core.errors import DeviceError, FedctlError, RefusedError, TrustError
from fedctl.core.records import Device
from fedctl_wire.codec import decode
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import Result, TaskKind, TaskRequest, TaskState, TaskStatus, task_id
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope, PayloadType, verify

if TYPE_CHECKING:
    from fedctl.transport import AgentClient

POLL_S = 20.0  # how long a device may hold back an answer while nothing changes


class StoppedError(FedctlError):
    """The round no longer needs this device; nobody reports it."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One task for one device under a signed plan."""

    device: Device
    kind: TaskKind
    round: str  # uuid
    attempt: int
    plan: Envelope
    bundle: str  # manifest sha256

    @property
    def task_id(self) -> str:
        """The task's name, the same however often it is asked for."""
        return task_id(
            round_id=self.round,
            attempt=self.attempt,
            device=self.device.name,
            plan=self.plan.sha256,
            kind=self.kind,
            bundle=self.bundle,
        )

    def request(self) -> TaskRequest:
        """The body of `PUT /v1/tasks/{task_id}`."""
        return TaskRequest(
            task_id=self.task_id,
            attempt=self.attempt,
            device=Name(self.device.name),
            kind=self.kind,
            bundle=self.bundle,
            plan=self.plan.to_json(),
        )


def carry_out(
    client: AgentClient,
    assignment: Assignment,
    *,
    stop: threading.Event,
    deadline: float,
    on_status: Callable[[TaskStatus], None],
) -> TaskStatus:
    """Hand the task over and follow it to its final state; asking again only goes on.

    Args:
        client: Of the assignment's device.
        assignment: What to do.
        stop: Set when nobody needs the result any more.
        deadline: Instant of `time.monotonic` after which nobody waits any more.
        on_status: Told each answer that is not final.

    Raises:
        StoppedError: `stop` was set or the deadline passed meanwhile.
        FedctlError: What the device or the connection said instead.
    """
    status = client.put_task(assignment.request())
    while not status.state.final:
        on_status(status)
        left_s = deadline - time.monotonic()
        if stop.is_set() or left_s <= 0:
            raise StoppedError("no longer needed", subject=assignment.device.name)
        wait_s = min(POLL_S, left_s)
        status = client.task(assignment.task_id, wait_s=wait_s, seen=status.progress.seq)
    return status


def offer(client: AgentClient, assignment: Assignment) -> None:
    """Ask a device that lacks the model whether it would do the task, before the model is sent.

    Raises:
        RefusedError: Its policy does not allow it, or its data do not fit.
        TrustError: It does not believe the plan.
        UnreachableError: The connection was lost.
    """
    with contextlib.suppress(DeviceError):  # it would: all that it misses is the model
        client.put_task(assignment.request())


def verified_result(assignment: Assignment, status: TaskStatus) -> Result:
    """The result of a finished task, signed by the device and about this very task.

    Raises:
        RefusedError: The device's policy refused.
        DeviceError: The task failed or was cancelled.
        TrustError: The signature is not the device's, or the result is about something else.
    """
    name = assignment.device.name
    if status.state is not TaskState.DONE:
        raise _ended_otherwise(name, status)
    try:
        envelope = Envelope.from_json(status.result, what=f"result of {name}")
        payload = verify(
            envelope, PayloadType.RESULT, [assignment.device.identity_key], what=f"result of {name}"
        )
        result = decode(Result, payload, limit=LIMITS.json_body_bytes, what=f"result of {name}")
    except WireError as error:
        raise TrustError(str(error), subject=name, code=error.code) from error
    expected = {
        "task_id": assignment.task_id,
        "round": assignment.round,
        "attempt": assignment.attempt,
        "device": name,
        "kind": assignment.kind,
        "plan": assignment.plan.sha256,
        "bundle": assignment.bundle,
    }
    for field, wanted in expected.items():
        if getattr(result, field) != wanted:
            raise TrustError(
                f"the result of {name} is about another task: {field} differs", subject=name, code="result"
            )
    return result


def _ended_otherwise(name: str, status: TaskStatus) -> FedctlError:
    reason = status.reason
    code = reason.code if reason else status.state.value
    sentence = f"{code}: {reason.message}" if reason else f"the task was {status.state.value}"
    if status.state is TaskState.REFUSED:
        return RefusedError(sentence, subject=name, code=code)
    return DeviceError(sentence, subject=name, code=code)

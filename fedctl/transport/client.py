"""One device's agent as typed calls: what `fedctl.ops` uses, whatever carries the bytes.

Every call has a deadline, every answer a cap; whatever goes wrong is a `FedctlError` that names the
device: `UnreachableError` for faults of the connection (worth another try), `TrustError`, `RefusedError`
for the device's policy, `DeviceError` for everything else it answers. A client belongs to one thread at a
time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fedctl.transport.base import DEFAULT_TIMEOUT_S, Transport
from fedctl_wire.codec import Json
from fedctl_wire.messages import EnrolmentRequest, Health, Identity, ModelInstalled, TaskRequest, TaskStatus
from fedctl_wire.signing import Envelope


@dataclass(slots=True)
class Traffic:
    """Bytes of HTTP so far, headers included, before SSH's own framing."""

    bytes_up: int = 0  # device to workstation
    bytes_down: int = 0  # workstation to device


class AgentClient:
    """Calls one agent; a context manager. Nothing is sent before the first call.

    Attributes:
        device: The device's name.
        traffic: What went over the wire so far.
    """

    def __init__(self, transport: Transport, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.device = transport.device
        self.traffic = Traffic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the connection."""
        raise NotImplementedError

    def health(self) -> Health:
        """Version, clock and boot of the device."""
        raise NotImplementedError

    def identity(self) -> Identity:
        """Who the device is, before and after enrolment."""
        raise NotImplementedError

    def enrol(self, request: EnrolmentRequest) -> Identity:
        """Give the device its identity and pin the root; the same root again changes nothing.

        Raises:
            TrustError: Another root is pinned, or a signature does not verify.
        """
        raise NotImplementedError

    def status(self) -> Json:
        """Resources, slots, current task and policy digest."""
        raise NotImplementedError

    def data(self) -> Json:
        """Counts and schema of the device's sources; never an example."""
        raise NotImplementedError

    def put_roster(self, envelope: Envelope) -> None:
        """Send the signed roster.

        Raises:
            TrustError: Not signed by the pinned root, or older than the one the device holds.
        """
        raise NotImplementedError

    def put_policy(self, envelope: Envelope) -> None:
        """Send the device's signed policy; see `put_roster`."""
        raise NotImplementedError

    def put_model(self, envelope: Envelope, name: str, version: int, *, activate: bool) -> ModelInstalled:
        """Ask the device to install a bundle from its blobs; `missing` says which it still lacks."""
        raise NotImplementedError

    def push_bundle(
        self, directory: Path, *, activate: bool, on_bytes: Callable[[int], None] | None = None
    ) -> ModelInstalled:
        """Install the bundle in `directory`, uploading what the device lacks.

        A cut upload goes on where it stopped when this is called again.

        Args:
            directory: Holds `manifest.dsse` and the files it lists.
            activate: Make it the active version of the model.
            on_bytes: Told the number of bytes of each block that was handed to the connection.

        Raises:
            ConfigError: A file of the bundle cannot be read or is not what the manifest says.
        """
        raise NotImplementedError

    def activate(self, name: str, version: int) -> ModelInstalled:
        """Make an installed version the active one."""
        raise NotImplementedError

    def delete_model(self, name: str, version: int) -> None:
        """Free the slot that holds this version; nothing happens when none does."""
        raise NotImplementedError

    def put_task(self, request: TaskRequest) -> TaskStatus:
        """Hand the device a task; the same one again only answers its status.

        Raises:
            RefusedError: The device's policy does not allow it.
            TrustError: The plan is not signed by an operator of the fleet.
            DeviceError: `busy` with the holder as subject, `conflict`, `duplicate_round`.
        """
        raise NotImplementedError

    def task(self, task_id: str, *, wait_s: float = 0, seen: int = 0) -> TaskStatus:
        """A task's status; a failed or refused task is a status, not an error.

        Args:
            task_id: Its name.
            wait_s: Answer only once it is final, there is progress after `seen`, or so many seconds passed.
            seen: `progress.seq` of the last answer.
        """
        raise NotImplementedError

    def cancel(self, task_id: str) -> TaskStatus:
        """End a task; one that is final stays as it is."""
        raise NotImplementedError

    def ack(self, task_id: str) -> TaskStatus:
        """Say that the result is safe on the workstation, so that the device may free its spool."""
        raise NotImplementedError

    def fetch_result(
        self, task_id: str, write: Callable[[bytes], object], *, offset: int = 0, limit: int
    ) -> str:
        """Stream a task's result into `write`, block by block.

        Args:
            task_id: Its name.
            write: Takes each block; its exceptions come out unchanged.
            offset: Bytes that an earlier, broken call already delivered.
            limit: Most bytes the whole result may have.

        Returns:
            The SHA-256 that the device says the whole result has; the caller compares.

        Raises:
            DeviceError: The result is larger than `limit`, or there is none.
        """
        raise NotImplementedError

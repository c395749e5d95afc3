"""One device's agent as typed calls: what `fedctl.ops` uses, whatever carries the bytes.

Every call has a deadline, every answer a cap; whatever goes wrong is a `FedctlError` that names the
device: `UnreachableError` for faults of the connection (worth another try), `TrustError`, `RefusedError`
for the device's policy, `DeviceError` for everything else it answers. A client belongs to one thread at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from fedctl.core.errors import DeviceError, TrustError
from fedctl.transport.answers import bad_answer, error_of, message_of
from fedctl.transport.base import DEFAULT_TIMEOUT_S, Traffic, Transport
from fedctl.transport.upload import BundleSource, send_blob
from fedctl_wire.codec import Json, encode, parse_bytes
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import (
    DataReport,
    EnrolmentRequest,
    Health,
    Identity,
    ModelInstalled,
    TaskRequest,
    TaskStatus,
)
from fedctl_wire.names import check_sha256
from fedctl_wire.signing import Envelope

if TYPE_CHECKING:
    from fedctl.transport.session import Answer, HttpSession

_CONFLICT = 409
_UNAUTHORIZED = 401
_PARTIAL_CONTENT = 206
_FIRST_ERROR = 300  # a redirect is no answer of an agent either


class AgentClient:
    """Calls one agent; a context manager. Nothing is sent before the first call.

    Attributes:
        device: The device's name.
        traffic: What went over the wire so far.
    """

    def __init__(self, transport: Transport, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.device = transport.device
        self.traffic = Traffic()
        self._transport = transport
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the connection; a later call opens a new one."""
        session = self.__dict__.pop("_session", None)
        if session is not None:
            session.close()

    # ------------------------------------------------------------------ the device itself

    def health(self) -> Health:
        """Version, clock and boot of the device."""
        return message_of(Health, self._call("GET", "/health"), self.device)

    def identity(self) -> Identity:
        """Who the device is, before and after enrolment."""
        return message_of(Identity, self._call("GET", "/identity"), self.device)

    def enrol(self, request: EnrolmentRequest, *, token: str | None = None) -> Identity:
        """Give the device its identity and pin the root; the same root again changes nothing.

        Args:
            request: What the root signed.
            token: HTTPS: the secret that the device asks of whoever enrols it first.

        Raises:
            TrustError: Another root is pinned, a signature does not verify, or the token is none.
        """
        bearer = {"Authorization": f"Bearer {token}"} if token else None
        answer = self._exchange("PUT", "/enrolment", body=encode(request), headers=bearer)
        if answer.status in {_CONFLICT, _UNAUTHORIZED}:
            told = error_of(answer, self.device)
            raise TrustError(told.message, hint=told.hint, subject=told.subject, code=told.code)
        return message_of(Identity, self._good(answer), self.device)

    def put_roster(self, envelope: Envelope) -> None:
        """Send the signed roster.

        Raises:
            TrustError: Not signed by the pinned root, or older than the one the device holds.
        """
        self._call("PUT", "/roster", body=envelope.to_bytes())

    def status(self) -> dict[str, Json]:
        """Resources, limits, slots, task and policy, as the device words them."""
        answer = self._call("GET", "/status")
        try:
            told = parse_bytes(answer.body, limit=LIMITS.json_body_bytes, what="status")
        except WireError as error:
            raise bad_answer(self.device, error) from error
        if not isinstance(told, dict):
            raise bad_answer(self.device, "its status is no object")
        return told

    def data(self, *, timeout_s: float) -> DataReport:
        """What the device's sources would be to a model; counted anew where they changed.

        Raises:
            UnreachableError: Also when it takes longer than `timeout_s`.
        """
        answer = self._exchange("GET", "/data", timeout_s=timeout_s)
        return message_of(DataReport, self._good(answer), self.device)

    # ------------------------------------------------------------------ models

    def put_model(self, envelope: Envelope, name: str, version: int, *, activate: bool) -> ModelInstalled:
        """Ask the device to install a bundle from its blobs; `missing` says which it still lacks."""
        path = f"{_model_path(name, version)}?activate={int(activate)}"
        answer = self._exchange("PUT", path, body=envelope.to_bytes())
        if answer.status == _CONFLICT:
            try:
                return message_of(ModelInstalled, answer, self.device)
            except DeviceError:
                raise error_of(answer, self.device) from None  # a conflict of another kind
        return message_of(ModelInstalled, self._good(answer), self.device)

    def push_bundle(
        self,
        directory: Path,
        *,
        activate: bool,
        unseen: Collection[str] = (),
        before_upload: Callable[[], object] | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> ModelInstalled:
        """Install the bundle in `directory`, uploading what the device lacks.

        A cut upload goes on where it stopped when this is called again.

        Args:
            directory: Holds `manifest.dsse` and the files it lists.
            activate: Make it the active version of the model.
            unseen: Hashes of files that the device cannot have: they are sent without asking first.
            before_upload: Called once when the device lacks files that it has to be sent, which what
                this raises prevents: the place to ask whether it wants the model at all.
            on_bytes: Told the number of bytes of each block that was handed to the connection.

        Raises:
            ConfigError: A file of the bundle cannot be read or is not what the manifest says.
        """
        source = BundleSource.open(directory)
        name, version = str(source.manifest.model), source.manifest.model_version
        for sha256 in unseen:
            block = source.file_of(sha256, self.device)
            send_blob(self._exchange, self.device, block, 0, self._timeout_s, on_bytes)
        installed = self.put_model(source.envelope, name, version, activate=activate)
        if not installed.missing:
            return installed
        if before_upload is not None:
            before_upload()
        for blob in installed.missing:
            block = source.file_of(blob.sha256, self.device)
            send_blob(self._exchange, self.device, block, blob.offset, self._timeout_s, on_bytes)
        installed = self.put_model(source.envelope, name, version, activate=activate)
        if installed.missing:
            raise bad_answer(self.device, f"it still lacks {len(installed.missing)} files it was just sent")
        return installed

    # ------------------------------------------------------------------ tasks

    def put_task(self, request: TaskRequest) -> TaskStatus:
        """Hand the device a task; the same one again only answers its status.

        Raises:
            RefusedError: The device's policy does not allow it.
            TrustError: The plan is not signed by an operator of the fleet.
            DeviceError: `busy` with the holder as subject, `conflict`, `duplicate_round`.
        """
        answer = self._call("PUT", _task_path(request.task_id), body=encode(request))
        return message_of(TaskStatus, answer, self.device)

    def task(self, task_id: str, *, wait_s: float = 0, seen: int = 0) -> TaskStatus:
        """A task's status; a failed or refused task is a status, not an error.

        Args:
            task_id: Its name.
            wait_s: Answer only once it is final, there is progress after `seen`, or so many seconds passed.
            seen: `progress.seq` of the last answer.
        """
        path = f"{_task_path(task_id)}?wait={wait_s:g}&seen={seen}"
        answer = self._good(self._exchange("GET", path, timeout_s=wait_s + self._timeout_s))
        return message_of(TaskStatus, answer, self.device)

    def cancel(self, task_id: str) -> TaskStatus:
        """End a task; one that is final stays as it is."""
        return message_of(TaskStatus, self._call("DELETE", _task_path(task_id)), self.device)

    def ack(self, task_id: str) -> TaskStatus:
        """Say that the result is safe on the workstation, so that the device may free its spool."""
        return message_of(TaskStatus, self._call("POST", f"{_task_path(task_id)}/ack"), self.device)

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
        ranged = {"Range": f"bytes={offset}-"} if offset else {}
        with self._session.stream(
            f"/v1{_task_path(task_id)}/result",
            timeout_s=self._timeout_s,
            limit=max(limit - offset, 0),
            headers=ranged,
        ) as (answer, blocks):
            self._good(answer)
            if offset and not _starts_at(answer, offset):
                raise bad_answer(self.device, f"it was asked for the result from byte {offset} on")
            sha256 = self._etag(answer)
            for block in blocks:
                write(block)
            return sha256

    # ------------------------------------------------------------------ the HTTP below

    @cached_property
    def _session(self) -> HttpSession:
        from fedctl.transport.session import HttpSession

        return HttpSession(self._transport, self.traffic)

    def _exchange(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        return self._session.request(
            method,
            f"/v1{path}",
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
            body=body,
            headers=headers,
        )

    def _call(self, method: str, path: str, *, body: bytes | None = None) -> Answer:
        return self._good(self._exchange(method, path, body=body))

    def _good(self, answer: Answer) -> Answer:
        if answer.status >= _FIRST_ERROR:
            raise error_of(answer, self.device)
        return answer

    def _etag(self, answer: Answer) -> str:
        try:
            return check_sha256(answer.headers.get("etag", "").strip('"'), what="ETag")
        except WireError as error:
            raise bad_answer(self.device, error) from error


def _model_path(name: str, version: int) -> str:
    return f"/models/{quote(name, safe='')}/{version}"


def _task_path(task_id: str) -> str:
    return f"/tasks/{quote(task_id, safe='')}"


def _starts_at(answer: Answer, offset: int) -> bool:
    given = answer.headers.get("content-range", "")
    return answer.status == _PARTIAL_CONTENT and given.startswith(f"bytes {offset}-")

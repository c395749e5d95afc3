"""A small agent in this process: the HTTP API at any place, without workers or signatures.

`FakeAgent` answers as a real one would and records what it was asked. `RawPeer` hands each connection to
a function, for everything that no agent would do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import socketserver
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import parse_qs, urlsplit

from fedctl_wire.codec import decode, encode
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import Manifest
from fedctl_wire.messages import (
    DataReport,
    EnrolmentRequest,
    ErrorBody,
    Health,
    Identity,
    MissingBlob,
    ModelInstalled,
    SourceReport,
    TaskRequest,
    TaskState,
    TaskStatus,
)
from fedctl_wire.signing import Envelope

Answer = tuple[int, dict[str, str], bytes]
Work = Callable[[TaskRequest], tuple[TaskStatus, bytes]]


class Place(Protocol):
    """Where somebody listens; a path in place of one stands for a Unix socket."""

    def listen(self) -> socket.socket:
        """Listen."""

    def secure(self, link: socket.socket) -> socket.socket:
        """Whatever comes before the first byte of HTTP, in the connection's own thread."""

    def remove(self) -> None:
        """Take away what `listen` left."""


class UnixPlace:
    """A Unix socket that every user may open."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """How errors call it."""
        return str(self.path)

    def listen(self) -> socket.socket:
        """See `Place`."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.bind(str(self.path))
        self.path.chmod(0o666)  # the bed's SSH user opens it too
        link.listen(128)
        return link

    def secure(self, link: socket.socket) -> socket.socket:
        """See `Place`."""
        return link

    def remove(self) -> None:
        """See `Place`."""
        self.path.unlink(missing_ok=True)


def done_at_once(request: TaskRequest) -> tuple[TaskStatus, bytes]:
    """The default work: finished before the answer, with an empty result."""
    round_id = json.loads(Envelope.from_json(request.plan).payload)["round"]
    return TaskStatus(request.task_id, request.kind, round_id, TaskState.DONE, runs=1), b""


class FakeAgent:
    """Serves one place while its context is open; every attribute may be read and set by a test.

    Attributes:
        requests: (method, path with query) of each request, in order.
        work: Turns a new task into its status and result bytes.
        answers: Path below /v1 (without query) -> the answer to give instead of the real one.
        refuse_unread: The same, given without reading the request's body; then the connection is closed.
        cut_after: Close the connection once an upload brought so many bytes, and keep them; once.
    """

    def __init__(self, place: Place | Path, *, device: str = "watch-1", work: Work = done_at_once) -> None:
        self.place = UnixPlace(place) if isinstance(place, Path) else place
        self.health = Health("0.1.0", "1970-01-01T00:00:07Z", "boot-1", device=device)
        self.identity = Identity("ab" * 32, enrolled=False)
        self.data = DataReport("1970-01-01T00:00:07Z", 20, (SourceReport("recorder", "csv", ("hr",)),))
        self.work = work
        self.requests: list[tuple[str, str]] = []
        self.blobs: dict[str, bytearray] = {}
        self.models: dict[tuple[str, int], ModelInstalled] = {}
        self.tasks: dict[str, TaskStatus] = {}
        self.results: dict[str, bytes] = {}
        self.received: dict[str, bytes] = {}  # bodies of roster and policy
        self.authorizations: list[str] = []  # the header's values, as they came
        self.answers: dict[str, Answer] = {}
        self.refuse_unread: dict[str, Answer] = {}
        self.cut_after: int | None = None
        self._server = _Server(self)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    @property
    def socket_path(self) -> Path:
        """Of one that listens at a Unix socket."""
        assert isinstance(self.place, UnixPlace)
        return self.place.path

    def answer(self, handler: _Handler, method: str, path: str, query: dict[str, list[str]]) -> Answer:
        """What to say to one request."""
        if path in self.refuse_unread:
            handler.close_connection = True
            return self.refuse_unread[path]
        if path in self.answers:
            handler.body()
            return self.answers[path]
        match [method, *path.strip("/").split("/")]:
            case [("HEAD" | "PATCH"), "blobs", sha256]:
                return self._blob(handler, method, sha256, query)
            case [_, "models", name, version, *rest]:
                return self._model(handler, method, name, int(version), rest, query)
            case [_, "tasks", task_id, *rest]:
                return self._task(handler, method, task_id, rest)
            case [_, what]:
                return self._device(method, what, handler.body())
        return error(404, "unknown_route", f"there is no {path}")

    def _device(self, method: str, what: str, body: bytes) -> Answer:
        match method, what:
            case "GET", "health":
                return _ok(self.health)
            case "GET", "data":
                return _ok(self.data)
            case "GET", "identity":
                return _ok(self.identity)
            case "GET", ("status" | "data"):
                return 200, {}, json.dumps({what: "fine"}).encode()
            case "PUT", "enrolment":
                return self._enrol(body)
            case "PUT", ("roster" | "policy"):
                self.received[what] = body
                return 200, {}, b"{}"
        return error(404, "unknown_route", f"there is no {method} {what}")

    def _enrol(self, body: bytes) -> Answer:
        request = decode(EnrolmentRequest, body, limit=LIMITS.json_body_bytes)
        if self.identity.root_key not in {None, request.root_key}:
            return error(409, "other_root", "another root is pinned")
        self.identity = replace(self.identity, enrolled=True, root_key=request.root_key)
        return _ok(self.identity)

    def _blob(self, handler: _Handler, method: str, sha256: str, query: dict[str, list[str]]) -> Answer:
        blob = self.blobs.setdefault(sha256, bytearray())
        where = {"Upload-Offset": str(len(blob))}
        if method == "HEAD":
            return 200, where, b""
        if int(handler.headers["Upload-Offset"]) != len(blob):
            handler.body()
            status, _, body = error(409, "offset", "the upload goes on elsewhere")
            return status, where, body
        while block := handler.block(1024):
            blob += block
            if self.cut_after is not None and len(blob) >= self.cut_after:
                self.cut_after = None
                raise ConnectionAbortedError
        if len(blob) == int(query["bytes"][0]) and hashlib.sha256(blob).hexdigest() != sha256:
            del self.blobs[sha256]
            return error(422, "hash", "the blob has another hash")
        return 200, {"Upload-Offset": str(len(blob))}, b"{}"

    def _model(
        self,
        handler: _Handler,
        method: str,
        name: str,
        version: int,
        rest: list[str],
        query: dict[str, list[str]],
    ) -> Answer:
        key = (name, version)
        if method == "DELETE":
            self.models.pop(key, None)
            return 200, {}, b"{}"
        if rest == ["activate"]:
            if key not in self.models:
                return error(404, "unknown_model", f"{name}@{version} is not installed")
            self.models[key] = replace(self.models[key], active=True)
            return _ok(self.models[key])
        envelope = Envelope.from_bytes(handler.body())
        missing = self._missing(Manifest.from_bytes(envelope.payload))
        installed = ModelInstalled(name, version, envelope.sha256, missing=missing)
        if missing:
            return 409, {}, encode(installed)
        self.models[key] = replace(installed, slot="A", active=query["activate"] == ["1"])
        return _ok(self.models[key])

    def _missing(self, manifest: Manifest) -> tuple[MissingBlob, ...]:
        held = {sha256: len(blob) for sha256, blob in self.blobs.items()}
        files = manifest.files.values()
        return tuple(
            MissingBlob(f.sha256, f.bytes, held.get(f.sha256, 0))
            for f in files
            if held.get(f.sha256) != f.bytes
        )

    def _task(self, handler: _Handler, method: str, task_id: str, rest: list[str]) -> Answer:
        if method == "PUT":
            request = decode(TaskRequest, handler.body(), limit=LIMITS.json_body_bytes)
            status = 200 if task_id in self.tasks else 201
            if status == 201:
                self.tasks[task_id], self.results[task_id] = self.work(request)
            return status, {}, encode(self.tasks[task_id])
        if task_id not in self.tasks:
            return error(404, "unknown_task", f"there is no task {task_id}")
        if rest == ["result"]:
            return self._result(handler, self.results[task_id])
        if rest == ["ack"]:
            self.tasks[task_id] = replace(self.tasks[task_id], acked=True)
        if method == "DELETE" and not self.tasks[task_id].state.final:
            self.tasks[task_id] = replace(self.tasks[task_id], state=TaskState.CANCELLED)
        return _ok(self.tasks[task_id])

    @staticmethod
    def _result(handler: _Handler, result: bytes) -> Answer:
        headers = {"ETag": f'"{hashlib.sha256(result).hexdigest()}"'}
        ranged = handler.headers.get("Range")
        if ranged is None:
            return 200, headers, result
        begin = int(ranged.removeprefix("bytes=").removesuffix("-"))
        headers["Content-Range"] = f"bytes {begin}-{len(result) - 1}/{len(result)}"
        return 206, headers, result[begin:]


def error(status: int, code: str, message: str, **more: str) -> Answer:
    """An error answer with its body."""
    return status, {}, encode(ErrorBody(code, message, **more))


def _ok(message: object) -> Answer:
    return 200, {}, encode(message)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def body(self) -> bytes:
        """The rest of the request's body."""
        parts = iter(lambda: self.block(65536), b"")
        return b"".join(parts)

    def block(self, size: int) -> bytes:
        """The next bytes of the request's body."""
        block = self.rfile.read(min(size, self._left))
        self._left -= len(block)
        return block

    def _serve(self) -> None:
        self._left = int(self.headers.get("Content-Length", 0))
        agent = self.server.agent
        if "Authorization" in self.headers:
            agent.authorizations.append(self.headers["Authorization"])
        agent.requests.append((self.command, self.path.removeprefix("/v1")))
        parts = urlsplit(self.path.removeprefix("/v1"))
        try:
            status, headers, body = agent.answer(self, self.command, parts.path, parse_qs(parts.query))
        except ConnectionAbortedError:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    do_GET = do_PUT = do_POST = do_PATCH = do_HEAD = do_DELETE = _serve  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Nothing: a test's output is its own."""


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True

    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent
        self._open: set[socket.socket] = set()
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = agent.place.listen()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        for link in list(self._open):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self.server_close()  # joins nothing: the handler threads are daemons and their sockets are shut
        self.agent.place.remove()

    def get_request(self) -> tuple[socket.socket, Any]:
        link, _ = super().get_request()
        self._open.add(link)
        return link, ("local", 0)

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self.agent.place.secure(request) as link:
            self._open.add(link)
            try:
                super().finish_request(link, client_address)
            finally:
                self._open.discard(link)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hung up is no error of the agent's."""


class RawPeer:
    """Gives each connection to `serve` in a thread, and closes it when `serve` returns."""

    def __init__(self, place: Place | Path, serve: Callable[[socket.socket], object]) -> None:
        self._place = UnixPlace(place) if isinstance(place, Path) else place
        self.accepted = 0
        self.closing = threading.Event()  # set at the end: a `serve` that hangs waits for it
        self._serve = serve
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._listener = self._place.listen()
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        for thread in self._threads:
            thread.join()
        self._place.remove()

    def _start(self, target: Callable[..., object], *args: object) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._start(self._one, link)

    def _one(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError), self._place.secure(link) as secured:
            self._serve(secured)


def read_request(link: socket.socket) -> bytes:
    """One request without a body, up to its empty line."""
    data = b""
    while b"\r\n\r\n" not in data:
        block = link.recv(65536)
        if not block:
            break
        data += block
    return data

"""HTTP with one agent over whatever streams a transport opens; the only module that imports httpx.

Promises: a total deadline for each call, however slowly bytes drip; a cap on each answer; no proxy,
redirect, cookie or compression; every fault as a `FedctlError` that names the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from fedctl.core.errors import DeviceError, FedctlError, UnreachableError
from fedctl.transport.base import MAX_STREAMS, Stream, Traffic, Transport, remaining_s, transfer_timeout_s
from fedctl_wire.limits import LIMITS

_BASE_URL = "http://agent"  # the stream decides who answers; HTTP/1.1 only wants a Host
_IDENTITY = {"Accept-Encoding": "identity"}  # no decompression, hence no bomb


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer; `headers` has lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpSession:
    """One device's HTTP conversation; connections are reused and reopened when they have gone stale."""

    def __init__(self, transport: Transport, traffic: Traffic) -> None:
        self._transport = transport
        self._clock = Deadline()
        self._backend = _Backend(transport, self._clock, traffic)
        self._client = httpx.Client(
            transport=_PoolTransport(self._backend),
            base_url=_BASE_URL,
            trust_env=False,
            timeout=None,  # noqa: S113 - the streams keep the deadline of the whole call
            headers=_IDENTITY,
        )

    def close(self) -> None:
        """Give up every connection."""
        self._client.close()
        self._transport.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One call with a small answer.

        Raises:
            UnreachableError: The connection failed, broke or stalled.
            DeviceError: `bad_answer`, when the answer has more than `LIMITS.json_body_bytes`.
        """
        limit = LIMITS.json_body_bytes
        with self._opened(method, path, timeout_s, body, headers) as response:
            parts = list(self._blocks(response, limit))
            return Answer(response.status_code, dict(response.headers), b"".join(parts))

    @contextmanager
    def stream(
        self, path: str, *, timeout_s: float, limit: int, headers: Mapping[str, str] | None = None
    ) -> Iterator[tuple[Answer, Iterator[bytes]]]:
        """A GET whose body, at most `limit` bytes, is read by the caller block by block.

        The deadline grows with the announced size. An error answer comes complete, with no blocks.
        """
        with self._opened("GET", path, timeout_s, None, headers) as response:
            head = dict(response.headers)
            if response.is_error:
                body = b"".join(self._blocks(response, LIMITS.json_body_bytes))
                yield Answer(response.status_code, head, body), iter(())
                return
            size = head.get("content-length", "")
            announced = int(size) if size.isascii() and size.isdigit() else 0
            self._clock.start(transfer_timeout_s(timeout_s, min(announced, limit)))
            yield Answer(response.status_code, head, b""), self._blocks(response, limit)

    @contextmanager
    def _opened(
        self,
        method: str,
        path: str,
        timeout_s: float,
        body: bytes | Iterable[bytes] | None,
        headers: Mapping[str, str] | None,
    ) -> Iterator[httpx.Response]:
        self._clock.start(timeout_s)
        request = self._client.build_request(method, path, content=body, headers=headers)
        with self._naming_faults():
            response = self._send(request, again=body is None or isinstance(body, bytes))
        try:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise self._bad_answer("answered with a compressed body, which was not asked for")
            yield response
        finally:
            response.close()

    def _send(self, request: httpx.Request, *, again: bool) -> httpx.Response:
        """Send, and once more when a kept connection turns out to be closed: every call is idempotent."""
        dialled = self._backend.dialled
        try:
            return self._client.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.NetworkError):
            if not again or self._backend.dialled != dialled:
                raise
            return self._client.send(request, stream=True)

    def _blocks(self, response: httpx.Response, limit: int) -> Iterator[bytes]:
        """The body; only faults of the connection are translated, never the consumer's own."""
        received = 0
        blocks = response.iter_raw()
        while True:
            with self._naming_faults():
                block = next(blocks, None)
            if block is None:
                return
            received += len(block)
            if received > limit:
                raise self._bad_answer(f"answered with more than {limit} bytes")
            yield block

    def _bad_answer(self, what: str) -> DeviceError:
        device = self._transport.device
        return DeviceError(f"device {device} {what}", subject=device, code="bad_answer")

    @contextmanager
    def _naming_faults(self) -> Iterator[None]:
        device = self._transport.device
        try:
            yield
        except FedctlError:
            raise
        except httpx.TimeoutException as error:
            raise UnreachableError(
                f"device {device} did not answer within {self._clock.allowed_s:.0f} s", subject=device
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise UnreachableError(
                f"device {device} hung up or sent no valid HTTP: {str(error) or type(error).__name__}",
                subject=device,
            ) from error


class Deadline:
    """The instant at which the call under way must be over."""

    def __init__(self) -> None:
        self.allowed_s = 0.0
        self.instant = 0.0  # of time.monotonic()

    def start(self, allowed_s: float) -> None:
        """Give the call `allowed_s` seconds from now."""
        self.allowed_s = allowed_s
        self.instant = time.monotonic() + allowed_s

    def remaining_s(self) -> float:
        """Seconds left.

        Raises:
            TimeoutError: When there are none.
        """
        return remaining_s(self.instant)


class _PoolTransport(httpx.BaseTransport):
    """httpx over an httpcore pool with our backend; httpx itself has no public way to pass one."""

    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._pool = httpcore.ConnectionPool(
            max_connections=MAX_STREAMS, keepalive_expiry=None, network_backend=backend
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        inner = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=_iterable(request.stream),
            extensions=request.extensions,
        )
        with _as_httpx():
            answer = self._pool.handle_request(inner)
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_Body(answer), extensions=answer.extensions
        )

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx():
            yield from self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


def _iterable(stream: object) -> Iterable[bytes]:
    if not isinstance(stream, httpx.SyncByteStream):
        raise TypeError("an asynchronous body in a synchronous client")
    return stream


@contextmanager
def _as_httpx() -> Iterator[None]:
    """Translate httpcore's exceptions, as a `BaseTransport` must raise httpx's."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise httpx.TimeoutException(str(error)) from error
    except httpcore.NetworkError as error:
        raise httpx.NetworkError(str(error)) from error
    except httpcore.LocalProtocolError as error:
        raise httpx.LocalProtocolError(str(error)) from error
    except httpcore.ProtocolError as error:
        raise httpx.RemoteProtocolError(str(error)) from error


class _Backend(httpcore.NetworkBackend):
    """Every connection that httpcore asks for is a stream of the transport."""

    def __init__(self, transport: Transport, clock: Deadline, traffic: Traffic) -> None:
        self._transport = transport
        self._clock = clock
        self._traffic = traffic
        self.dialled = 0  # streams opened so far

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - the stream's other end is fixed
        port: int,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        self.dialled += 1
        stream = self._transport.dial(deadline=self._clock.instant)
        return _NetworkStream(stream, self._clock, self._traffic)


class _NetworkStream(httpcore.NetworkStream):
    def __init__(self, stream: Stream, clock: Deadline, traffic: Traffic) -> None:
        self._stream = stream
        self._clock = clock
        self._traffic = traffic

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        try:
            data = self._stream.recv(max_bytes, self._clock.remaining_s())
        except TimeoutError as error:
            raise httpcore.ReadTimeout from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error
        self._traffic.bytes_up += len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        if not buffer:
            return
        try:
            self._stream.send(buffer, self._clock.remaining_s())
        except TimeoutError as error:
            raise httpcore.WriteTimeout from error
        except OSError as error:  # httpcore then reads the answer that may have come early
            raise httpcore.WriteError(str(error)) from error
        self._traffic.bytes_down += len(buffer)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.stale() if info == "is_readable" else None

"""HTTP over a Unix socket for tests, by the standard library, so that nothing of ours is on both ends."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedctl_agent.daemon.listener import socket_address


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code, or "" for an answer that is none."""
        return str(self.json["code"]) if self.status >= 400 else ""


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float = 20.0) -> None:
        super().__init__("agent", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = open_socket(self._path, timeout=self.timeout or 20.0)


def open_socket(path: Path, *, timeout: float = 20.0) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    try:
        with socket_address(path) as address:
            sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


class Client:
    """One request a connection unless `connection` is used directly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = UnixConnection(self.path)
        try:
            connection.request(method, f"/v1{path}", body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

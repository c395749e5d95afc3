"""The agent's own log: JSON lines in the state directory, capped, read back by `GET /v1/logs`.

It notes what changed on the device (starts, enrolments, models, tasks, faults) and never a request
that only looked, so that an idle or watched agent does not wear the flash. No line holds data of the
person who wears the device.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from fedctl_agent.state import PRIVATE_FILE
from fedctl_wire.codec import Json, dump_bytes
from fedctl_wire.limits import KIB

PRIORITIES = ("error", "warning", "info")
_FILE_BYTES = 512 * KIB  # then it becomes `.1`, replacing an older one
_FOLLOW_S = 1.0  # how often somebody who follows is served; nobody else causes a wake-up


def utc_now() -> str:
    """The wall clock as RFC 3339 in UTC with seconds; a device that just booted may say 1970."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class AgentLog:
    """Appends to the log and reads it. Thread-safe. A full disk loses lines, never the agent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._older = path.with_name(path.name + ".1")
        self._lock = threading.Lock()

    def write(self, priority: str, message: str, **fields: Json) -> None:
        """Append a line with the time, one of `PRIORITIES`, a sentence and further fields."""
        line = {"time": utc_now(), "priority": priority, "unit": "fedctl-agent", "message": message, **fields}
        with self._lock, contextlib.suppress(OSError):
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_size > _FILE_BYTES:
                    self._path.replace(self._older)
            descriptor = os.open(
                self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE_FILE
            )
            try:
                os.write(descriptor, dump_bytes(line) + b"\n")
            finally:
                os.close(descriptor)

    def lines(
        self, *, since: str = "", priority: str = "info", gone: Callable[[float], bool] | None = None
    ) -> Iterator[bytes]:
        """Lines at least as urgent as `priority` and not older than `since` (RFC 3339, UTC).

        With `gone` it goes on with what is added until `gone(seconds)` says that the reader left.
        """
        marks = tuple(
            f'"priority":"{word}"'.encode() for word in PRIORITIES[: PRIORITIES.index(priority) + 1]
        )
        for line in self._all_lines(gone):
            if any(mark in line for mark in marks) and _time_of(line) >= since:
                yield line

    def _all_lines(self, gone: Callable[[float], bool] | None) -> Iterator[bytes]:
        with contextlib.suppress(FileNotFoundError), self._older.open("rb") as stream:
            yield from stream
        while True:
            with self._open_current() as stream:
                yield from stream
                if gone is None:
                    return
                while not self._replaced(stream):
                    if gone(_FOLLOW_S):
                        return
                    yield from stream

    def _open_current(self) -> BinaryIO:
        return os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE), "rb")

    def _replaced(self, stream: BinaryIO) -> bool:
        try:
            return self._path.stat().st_ino != os.fstat(stream.fileno()).st_ino
        except FileNotFoundError:
            return False


def _time_of(line: bytes) -> str:
    with contextlib.suppress(ValueError):
        return str(json.loads(line).get("time", ""))
    return ""

"""What the daemon notes about one task: an append-only file of a few words, each line a fact.

`run` for each start of its job, `usage JSON` for what the runs cost so far, `cancelled`, and `acked N`.
A line counts once it is whole. Each is written with a `?` and a line's end before it, so that one which a
crash or a full disk cut short becomes a line that says nothing.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

from fedctl_agent.state import PRIVATE_FILE, write_all
from fedctl_wire.codec import decode, encode
from fedctl_wire.errors import WireError
from fedctl_wire.limits import KIB
from fedctl_wire.messages import Usage

MARKS_FILE = "marks"
_LIMIT = 16 * KIB  # a task has a handful of lines


@dataclass(slots=True)
class Marks:
    """The facts noted so far in the file at `path`, which may be moved under it."""

    path: str
    runs: int = 0  # how often the job was started
    usage: Usage = field(default_factory=Usage)  # of all runs
    cancelled: bool = False
    acked: int | None = None  # the place of its acknowledgement among all; clocks are not to be trusted here

    @classmethod
    def read(cls, path: str) -> Marks:
        """What the file says; without a file nothing was noted."""
        marks = cls(path)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                lines = os.pread(descriptor, _LIMIT, 0).split(b"\n")[:-1]
            finally:
                os.close(descriptor)
            for line in lines:
                marks._take(line)
        return marks

    @staticmethod
    def make(path: str) -> None:
        """Make the empty file, so that no later mark has a name to make durable."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE))

    def count_run(self) -> None:
        """Note durably that one more run begins."""
        self._append(b"run")

    def add_usage(self, usage: Usage) -> None:
        """Note what the runs cost; not synced, for its loss costs a figure."""
        self._append(b"usage " + encode(usage), sync=False)

    def cancel(self) -> None:
        """Note durably that it was cancelled."""
        self._append(b"cancelled")

    def ack(self, number: int) -> None:
        """Note durably that the workstation has the result."""
        self._append(b"acked %d" % number)

    def _append(self, line: bytes, *, sync: bool = True) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            write_all(descriptor, b"?\n" + line + b"\n")
            self._take(line)  # whatever fails now, the file says it
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _take(self, line: bytes) -> None:
        word, _, rest = line.partition(b" ")
        with contextlib.suppress(ValueError, WireError):  # a line cut short
            if word == b"run":
                self.runs += 1
            elif word == b"usage":
                self.usage = decode(Usage, rest, limit=_LIMIT)
            elif word == b"cancelled":
                self.cancelled = True
            elif word == b"acked":
                self.acked = int(rest)

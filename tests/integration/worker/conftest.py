"""A worker process, with the test in the daemon's place at the other end of the socketpair."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker.signed_fleet import SignedFleet, new_fleet

STAND_IN = Path(__file__).with_name("stand_in.py")
_ROOT = Path(__file__).parents[3]


class WorkerProcess:
    """The daemon's side: requests, answers and events in the order in which they come."""

    def __init__(self, state_dir: Path, behaviour: str | None, *, idle_s: float = 60.0) -> None:
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(30)
        program = ["-m", "fedctl_agent.worker"] if behaviour is None else [str(STAND_IN), behaviour]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, *program, "--state-dir", str(state_dir), "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"FEDCTL_WORKER_IDLE_S": str(idle_s), "PYTHONPATH": str(_ROOT)},
                stderr=subprocess.PIPE,
            )
        self._lines = self.channel.makefile("rb")
        self._ids = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        self.stderr = ""

    def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        request = {"id": next(self._ids), "verb": verb, **fields}
        self.channel.sendall(json.dumps(request).encode() + b"\n")
        while "event" in (answer := self.read()):
            self.events.append(answer)
        assert answer.pop("id") == request["id"]
        return answer

    def run(self, task_dir: Path) -> dict[str, Any]:
        """Run a task to its end and return the event."""
        answer = self.ask("run", task=task_dir.name)
        assert answer["ok"] is True, answer
        return self.ended()

    def ended(self) -> dict[str, Any]:
        return self.events.pop(0) if self.events else self.read()

    def read(self) -> dict[str, Any]:
        line = self._lines.readline()
        assert line, "the worker closed the socket"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def at_end(self) -> bool:
        return self._lines.readline() == b""

    def close(self) -> None:
        """Hang up as a dying daemon does."""
        self._lines.close()
        self.channel.close()

    def finish(self) -> int:
        """Hang up, and return the worker's exit code."""
        self.close()
        if self.process.returncode is None:
            self.stderr = self.process.communicate(timeout=30)[1].decode()
        return self.process.returncode


@pytest.fixture
def fleet(tmp_path: Path) -> SignedFleet:
    fleet = new_fleet(tmp_path / "state")
    fleet.enrol()
    return fleet


StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def start(fleet: SignedFleet) -> Iterator[StartWorker]:
    """Start a worker with a trainer of `stand_in.py`, or the real one for None."""
    with ExitStack() as stack:

        def starter(behaviour: str | None = "train", *, idle_s: float = 60.0) -> WorkerProcess:
            worker = WorkerProcess(fleet.state.path, behaviour, idle_s=idle_s)
            stack.callback(worker.finish)
            return worker

        yield starter

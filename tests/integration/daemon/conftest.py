"""Daemons as processes of their own, ended by their process ids."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.fakes import daemon_program
from tests.fakes.daemon_bed import Bed

ROOT = Path(__file__).parents[3]


class DaemonProcess:
    def __init__(self, command: Sequence[str], bed: Bed) -> None:
        self.bed = bed
        environment = {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "2"}  # the latter as in the units
        self.process = subprocess.Popen(command, env=os.environ | environment)
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self.process.poll() is None, "the daemon ended"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.bed.client("GET", "/health").status == 200
        return False


StartDaemon = Callable[..., DaemonProcess]


@pytest.fixture
def process_bed(tmp_path: Path) -> Bed:
    bed = Bed(tmp_path / "state")
    bed.fleet.enrol()
    return bed


@pytest.fixture
def start_daemon() -> Iterator[StartDaemon]:
    """Start `serve` on a bed's state directory with the fake worker; options of `daemon_program`."""
    started: list[DaemonProcess] = []

    def start(bed: Bed, **options: int) -> DaemonProcess:
        words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        daemon = DaemonProcess([sys.executable, daemon_program.__file__, str(bed.state.path), *words], bed)
        started.append(daemon)
        return daemon

    yield start
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.stop()

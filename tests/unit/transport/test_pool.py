"""Sweeping many devices, retrying one, keeping connections."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from fedctl.core.errors import DeviceError, FedctlError, UnreachableError
from fedctl.transport import retrying, sweep


def test_sweep_yields_every_item_with_its_result_or_error() -> None:
    def work(item: int) -> int:
        if item % 3 == 0:
            raise DeviceError(f"device {item}")
        return item * 10

    outcomes = dict(sweep(range(100), work, parallel=7))
    assert len(outcomes) == 100
    assert outcomes[50] == 500
    assert isinstance(outcomes[99], DeviceError)


def test_sweep_yields_the_fast_ones_first() -> None:
    release = threading.Event()

    def work(item: str) -> str:
        if item == "slow":
            release.wait()
        return item

    order = []
    for item, _ in sweep(["slow", "a", "b"], work):
        order.append(item)
        if len(order) == 2:
            release.set()
    assert order[2] == "slow"


@pytest.mark.parametrize("parallel", [1, 4])
def test_sweep_is_bounded(parallel: int) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1

    list(sweep(range(200), work, parallel=parallel))
    assert 1 <= most <= parallel


def test_sweep_of_nothing() -> None:
    assert list(sweep([], str)) == []


def test_a_defect_in_the_work_comes_out() -> None:
    def work(_: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(sweep([1, 2], work))


def test_nothing_more_is_started_once_the_caller_stops() -> None:
    started: list[int] = []
    go = threading.Event()

    def work(item: int) -> int:
        started.append(item)
        if item:
            go.wait()
        return item

    results = sweep(range(100), work, parallel=2)
    assert next(results) == (0, 0)
    results.close()  # type: ignore[attr-defined]  # it is a generator
    go.set()
    assert len(started) <= 4


def test_an_interrupted_sweep_does_not_wait_for_silent_devices() -> None:
    program = (
        "import threading, signal, os\n"
        "from fedctl.transport import sweep\n"
        "begun = threading.Event()\n"
        "def work(item):\n"
        "    begun.set(); threading.Event().wait()\n"
        "def interrupt():\n"
        "    begun.wait(); os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=interrupt, daemon=True).start()\n"
        "try:\n"
        "    list(sweep([1, 2], work))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "interrupted\n"


class Time:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_retrying_pauses_longer_each_time_with_jitter() -> None:
    time, errors = Time(), [UnreachableError("down")] * 8

    def work() -> str:
        if errors:
            raise errors.pop()
        return "up"

    answer = retrying(work, deadline=1e9, clock=time.clock, sleep=time.sleep, jitter=lambda: 0.999_999)
    assert answer == "up"
    assert time.pauses == pytest.approx([0.5, 1, 2, 4, 8, 15, 15, 15], rel=1e-5)


def test_jitter_at_most_halves_a_pause() -> None:
    time, errors = Time(), [UnreachableError("down")]

    def work() -> None:
        if errors:
            raise errors.pop()

    retrying(work, deadline=1e9, clock=time.clock, sleep=time.sleep, jitter=lambda: 0.0)
    assert time.pauses == [0.25]


def test_retrying_ends_at_the_deadline_with_the_last_error() -> None:
    time = Time()

    def work() -> None:
        raise UnreachableError(f"down at {time.now:.0f}")

    with pytest.raises(UnreachableError):
        retrying(work, deadline=110.0, clock=time.clock, sleep=time.sleep)
    assert time.now < 110


@pytest.mark.parametrize("error", [DeviceError("no"), FedctlError("no"), ValueError("no")])
def test_only_an_unreachable_device_is_tried_again(error: Exception) -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        retrying(work, deadline=1e9)
    assert len(calls) == 1

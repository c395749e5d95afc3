"""SIGKILL at any moment to command, daemon, worker or job: the published bytes stay the same."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fedctl.core.round_records import RoundPhase, Stage
from fedctl.core.selector import Selector
from fedctl.ops import rounds
from tests.fleet import MODEL, WISHES, TestAgent, TestFleet, fleet

EVERYONE = Selector.parse((), ())
EPOCHS = 1000  # so that a round takes longer than the first kill
START = ("round", "start", MODEL, "--seed", "7", "--deadline", "60s", "--local-epochs", str(EPOCHS), "-q")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of an uninterrupted round."""
    with fleet(tmp_path_factory.mktemp("calm")) as calm, calm.store() as store:
        (summary,) = rounds.start(
            store, calm.home, MODEL, EVERYONE, wishes=replace(WISHES, local_epochs=EPOCHS)
        ).rounds
        return calm.weights_sha256(summary.result_version or 0)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[TestFleet]:
    with fleet(tmp_path) as ready:
        yield ready


def published(small: TestFleet) -> str:
    with small.store() as store:
        (done,) = [r for r in store.rounds() if r.phase is RoundPhase.PUBLISHED]
        rows = store.round_devices(done.id)
        assert not [(row.device, row.reason) for row in rows if row.stage is Stage.DROPPED]
        return small.weights_sha256(done.result_version or 0)


@pytest.mark.parametrize("seed", range(4))
def test_the_command_is_killed_again_and_again(small: TestFleet, expected: str, seed: int) -> None:
    moments = random.Random(seed)
    kills = 0
    for _ in range(40):
        with small.store() as store:
            begun = store.rounds()
        if begun and begun[0].phase.final:
            break
        words = ("round", "resume", "-q") if begun else START
        command = subprocess.Popen(
            small.command(*words),
            env=small.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = command.wait(timeout=moments.uniform(0.1, 0.9) if kills < 8 else 60)
            assert code == 0
            continue
        command.send_signal(signal.SIGKILL)
        command.wait()
        kills += 1
    assert kills
    assert published(small) == expected


@pytest.mark.parametrize("whom", ["daemon", "worker", "job"])
def test_processes_on_the_devices_are_killed(small: TestFleet, expected: str, whom: str) -> None:
    moments = random.Random(whom)
    command = subprocess.Popen(
        small.command(*START), env=small.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    kills = dict.fromkeys(small.agents, 0)
    try:
        deadline = time.monotonic() + 60
        while command.poll() is None and time.monotonic() < deadline:
            name = moments.choice(sorted(kills))
            if kills[name] < 2:  # a job runs three times in all
                kills[name] += kill(small.agents[name], whom, moments)
            time.sleep(moments.uniform(0.0, 0.05))
        assert command.poll() == 0
    finally:
        command.kill()
        command.wait()
    assert any(kills.values())
    assert published(small) == expected


def kill(agent: TestAgent, whom: str, moments: random.Random) -> bool:
    """Kill one process of the agent; whether there was one."""
    if whom == "daemon":
        agent.kill()
        time.sleep(moments.uniform(0.0, 0.2))
        agent.start()
        return True
    workers = psutil.Process(agent.pid).children()
    victims = [job for worker in workers for job in worker.children()] if whom == "job" else workers
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
            return True
    return False

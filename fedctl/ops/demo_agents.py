"""The demo's agents: real `fedctl-agent` processes on Unix sockets, each with one person's data."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedctl.core.errors import ConfigError
from fedctl.ops.cohort import Person

START_DEADLINE_S = 30.0
_SOURCE = """kind = "npz"
path = {path}
features = "x"
label = "y"
test_fraction = 0.0
"""
_LOG_TAIL_CHARS = 500


@dataclass(frozen=True, slots=True)
class DemoAgent:
    """One agent of the demo and where it keeps its state."""

    name: str
    state: Path

    @property
    def socket(self) -> Path:
        """The Unix socket it listens on."""
        return self.state / "agent.sock"

    @property
    def log(self) -> Path:
        """What the process prints."""
        return self.state.with_suffix(".log")


def start_agents(directory: Path, people: Sequence[tuple[str, Person]]) -> tuple[DemoAgent, ...]:
    """Start one agent a person, named as given, and wait until each listens.

    Raises:
        ConfigError: An agent ended or did not listen in time; the message ends with what it printed.
    """
    agents = []
    keygens = []
    for name, person in people:
        agent = DemoAgent(name, directory / name)
        sources = agent.state / "sources"
        sources.mkdir(parents=True, exist_ok=True, mode=0o700)
        (sources / "recorder.toml").write_text(_SOURCE.format(path=json.dumps(str(person.path))))
        keygens.append(subprocess.Popen(_command("keygen", agent), stdout=subprocess.DEVNULL))
        agents.append(agent)
    for keygen in keygens:
        if keygen.wait() != 0:
            raise ConfigError("an agent of the demo could not make its identity key", subject=str(directory))
    processes = [_serve(agent) for agent in agents]
    deadline = time.monotonic() + START_DEADLINE_S
    for agent, process in zip(agents, processes, strict=True):
        _await_listening(agent, process, deadline)
    return tuple(agents)


def stop_agents(directory: Path) -> int:
    """End every agent whose state is below `directory`; returns how many there were."""
    states = sorted(path.parent for path in directory.glob("*/sources"))
    stops = [
        subprocess.Popen(
            _command("stop", DemoAgent(state.name, state)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for state in states
    ]
    for stop in stops:
        stop.wait()
    return len(states)


def _command(verb: str, agent: DemoAgent) -> list[str]:
    return [sys.executable, "-m", "fedctl_agent.main", verb, "--state-dir", str(agent.state)]


def _serve(agent: DemoAgent) -> subprocess.Popen[bytes]:
    with agent.log.open("ab") as log:
        return subprocess.Popen(
            _command("serve", agent),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in this terminal is not meant for the fleet
        )


def _await_listening(agent: DemoAgent, process: subprocess.Popen[bytes], deadline: float) -> None:
    while not agent.socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            ended = "ended at once" if process.poll() is not None else "did not start in time"
            tail = agent.log.read_text(errors="replace")[-_LOG_TAIL_CHARS:].strip()
            raise ConfigError(
                f"agent {agent.name} of the demo {ended}: {tail or 'it printed nothing'}",
                hint="end what is left with: fedctl demo --stop",
                subject=agent.name,
            )
        time.sleep(0.01)
    process.returncode = 0  # it is meant to outlive this command; nobody waits for it

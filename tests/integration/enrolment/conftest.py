"""A fleet and real agent processes on Unix sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedctl.core.home import Home
from fedctl.ops.fleet import init
from fedctl.store import Store
from tests.system import end_tree, eventually


@dataclass
class Agent:
    """One agent process and its state directory."""

    state: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.state / "agent.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        for command in ("keygen", "serve"):
            words = [sys.executable, "-m", "fedctl_agent.main", command, "--state-dir", str(self.state)]
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if command == "keygen":
                assert process.wait() == 0
            else:
                self.process = process
        eventually(self._listens, "the agent listens")

    def stop(self) -> None:
        if self.process is not None:
            end_tree(self.process)
            self.process = None

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as link:
            return link.connect_ex(str(self.socket)) == 0


MakeAgent = Callable[[str], Agent]


@pytest.fixture
def make_agent() -> Iterator[MakeAgent]:
    """Starts agents by name; their paths are short enough for a socket."""
    agents: list[Agent] = []
    with tempfile.TemporaryDirectory(prefix="fedctl-") as directory:

        def make(name: str) -> Agent:
            agent = Agent(Path(directory) / name)
            agents.append(agent)
            agent.start()
            return agent

        try:
            yield make
        finally:
            for agent in agents:
                agent.stop()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    init(made)
    return made


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    with Store.open(home) as opened:
        yield opened

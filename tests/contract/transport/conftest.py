"""One way to reach an agent's socket for each transport; every contract test runs over all of them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedctl.transport import AgentClient, connect
from tests.fakes.agent_server import FakeAgent
from tests.system import SshBed, bed

__all__ = ["bed"]  # the fixture

Connect = Callable[..., AgentClient]


class Reach:
    """A directory in which an agent's socket may stand, and the way to it."""

    def __init__(self, directory: Path, ssh: SshBed | None, stack: ExitStack) -> None:
        self.socket_path = directory / "agent.sock"
        self._stack = stack
        self._keys = {"url": f"unix://{self.socket_path}"}
        if ssh is not None:
            login_key = ssh.authorize(ssh.bridge_command(self.socket_path))
            self._keys = {"url": ssh.url, "host_key": ssh.host_key, "login_key": login_key}

    def client(self, *, timeout_s: float = 30) -> AgentClient:
        """A new client, closed at the end of the test."""
        made = connect(device="watch-1", timeout_s=timeout_s, **self._keys)
        return self._stack.enter_context(made)


@pytest.fixture(params=["unix", pytest.param("ssh", marks=pytest.mark.system)])
def reach(request: pytest.FixtureRequest) -> Iterator[Reach]:
    with ExitStack() as stack:
        if request.param == "ssh":
            ssh: SshBed = request.getfixturevalue("bed")
            yield Reach(ssh.new_directory("contract"), ssh, stack)
        else:
            directory = Path(tempfile.mkdtemp(prefix="fedctl-contract-"))  # tmp_path may be too long
            stack.callback(shutil.rmtree, directory)
            yield Reach(directory, None, stack)


@pytest.fixture
def agent(reach: Reach) -> Iterator[FakeAgent]:
    with FakeAgent(reach.socket_path) as running:
        yield running


@pytest.fixture
def client(reach: Reach, agent: FakeAgent) -> AgentClient:
    """A client of the running fake agent."""
    return reach.client()

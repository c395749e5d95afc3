"""One way to reach an agent for each transport; every contract test runs over all of them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fedctl.transport import AgentClient, connect
from tests.fakes.agent_server import FakeAgent, UnixPlace
from tests.fakes.tls_place import Fleet, TlsPlace
from tests.system import SshBed, bed

__all__ = ["bed"]  # the fixture

Connect = Callable[..., AgentClient]


class Reach:
    """Where an agent may listen, and the way there: the arguments of `connect`."""

    def __init__(self, place: UnixPlace | TlsPlace, stack: ExitStack, **way: Any) -> None:
        self.place = place
        self._stack = stack
        self._way = way

    def client(self, *, timeout_s: float = 30) -> AgentClient:
        """A new client, closed at the end of the test."""
        made = connect(device="watch-1", timeout_s=timeout_s, **self._way)
        return self._stack.enter_context(made)


@pytest.fixture(params=["unix", "https", pytest.param("ssh", marks=pytest.mark.system)])
def reach(request: pytest.FixtureRequest) -> Iterator[Reach]:
    with ExitStack() as stack:
        if request.param == "ssh":
            ssh: SshBed = request.getfixturevalue("bed")
            yield _by_ssh(ssh, stack)
            return
        directory = Path(tempfile.mkdtemp(prefix="fedctl-contract-"))  # tmp_path may be too long
        stack.callback(shutil.rmtree, directory)
        if request.param == "https":
            yield _by_https(directory, stack)
        else:
            place = UnixPlace(directory / "agent.sock")
            yield Reach(place, stack, url=f"unix://{place.path}")


def _by_ssh(ssh: SshBed, stack: ExitStack) -> Reach:
    place = UnixPlace(ssh.new_directory("contract") / "agent.sock")
    login_key = ssh.authorize(ssh.bridge_command(place.path))
    return Reach(place, stack, url=ssh.url, host_key=ssh.host_key, login_key=login_key)


def _by_https(directory: Path, stack: ExitStack) -> Reach:
    fleet = Fleet(directory)
    files, pin = fleet.device()
    place = TlsPlace(fleet.server(files))
    return Reach(place, stack, url=place.url, pin=pin, identity=fleet.operator())


@pytest.fixture
def agent(reach: Reach) -> Iterator[FakeAgent]:
    with FakeAgent(reach.place) as running:
        yield running


@pytest.fixture
def client(reach: Reach, agent: FakeAgent) -> AgentClient:
    """A client of the running fake agent."""
    return reach.client()

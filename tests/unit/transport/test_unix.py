"""What is special about Unix sockets; the rest is the contract of all transports."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from fedctl.core.errors import ExitCode, TrustError, UnreachableError
from fedctl.transport import connect
from fedctl.transport.unix import UnixTransport
from tests.fakes.agent_server import FakeAgent


def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with FakeAgent(tmp_path / "s") as agent:
        (tmp_path / "s").rename(deep / "agent.sock")
        with connect(device="watch-1", url=f"unix://{deep}/agent.sock") as client:
            assert client.health() == agent.health


@pytest.mark.parametrize("leftover", [False, True])
def test_nobody_listens(tmp_path: Path, *, leftover: bool) -> None:
    path = tmp_path / "agent.sock"
    if leftover:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    with connect(device="watch-1", url=f"unix://{path}") as client, pytest.raises(UnreachableError) as caught:
        client.health()
    assert "agent is not running on device watch-1" in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.code == "agent_down"
    assert "fedctl-agent serve" in caught.value.hint


def test_a_socket_that_this_user_may_not_open(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with FakeAgent(path):
        path.chmod(0o600)
        if os.geteuid() == 0:  # root may open everything: be somebody else for the connect
            tmp_path.chmod(0o711)
            for parent in tmp_path.parents[:2]:
                parent.chmod(0o711)
            os.seteuid(65534)
        else:
            path.chmod(0)
        try:
            with (
                connect(device="watch-1", url=f"unix://{path}") as client,
                pytest.raises(TrustError) as caught,
            ):
                client.health()
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
    assert caught.value.exit_code == ExitCode.TRUST
    assert "watch-1" in caught.value.message


def test_a_full_backlog_is_waited_for_only_until_the_deadline(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))  # fills the backlog; nobody accepts
        with pytest.raises(UnreachableError, match="watch-1"):
            UnixTransport("watch-1", path).dial(deadline=time.monotonic() + 0.05)

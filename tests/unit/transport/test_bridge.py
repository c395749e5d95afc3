"""What the first line of a channel means, without a server: see `integration/ssh` for the real one."""

from __future__ import annotations

import io
import time
from typing import cast

import paramiko
import pytest

from fedctl.core.errors import UnreachableError
from fedctl.transport.base import Endpoint
from fedctl.transport.bridge import expect_agent


class SpokenLine:
    """As much of a channel as the first line takes."""

    def __init__(self, line: bytes) -> None:
        self._stream = io.BytesIO(line)

    def settimeout(self, _seconds: float) -> None:
        return

    def recv(self, size: int) -> bytes:
        return self._stream.read(size)


def test_an_agent_that_is_down_comes_with_the_command_that_repairs_it() -> None:
    channel = cast("paramiko.Channel", SpokenLine(b"fedctl-agent dial-stdio: ENOENT: no such file\n"))
    endpoint = Endpoint.parse("ssh://pi@192.0.2.41:2222")
    with pytest.raises(UnreachableError, match="agent is not running on device watch-01") as caught:
        expect_agent(channel, device="watch-01", endpoint=endpoint, deadline=time.monotonic() + 5)
    assert caught.value.code == "agent_down"
    assert "`fedctl devices add watch-01 ssh://pi@192.0.2.41:2222`" in caught.value.hint

"""`serve --group`: a socket for the members of a group, as a system's unit wants it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system import eventually


@pytest.mark.parametrize(("options", "mode"), [([], 0o600), (["--group"], 0o660)])
def test_the_group_may_connect_only_when_told_so(tmp_path: Path, options: list[str], mode: int) -> None:
    socket = tmp_path / "agent.sock"
    words = ["serve", "--state-dir", str(tmp_path / "state"), "--socket", str(socket), *options]
    with subprocess.Popen([sys.executable, "-m", "fedctl_agent.main", *words]) as daemon:
        try:
            eventually(socket.exists, "the daemon listens")
            assert socket.stat().st_mode & 0o777 == mode
        finally:
            daemon.send_signal(signal.SIGTERM)
    assert daemon.returncode == 0

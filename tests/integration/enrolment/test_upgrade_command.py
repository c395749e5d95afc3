"""`devices upgrade` as a command, on a device that it can do nothing about."""

from __future__ import annotations

import json

import pytest

from fedctl.cli.app import run
from fedctl.core.home import Home
from fedctl.ops import devices
from fedctl.ops.devices import NewDevice
from fedctl.store import Store
from tests.integration.enrolment.conftest import MakeAgent


def test_an_agent_that_was_not_installed_from_here_is_left_and_told_how(
    store: Store,
    home: Home,
    make_agent: MakeAgent,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    agent = make_agent("a")
    devices.add(store, home, NewDevice(name="local", url=agent.url))
    monkeypatch.setenv("FEDCTL_HOME", str(home.path))
    assert run(["devices", "upgrade", "local", "-o", "json"]) == 3
    (row,) = json.loads(capsys.readouterr().out)["devices"]
    assert (row["upgraded"], row["changed"], row["error"]["code"]) == (False, False, "not_ssh")
    assert "pip install --upgrade fedctl-agent" in row["error"]["hint"]
    assert run(["devices", "upgrade", "local"]) == 3
    shown = capsys.readouterr().out
    assert "✗" in shown
    assert "not ssh" in shown
    assert run(["devices", "upgrade"]) == 2
    assert run(["devices", "upgrade", "*", "--via", "ssh://root@192.0.2.1", "--timeout", "0"]) == 2

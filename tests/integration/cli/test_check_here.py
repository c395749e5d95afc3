"""`devices check` of agents on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.fleet import TestFleet, fleet


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestFleet]:
    with fleet(tmp_path_factory.mktemp("fleet"), train=2, holdout=0) as made:
        yield made


def test_a_device_that_is_well_also_in_maintenance(two: TestFleet) -> None:
    two.cli("devices", "maintenance", "dev-1", "on")
    done = two.cli("devices", "check", "dev-1", "-o", "json")
    two.cli("devices", "maintenance", "dev-1", "off")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["devices"]
    assert row["reached"] is True
    verdicts = {c["check"]: c["verdict"] for c in row["checks"]}
    assert list(verdicts) == [
        "socket", "agent", "identity", "version", "clock", "roster", "disk", "cgroup", "limits",
    ]  # fmt: skip
    assert {verdicts[name] for name in ("socket", "agent", "identity", "version", "roster")} == {"well"}


def test_one_of_two_is_down(two: TestFleet) -> None:
    two.agents["dev-2"].kill()
    done = two.cli("devices", "check")
    assert done.returncode == 3
    assert "✓ agent answers" in done.stdout or "+ agent answers" in done.stdout
    assert "agent is not running" in done.stdout
    assert "fedctl-agent serve" in done.stdout
    two.agents["dev-2"].socket.unlink()
    done = two.cli("devices", "check", "dev-2")
    assert done.returncode == 4
    assert "socket: there is no " in done.stdout
    two.agents["dev-2"].start()
    assert two.cli("devices", "check", "-q").returncode == 0


def test_a_policy_that_keeps_telemetry_is_no_fault(two: TestFleet) -> None:
    path = two.agents["dev-1"].state / "policy.local.json"
    path.write_text('{"share": ["metrics"]}')
    try:
        done = two.cli("devices", "check", "dev-1")
    finally:
        path.unlink()
    assert done.returncode == 0
    assert "its policy does not share telemetry" in done.stdout

"""`devices check` of agents on this machine."""

from __future__ import annotations

import json
import shutil
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


def test_a_torn_policy_is_what_is_wrong_and_a_new_enrolment_mends_it(two: TestFleet) -> None:
    agent = two.agents["dev-2"]
    (path,) = agent.state.rglob("policy.json")
    path.write_bytes(path.read_bytes()[:40])
    done = two.cli("devices", "check", "dev-2")
    said = " ".join(done.stdout.split())
    assert done.returncode == 3, done.stderr
    assert "this device refuses everything: its policy cannot be read" in said
    assert "does not share telemetry" not in said
    assert "delete identity/ of its state directory" in said
    assert f"then fedctl devices add dev-2 unix://{agent.socket}" in said
    agent.kill()
    shutil.rmtree(agent.state / "identity")
    agent.start()
    added = two.cli("devices", "add", "dev-2", f"unix://{agent.socket}")
    assert added.returncode == 0, added.stderr
    assert two.cli("devices", "check", "dev-2").returncode == 0


def test_a_local_policy_with_a_slip_is_mended_at_the_device(two: TestFleet) -> None:
    path = two.agents["dev-1"].state / "policy.local.json"
    path.write_text('{"share": ')
    try:
        done = two.cli("devices", "check", "dev-1")
    finally:
        path.unlink()
    assert done.returncode == 3
    assert "mend its policy.local.json, at the device" in " ".join(done.stdout.split())

"""`model push` to real agents: all, some, none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import MODEL, TestFleet, fleet


@pytest.fixture
def small(tmp_path: Path) -> Iterator[TestFleet]:
    with fleet(tmp_path, train=2, holdout=0) as ready:
        yield ready


def test_a_push_installs_and_records(small: TestFleet) -> None:
    done = small.cli("model", "push", MODEL, "*", "-o", "json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["model"], result["version"]) == (MODEL, 1)
    assert [(d["name"], d["installed"], d["active"]) for d in result["devices"]] == [
        ("dev-1", True, True),
        ("dev-2", True, True),
    ]
    size = sum(p.stat().st_size for p in small.home.bundle(MODEL, 1).iterdir() if p.name != "manifest.dsse")
    assert [d["bytes_down"] for d in result["devices"]] == [size, size]
    with small.store() as store:
        assert [(d.device, d.version, d.active) for d in store.deployments()] == [
            ("dev-1", 1, True),
            ("dev-2", 1, True),
        ]
        assert store.events()[-1].verb == "model.push"
    again = small.cli("model", "push", MODEL, "*", "-o", "json")
    assert [d["bytes_down"] for d in json.loads(again.stdout)["devices"]] == [0, 0]  # nothing was missing
    assert small.cli("model", "push", MODEL, "*", "-q").stdout == ""


def test_some_devices_down_is_partial_and_all_down_is_unreachable(small: TestFleet) -> None:
    small.agents["dev-2"].kill()
    partial = small.cli("model", "push", MODEL, "*")
    assert partial.returncode == 3
    assert "dev-2" in partial.stdout
    names = small.cli("model", "push", MODEL, "*", "-o", "name")
    assert (names.returncode, names.stdout) == (3, "dev-1\n")
    small.agents["dev-1"].kill()
    none = small.cli("model", "push", MODEL, "*", "-o", "json")
    assert none.returncode == 4
    assert [d["error"]["code"] for d in json.loads(none.stdout)["devices"]] == ["agent_down"] * 2
    assert small.cli("devices", "ping").returncode == 4


def test_a_device_that_is_not_selected_is_left_alone(small: TestFleet) -> None:
    assert small.cli("model", "push", MODEL, "dev-1").returncode == 0
    with small.store() as store:
        assert [d.device for d in store.deployments()] == ["dev-1"]
    assert small.cli("model", "push", MODEL, "dev-9").returncode == 5
    assert small.cli("model", "push", f"{MODEL}@9", "dev-1").returncode == 5

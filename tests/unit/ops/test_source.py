"""The source TOML that `devices add` copies: the workstation refuses what the agent would not read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedctl.core.errors import ExitCode, UsageError
from fedctl.core.home import Home
from fedctl.ops import devices
from fedctl.ops.devices import NewDevice
from fedctl.ops.enrolment.install import Installation
from fedctl.ops.enrolment.shell import DeviceShell
from fedctl.ops.enrolment.source import Source, read_source
from fedctl.ops.enrolment.survey import Found, Places, Probe
from fedctl.ops.fleet import init
from fedctl.store import Store
from fedctl_agent.sources import read_source as read_as_agent
from fedctl_agent.trainers.contract import JobError
from fedctl_wire.codec import from_json
from tests.unit.ops.test_device_shell import LocalSession, device_probe

GOOD = 'kind = "npz"\npath = "data"\nfeatures = "x"\nlabel = "y"\n'
BAD = {
    "unknown key": (GOOD + 'patth = "x"\n', "'patth'"),
    "no path": (GOOD.replace("path", "test_fraction = 0.1 #"), "'path'"),
    "no kind": (GOOD.replace("kind", "#"), "'kind'"),
    "number for a string": (GOOD.replace('"x"', "3"), "'features'"),
    "other kind": (GOOD.replace('"npz"', '"csv"'), "kind 'csv'"),
    "a string": (GOOD + 'test_fraction = "0.2"\n', "'test_fraction'"),
    "one": (GOOD + "test_fraction = 1\n", "'test_fraction'"),
    "one point nought": (GOOD + "test_fraction = 1.0\n", "'test_fraction'"),
    "negative": (GOOD + "test_fraction = -0.1\n", "'test_fraction'"),
    "not a number": (GOOD + "test_fraction = nan\n", "'test_fraction'"),
    "a table": (GOOD + "[label2]\n", "'label2'"),
    "no TOML": ("kind = npz", "Invalid value"),
}


def put(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recorder.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("extra", ["", "test_fraction = 0\n", "test_fraction = 0.99\n"])
def test_a_good_source_is_good_for_both(tmp_path: Path, extra: str) -> None:
    path = put(tmp_path, GOOD + extra)
    assert read_source(path) == Source("recorder.toml", GOOD + extra)
    assert read_as_agent(path).name == "recorder"


@pytest.mark.parametrize("case", BAD)
def test_a_bad_source_is_refused_by_both_and_the_key_is_named(tmp_path: Path, case: str) -> None:
    text, named = BAD[case]
    path = put(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_source(path)
    assert named in caught.value.message
    assert str(path) in caught.value.message
    with pytest.raises(JobError):
        read_as_agent(path)


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_bad_source_is_refused_before_anything_is_asked_of_the_device(
    tmp_path: Path, *, dry_run: bool
) -> None:
    home = Home(tmp_path / "home")
    init(home)
    new = NewDevice(name="watch-1", url="ssh://127.0.0.9:1", source=put(tmp_path, GOOD + "typo = 1\n"))
    with Store.open(home) as store, pytest.raises(UsageError, match="unknown key 'typo'") as caught:
        devices.add(store, home, new, dry_run=dry_run)
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_source_that_is_there_already_is_kept_and_that_is_said() -> None:
    source = Source("mine.toml", GOOD)
    found = Found(
        None, key_line=False, authorized_keys=None, state=True, enrolled=True, trust_files=(), sources=()
    )
    installation = Installation(
        shell=DeviceShell(LocalSession(), "watch-1"),
        probe=from_json(Probe, device_probe.probe([])),
        found=found,
        running=True,
        places=Places("/home/pi"),
        key_line="",
        version="1",
        distributions=(),
    )
    assert installation.kept_source(source) == ()
    occupied = replace(installation, found=replace(found, sources=("recorder.toml",)))
    (sentence,) = occupied.kept_source(source)
    assert sentence.startswith("kept the source that is there: recorder.toml ")
    assert "someone at the device" in sentence
    assert "/home/pi/.local/share/fedctl/state/sources" in sentence
    assert occupied.kept_source(None) == ()

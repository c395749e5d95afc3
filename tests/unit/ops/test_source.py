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
from fedctl.ops.enrolment.survey import Found, Places, Probe, Service
from fedctl.ops.fleet import init
from fedctl.store import Store
from fedctl_agent.sources import read_source as read_as_agent
from fedctl_agent.trainers.contract import JobError
from fedctl_wire.codec import from_json
from tests.unit.ops.test_device_shell import LocalSession, device_probe

GOOD = 'kind = "npz"\npath = "data"\nfeatures = "x"\nlabel = "y"\n'
CSV = 'kind = "csv"\npath = "data"\nfeatures = ["hr"]\nlabel = "y"\n'
SQLITE = CSV.replace("csv", "sqlite") + 'table = "t"\n'
FULL = (
    'time = "at"\ngroup = "person"\nwindow = 128\nstride = 64\nmax_gap_s = 0.5\nsplit = "random"\n'
    'seed = 3\ntest_fraction = 0.1\nmissing = "drop"\nmissing_values = [-1, "err"]\nmax_age_days = 30\n'
    'scale = "person"\nclasses = ["calm", "ill"]\n'
)
BAD = {
    "unknown key": (GOOD + 'patth = "x"\n', "'patth'"),
    "no path": (GOOD.replace("path", "test_fraction = 0.1 #"), "'path'"),
    "no kind": (GOOD.replace("kind", "#"), "'kind'"),
    "number for a string": (GOOD.replace('"x"', "3"), "'features'"),
    "other kind": (GOOD.replace('"npz"', '"zip"'), "kind 'zip'"),
    "several arrays": (GOOD.replace('"x"', '["x", "z"]'), "'features'"),
    "columns for an array": (GOOD.replace('"x"', '["x"]'), "'features'"),
    "no table": (GOOD.replace('"npz"', '"sqlite"'), "'table'"),
    "a table in a file": (CSV + 'table = "t"\n', "'table'"),
    "a delimiter of two": (CSV + 'delimiter = ", "\n', "'delimiter'"),
    "a delimiter of a database": (SQLITE + 'delimiter = ","\n', "'delimiter'"),
    "a quote as delimiter": (CSV + "delimiter = '\"'\n", "'delimiter'"),
    "a column twice": (CSV.replace('"hr"', '"y"'), "'y' for two purposes"),
    "stride alone": (CSV + "stride = 4\n", "'stride'"),
    "no window": (CSV + "window = 0\n", "'window'"),
    "half a window": (CSV + "window = 2.5\n", "'window'"),
    "a gap without times": (CSV + "window = 4\nmax_gap_s = 2\n", "'max_gap_s'"),
    "an age without times": (CSV + "max_age_days = 2\n", "'max_age_days'"),
    "a missing value of any size": (CSV + f"missing_values = [{'9' * 400}]\n", "'missing_values'"),
    "a gap of any size": (
        CSV + f'time = "at"\nwindow = 2\nmax_gap_s = {"9" * 400}\n',
        "'max_gap_s'",
    ),
    "an age of nothing": (CSV + 'time = "at"\nmax_age_days = 0\n', "'max_age_days'"),
    "another split": (CSV + 'split = "person"\n', "split 'person'"),
    "another policy": (CSV + 'missing = "mean"\n', "missing 'mean'"),
    "a table of missing values": (CSV + "missing_values = [[1]]\n", "'missing_values'"),
    "one class": (CSV + 'classes = ["a"]\n', "'classes'"),
    "a class twice": (CSV + 'classes = ["a", "a"]\n', "'classes'"),
    "no column's name": (CSV.replace('"hr"', '""'), "'features'"),
    "no features": (CSV.replace('"hr"', ""), "'features'"),
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


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD + "test_fraction = 0\n",
        GOOD + "test_fraction = 0.99\n",
        GOOD + FULL,
        CSV + FULL + 'delimiter = ";"\n',
        SQLITE + FULL,
        SQLITE.replace("\n", "\r\n"),
    ],
)
def test_a_good_source_is_good_for_both(tmp_path: Path, text: str) -> None:
    path = put(tmp_path, text)
    assert read_source(path) == Source("recorder.toml", text)
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
        work=DeviceShell(LocalSession(), "watch-1"),
        probe=from_json(Probe, device_probe.probe([])),
        found=found,
        service=Service("runs"),
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

"""Which devices a command works on: selectors, names on stdin, limits, maintenance; and notes."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedctl.cli.app import root
from fedctl.cli.command import Session
from fedctl.core.home import Home
from fedctl.core.plan import RoundWishes
from fedctl.core.progress import Note
from fedctl.core.records import Device, DeviceState
from fedctl.core.selector import Selector
from fedctl.ops import devices, models, rounds
from fedctl.store import Store
from tests.fleet import TestFleet, fleet
from tests.integration.cli.conftest import PROGRAM, Run

WISHES = RoundWishes(seed=7, deadline_s=60.0)


@pytest.fixture
def three(inside: Run, home: Path) -> None:
    """watch-1 to watch-3: wards 3, 3 and 4, the last one holds out."""
    inside("init")
    labels: list[dict[str, str]] = [{"ward": "3"}, {"ward": "3"}, {"ward": "4", "role": "holdout"}]
    with Store.open(Home(home)) as store:
        for number, given in enumerate(labels, start=1):
            name, at = f"watch-{number}", "2026-03-01T08:00:00Z"
            url, state = f"unix:///run/{name}", DeviceState.ENROLLED
            device = Device(name, url, None, f"{number:064x}", number, None, None, None, state, at, None)
            store.add_device(device)
            store.set_labels(name, given)


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("-l", "ward in (3,5),role!=holdout"), ["watch-1", "watch-2"]),
        (("-l", "ward=3", "--limit", "1"), ["watch-1"]),
        (("-l", "role=train", "watch-[23]"), ["watch-2"]),
        (("--limit", "2"), ["watch-1", "watch-2"]),
    ],
)
def test_list_takes_every_kind_of_selector(inside: Run, words: tuple[str, ...], names: list[str]) -> None:
    done = inside("devices", "list", *words, "-o", "name")
    assert (done.returncode, done.stdout.split()) == (0, names)


@pytest.mark.usefixtures("three")
def test_names_come_from_stdin(inside: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "watch-3\nwatch-1\n")
    done = inside("devices", "label", "-", "spare=yes", "-o", "json")
    assert [row["name"] for row in json.loads(done.stdout)["devices"]] == ["watch-1", "watch-3"]
    type_in(monkeypatch, "watch-3\n")
    done = inside("devices", "maintenance", "-", "on", "-o", "name")
    assert done.stdout == "watch-3\n"


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("text", ["", " \n\n"])
def test_nothing_on_stdin_is_not_every_device(
    inside: Run, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    for words in (("list", "-"), ("remove", "-", "--yes"), ("maintenance", "-", "on")):
        type_in(monkeypatch, text)
        done = inside("devices", *words)
        assert (done.returncode, done.stdout) == (5, "")
        assert "stdin names no device" in done.stderr


@pytest.mark.usefixtures("three")
def test_bytes_on_stdin_that_are_no_text(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [PROGRAM, "devices", "list", "-"],
        input=b"\xff\xfe",
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode in {2, 5}
    assert b"Traceback" not in done.stderr


@pytest.mark.usefixtures("three")
def test_maintenance_is_shown_recorded_once_and_taken_back(inside: Run, home: Path) -> None:
    assert "state" not in inside("devices", "list").stdout
    for _ in range(2):
        assert inside("devices", "maintenance", "-l", "ward=3", "on").returncode == 0
    table = inside("devices", "list").stdout.splitlines()
    assert [line.split()[2] for line in table] == ["state", "maintenance", "maintenance", "-"]
    assert inside("devices", "maintenance", "watch-1", "watch-2", "off").returncode == 0
    assert "state" not in inside("devices", "list").stdout
    with Store.open(Home(home)) as store:
        told = [(e.subject, e.detail["on"]) for e in store.events() if e.verb == "device.maintenance"]
    assert told == [("watch-1", True), ("watch-2", True), ("watch-1", False), ("watch-2", False)]


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("words", [("watch-1",), ("watch-1", "aus"), ("on",), ()])
def test_maintenance_needs_devices_and_on_or_off(inside: Run, words: tuple[str, ...]) -> None:
    done = inside("devices", "maintenance", *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) > 1  # with a way out


@pytest.mark.usefixtures("three")
def test_a_note_is_kept_shown_and_taken_away(inside: Run) -> None:
    inside("devices", "note", "watch-1", "strap renewed")
    assert "strap renewed" in inside("devices", "show", "watch-1").stdout
    assert json.loads(inside("devices", "show", "watch-1", "-o", "json").stdout)["device"]["notes"]
    assert "no note" in inside("devices", "note", "watch-1", "").stdout
    assert "strap" not in inside("devices", "show", "watch-1").stdout
    for text in ("two\nlines", "\x1b[2J", "x" * 501):
        done = inside("devices", "note", "watch-1", text)
        assert done.returncode == 2
        assert "\x1b" not in done.stderr


def test_verbs_of_other_modules_have_their_own_summary() -> None:
    group = root()
    _, nouns, _ = group.resolve_command(group.make_context("fedctl", ["devices"], obj=Session()), ["devices"])
    for name in nouns.commands:
        listed = nouns.commands[name].short_help
        _, verb, _ = nouns.resolve_command(nouns.make_context("devices", [name], obj=Session()), [name])
        assert verb.help.splitlines()[0] == listed


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestFleet]:
    with fleet(tmp_path_factory.mktemp("fleet"), train=3, holdout=1) as made:
        yield made


def set_maintenance(store: Store, *names: str) -> None:
    everyone = store.devices()
    devices.maintenance(store, everyone, on=False)
    devices.maintenance(store, [d for d in everyone if d.name in names], on=True)


def test_rounds_and_pushes_leave_out_what_is_in_maintenance(small: TestFleet) -> None:
    notes: list[str] = []
    with small.store() as store:
        set_maintenance(store, "dev-2")
        pushed = models.push(store, small.home, "pulse", store.devices())
        assert [o.device for o in pushed.outcomes] == ["dev-1", "dev-3", "dev-4"]
        assert pushed.left_out == ("dev-2",)
        result = rounds.start(
            store,
            small.home,
            "pulse",
            Selector.parse((), ()),
            wishes=WISHES,
            observer=lambda event: notes.append(event.text) if isinstance(event, Note) else None,
        )
        took_part = [row.device for row in store.round_devices(result.rounds[-1].id)]
        assert took_part == ["dev-1", "dev-3", "dev-4"]
        assert "left out, in maintenance: dev-2" in notes
        outcomes = devices.ping(store, small.home, store.devices())
        assert [o.error for o in outcomes] == [None] * 4  # still asked


def test_a_limit_of_a_round_is_about_those_that_train(small: TestFleet) -> None:
    with small.store() as store:
        set_maintenance(store, "dev-1")
        result = rounds.start(store, small.home, "pulse", Selector.parse((), (), 1), wishes=WISHES)
        assert [row.device for row in store.round_devices(result.rounds[-1].id)] == ["dev-2", "dev-4"]


def test_a_push_to_nobody_but_devices_in_maintenance_is_an_error(small: TestFleet) -> None:
    with small.store() as store:
        set_maintenance(store, "dev-2")
    done = small.cli("model", "push", "pulse", "dev-2")
    assert (done.returncode, done.stdout) == (5, "")
    assert "fedctl devices maintenance dev-2 off" in done.stderr
    done = small.cli("model", "push", "pulse", "dev-[12]")
    assert done.returncode == 0
    assert "left out: dev-2 (in maintenance)" in done.stdout

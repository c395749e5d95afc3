"""`devices add -f` with real agents: a table of outcomes, one roster, and next to nothing the second time."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedctl.core.home import Home
from fedctl.ops.roster import stored_roster
from fedctl.store import Store
from tests.fleet import TestAgent, prepare
from tests.integration.cli.conftest import Run

NAMES = ("watch-1", "watch-2", "watch-3")


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[dict[str, TestAgent]]:
    """Three agents that run and are nobody's yet."""
    made = {name: TestAgent(name, tmp_path / name) for name in NAMES}
    try:
        for seed, agent in enumerate(made.values()):
            prepare(agent.state, rows=40, seed=seed)
            agent.start()
        yield made
    finally:
        for agent in made.values():
            agent.kill()


@pytest.fixture
def table(tmp_path: Path, agents: dict[str, TestAgent], fedctl: Run) -> Path:
    """The file for them."""
    fedctl("init")
    path = tmp_path / "fleet.csv"
    rows = [f"{name},unix://{agent.socket},ward=3,the first" for name, agent in agents.items()]
    path.write_text("\n".join(["name,url,labels,note", *rows]) + "\n")
    return path


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {row["name"]: row["outcome"] for row in json.loads(done.stdout)["devices"]}


def roster_of(home: Path) -> list[str]:
    envelope = stored_roster(Home(home))
    assert envelope is not None
    return [entry["name"] for entry in json.loads(envelope.payload)["devices"]]


def test_a_file_is_added_with_one_roster_and_again_changes_nothing(
    fedctl: Run, home: Path, table: Path
) -> None:
    dry = fedctl("devices", "add", "-f", str(table), "--dry-run")
    assert dry.returncode == 0
    assert "3 would be added" in dry.stdout
    assert fedctl("devices", "list", "-o", "name").stdout == ""
    first = fedctl("devices", "add", "-f", str(table))
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines()[-1] == "3 added"
    with Store.open(Home(home)) as store:
        issued = store.fleet().roster_serial
        assert [(d.name, d.labels, d.notes) for d in store.devices()] == [
            (name, {"ward": "3"}, "the first") for name in NAMES
        ]
        assert [e.verb for e in store.events()].count("device.add") == 3
    again = fedctl("devices", "add", "-f", str(table), "-o", "json")
    assert outcomes(again) == dict.fromkeys(NAMES, "unchanged")
    with Store.open(Home(home)) as store:
        assert store.fleet().roster_serial == issued
    assert roster_of(home) == list(NAMES)
    assert fedctl("devices", "add", "-f", str(table), "-q").stdout == ""


def test_labels_and_notes_follow_the_file(fedctl: Run, table: Path) -> None:
    fedctl("devices", "add", "-f", str(table))
    table.write_text(
        table.read_text().replace("watch-2", "watch-2", 1).replace("ward=3,the first\n", "ward=4,\n", 1)
    )
    dry = fedctl("devices", "add", "-f", str(table), "--dry-run", "-o", "json")
    assert outcomes(dry)["watch-1"] == "changed"
    assert "ward=3" in fedctl("devices", "list", "watch-1").stdout
    done = fedctl("devices", "add", "-f", str(table), "-o", "json")
    assert outcomes(done) == {"watch-1": "changed", "watch-2": "unchanged", "watch-3": "unchanged"}
    shown = json.loads(fedctl("devices", "show", "watch-1", "-o", "json").stdout)["device"]
    assert (shown["labels"], shown["notes"]) == ({"ward": "4"}, "the first")  # an empty cell says nothing


def test_one_that_fails_keeps_nobody_out(
    fedctl: Run, home: Path, table: Path, agents: dict[str, TestAgent]
) -> None:
    agents["watch-2"].kill()
    done = fedctl("devices", "add", "-f", str(table))
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1] == "2 added, 1 failed"
    assert "watch-2: agent is not running" in done.stdout
    assert "fedctl-agent serve" in done.stdout  # the way out
    assert roster_of(home) == ["watch-1", "watch-3"]
    agents["watch-2"].start()
    done = fedctl("devices", "add", "-f", str(table), "-o", "json")
    assert outcomes(done) == {"watch-1": "unchanged", "watch-2": "added", "watch-3": "unchanged"}


def test_one_that_refuses_its_enrolment_is_not_in_the_roster(
    fedctl: Run, home: Path, table: Path, agents: dict[str, TestAgent]
) -> None:
    identity = agents["watch-3"].state / "identity"
    broken = identity.with_name("moved")
    identity.rename(broken)  # it answers, but cannot keep who it belongs to
    done = fedctl("devices", "add", "-f", str(table), "-o", "json")
    assert done.returncode == 3, done.stdout
    assert outcomes(done) == {"watch-1": "added", "watch-2": "added", "watch-3": "failed"}
    assert roster_of(home) == ["watch-1", "watch-2"]
    assert fedctl("devices", "ping").returncode == 0  # they get the roster without it


def test_nothing_is_done_while_a_row_is_wrong(fedctl: Run, table: Path) -> None:
    with table.open("a") as lines:
        lines.write("Watch 4,unix:///a\n")
    done = fedctl("devices", "add", "-f", str(table))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{table}:5: " in done.stderr
    assert fedctl("devices", "list", "-o", "name").stdout == ""


def test_a_row_that_contradicts_the_fleet(fedctl: Run, table: Path, agents: dict[str, TestAgent]) -> None:
    fedctl("devices", "add", "-f", str(table))
    table.write_text(f"name,url\nwatch-1,unix:///elsewhere\nwatch-9,unix://{agents['watch-2'].socket}\n")
    done = fedctl("devices", "add", "-f", str(table))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{table}:2: watch-1 is enrolled already, at unix://" in done.stderr
    assert f"{table}:3: unix://{agents['watch-2'].socket} is already device watch-2" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no device was named"),
        (("watch-1",), "device watch-1 needs an address"),
        (("watch-1", "unix:///a", "-f", "x.csv"), "NAME is for one device"),
        (("-f", "x.csv", "--note", "n"), "--note is for one device"),
        (("-f", "none.csv"), "cannot read none.csv"),
        (("watch-1", "unix:///a", "--token-file", "t"), "--token-file is for https:// devices"),
        (("watch-1", "https://a", "--token-file", "none"), "cannot read the token file none"),
        (("watch-1", "unix:///a", "--system"), "--system needs an ssh:// device"),
        (("watch-1", "unix:///a", "--note", "a\nb"), "a note is one line"),
    ],
)
def test_words_that_do_not_fit(inside: Run, words: tuple[str, ...], said: str) -> None:
    inside("init")
    done = inside("devices", "add", *words)
    assert done.returncode in {2, 10}
    assert said in done.stderr
    assert len(done.stderr.splitlines()) > 1  # with a way out


def test_a_note_of_one_device(fedctl: Run, table: Path, agents: dict[str, TestAgent]) -> None:
    words = ("devices", "add", "watch-1", f"unix://{agents['watch-1'].socket}", "-o", "json")
    assert json.loads(fedctl(*words, "--note", "on loan").stdout)["device"]["notes"] == "on loan"
    assert json.loads(fedctl(*words).stdout)["changed"] is False
    changed = json.loads(fedctl(*words, "--note", "back").stdout)
    assert (changed["changed"], changed["device"]["notes"]) == (True, "back")

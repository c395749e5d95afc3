"""Where a demo may live, and what its end removes: never a file that somebody else put there."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError, LockedError
from fedctl.core.home import Home
from fedctl.ops import demo
from fedctl.ops.fleet import init


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def stolen(home: Home) -> dict[str, bytes]:
    """Somebody's files, under the names that a demo uses, too."""
    for name in ("thesis.txt", "demo/slides.txt", "keys/id_ed25519", "models/mine.pt"):
        path = home.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return contents(home)


def contents(home: Home) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in home.path.rglob("*") if p.is_file()}


def test_a_directory_with_other_files_is_no_place_for_a_demo(home: Home) -> None:
    before = stolen(home)
    with pytest.raises(ConfigError, match=r"holds files that are no demo's: demo") as caught:
        demo.run(home, devices=2, rounds=1)
    assert "FEDCTL_HOME" in caught.value.hint
    assert contents(home) == before


def test_stop_removes_nothing_where_there_is_no_demo(home: Home) -> None:
    before = stolen(home)
    assert demo.stop(home) == 0
    assert contents(home) == before


def test_stop_leaves_what_was_added_to_a_demos_home(home: Home) -> None:
    home.path.mkdir()
    home.demo_mark.touch()
    init(home, demo=True)
    for name in ("roster.dsse", ".roster.dsse.k3xq", "fedctl.db-wal"):
        (home.path / name).touch()
    (home.path / "notes.txt").write_text("mine")
    assert demo.stop(home) == 0
    assert [path.name for path in home.path.iterdir()] == ["notes.txt"]


def test_a_real_fleet_is_neither_replaced_nor_stopped(home: Home) -> None:
    init(home)
    before = contents(home)
    for attempt in (lambda: demo.run(home, devices=2, rounds=1), lambda: demo.stop(home)):
        with pytest.raises(ConfigError, match="holds a real fleet"):
            attempt()
    assert contents(home) == before


def test_a_demo_killed_before_it_had_a_fleet_can_be_ended(home: Home) -> None:
    home.path.mkdir()
    home.demo_mark.touch()
    home.database.touch()  # as `init` leaves it when it is killed at once
    with pytest.raises(ConfigError, match="holds the demo's fleet"):
        init(home)
    assert demo.stop(home) == 0
    assert not home.path.exists()


def test_two_at_once_do_not_end_each_other(home: Home) -> None:
    home.path.mkdir()
    home.demo_mark.touch()
    with home.demo_mark.open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for attempt in (lambda: demo.run(home, devices=2, rounds=1), lambda: demo.stop(home)):
            with pytest.raises(LockedError, match="another fedctl demo is at work"):
                attempt()
    assert demo.stop(home) == 0


def test_a_file_in_its_place_is_named(home: Home) -> None:
    home.path.touch()
    with pytest.raises(ConfigError, match="cannot be the demo's home: file exists"):
        demo.run(home, devices=2, rounds=1)

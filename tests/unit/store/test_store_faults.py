"""Damaged, missing, foreign, read-only and full databases, and writers that die: never a raw exception."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError, ExitCode
from fedctl.core.home import Home
from fedctl.core.records import Fleet
from fedctl.store import ReadStore, Store, connect, schema
from fedctl.store.events import check_chain

FLEET = Fleet(uuid="3f2a", root_key="aa", operator_key="bb", roster_serial=0, demo=False)
OPENERS = pytest.mark.parametrize("opener", [ReadStore.open, Store.open], ids=["read", "write"])
Opener = Callable[[Home], ReadStore]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    Store.create(home, FLEET).close()
    return home


def use(opener: Opener, home: Home) -> None:
    with opener(home) as store:
        store.fleet()
        store.events()
        store.devices()


@OPENERS
def test_a_home_without_database_says_how_to_make_one(opener: Opener, tmp_path: Path) -> None:
    for home in (Home(tmp_path / "nowhere"), Home(tmp_path)):
        with pytest.raises(ConfigError) as caught:
            use(opener, home)
        assert "fedctl init" in caught.value.hint
        assert str(home.path) in caught.value.message
        assert not home.database.exists()


@OPENERS
def test_an_empty_file_is_no_fleet_and_init_can_be_run_again(opener: Opener, tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.database.touch()
    with pytest.raises(ConfigError, match="no fleet"):
        use(opener, home)
    with Store.create(home, FLEET) as store:
        assert store.fleet() == FLEET


@OPENERS
def test_a_newer_database_names_both_versions(opener: Opener, home: Home) -> None:
    with closing(sqlite3.connect(home.database)) as database:
        database.execute(f"PRAGMA user_version = {schema.latest_version() + 1}")
    with pytest.raises(ConfigError, match=r"has version 2; .* up to version 1") as caught:
        use(opener, home)
    assert "upgrade fedctl" in caught.value.hint


@OPENERS
@pytest.mark.parametrize("damage", ["garbage", "cut short", "directory"])
def test_a_damaged_database_is_named(opener: Opener, home: Home, damage: str) -> None:
    data = home.database.read_bytes()
    if damage == "garbage":
        home.database.write_bytes(os.urandom(4096))
    elif damage == "cut short":
        home.database.write_bytes(data[:5000])
    else:
        home.database.unlink()
        home.database.mkdir()
    with pytest.raises(ConfigError) as caught:
        use(opener, home)
    assert str(home.database) in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code is ExitCode.CONFIG


def test_a_row_that_cannot_be_read_is_an_error_of_the_file(home: Home) -> None:
    with Store.open(home) as store:
        store._write(
            """INSERT INTO device VALUES
            ('a', 'unix:///a', NULL, 'aa', 1, NULL, NULL, NULL, 'enrolled', 'now', NULL, 'no json', '')"""
        )
        with pytest.raises(ConfigError, match="a row that cannot be read"):
            store.devices()


def fill(store: Store) -> None:
    with store.transaction():
        store.add_model("har")
        for _ in range(200):
            store.add_event(actor="x", verb="x", subject="x" * 1000)


def test_a_full_disk_leaves_what_was_there(home: Home) -> None:
    with Store.open(home) as store:
        pages = store._number("PRAGMA page_count")
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(ConfigError, match="disk is full") as caught:
            fill(store)
        assert str(home.database) in caught.value.message
        assert store.models() == ()
        store.add_model("small")  # goes on once there is room


def test_a_write_lock_that_is_never_given_up_is_an_error(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "BUSY_TIMEOUT_S", 0.01)
    with (
        Store.open(home) as holder,
        Store.open(home) as other,
        holder.transaction(),
        pytest.raises(ConfigError, match="locked by another process"),
    ):
        other.add_model("har")


@pytest.fixture
def readonly_home() -> Iterator[Home]:
    """A home that this user may read but not write; root becomes `nobody` for the test."""
    with tempfile.TemporaryDirectory() as name:
        home = Home(Path(name) / "home")
        Store.create(home, FLEET).close()
        for path in (Path(name), home.path, home.database):
            path.chmod(0o755 if path.is_dir() else 0o644)
        home.path.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield home
        finally:
            os.seteuid(user)
            home.path.chmod(0o755)


def test_a_read_only_home_can_be_listed_but_not_changed(readonly_home: Home) -> None:
    with ReadStore.open(readonly_home) as store:
        assert store.fleet() == FLEET

    def write() -> None:
        with Store.open(readonly_home) as store:
            store.add_model("har")

    with pytest.raises(ConfigError, match="cannot be") as caught:
        write()
    assert str(readonly_home.database) in caught.value.message
    with pytest.raises(ConfigError, match="cannot be"):
        Store.create(Home(readonly_home.path / "sub"), FLEET)


def test_a_read_only_home_is_not_read_past_its_log(readonly_home: Home) -> None:
    log = readonly_home.path / "fedctl.db-wal"
    user = os.geteuid()
    os.seteuid(os.getuid())
    readonly_home.path.chmod(0o755)
    log.write_bytes(b"committed pages that only the log holds")
    readonly_home.path.chmod(0o555)
    os.seteuid(user)
    with pytest.raises(ConfigError, match="cannot be opened"):
        ReadStore.open(readonly_home)


def test_an_older_database_is_migrated_by_whoever_opens_it_first(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(db: object) -> None:
        db.execute("ALTER TABLE model ADD COLUMN colour TEXT")  # type: ignore[attr-defined]

    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, second))
    with ReadStore.open(home) as reader:
        assert reader._one(lambda row: row[0], "SELECT count(colour) FROM model") == 0
    with Store.open(home) as store:
        assert store._number("PRAGMA user_version") == 2


def test_a_migration_that_fails_changes_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(db: object) -> None:
        db.execute("CREATE TABLE half (x)")  # type: ignore[attr-defined]
        db.execute("CREATE TABLE half (x)")  # type: ignore[attr-defined]

    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(ConfigError):
            Store.open(home)
    with Store.open(home) as store:
        assert store._number("SELECT count(*) FROM sqlite_master WHERE name = 'half'") == 0


WRITER = """
import sys
from pathlib import Path
from fedctl.core.home import Home
from fedctl.store import Store
with Store.open(Home(Path(sys.argv[1]))) as store:
    for number in range(int(sys.argv[2])):
        with store.transaction():
            for part in ("a", "b"):
                store.add_event(actor=sys.argv[3], verb=part, subject=str(number))
        print(number, flush=True)
"""


def start_writer(home: Home, transactions: int, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(home.path), str(transactions), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("after", [1, 17, 60])
def test_a_killed_writer_leaves_whole_transactions(home: Home, after: int) -> None:
    with start_writer(home, 100_000, "victim") as writer:
        assert writer.stdout is not None
        for _ in range(after):
            confirmed = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
    with Store.open(home) as store:
        events = store.events()
        assert len(events) % 2 == 0
        assert len(events) // 2 > confirmed
        assert [e.subject for e in events if e.verb == "a"] == [e.subject for e in events if e.verb == "b"]
        check_chain(store.events())
        store.add_event(actor="next", verb="test", subject="goes on")


def test_many_processes_write_at_once_and_none_fails(home: Home) -> None:
    writers = [start_writer(home, 5, f"w{i}") for i in range(20)]
    results = [(writer.communicate()[1], writer.returncode) for writer in writers]
    assert results == [("", 0)] * 20
    with ReadStore.open(home) as store:
        assert len(store.events()) == 20 * 5 * 2
        check_chain(store.events())


def test_a_directory_in_the_place_of_the_database_is_called_one(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.database.mkdir(parents=True)
    for opened in (Store.open, ReadStore.open):
        with pytest.raises(ConfigError, match="is a directory") as caught:
            opened(home)
        assert "move it away" in caught.value.hint


def test_a_database_without_its_fleets_row_is_not_an_empty_home(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    Store.create(home, FLEET).close()
    with closing(sqlite3.connect(home.database)) as other:
        other.execute("DELETE FROM fleet")
        other.commit()
    with ReadStore.open(home) as store, pytest.raises(ConfigError, match="has lost its fleet") as caught:
        store.fleet()
    assert "backup" in caught.value.hint

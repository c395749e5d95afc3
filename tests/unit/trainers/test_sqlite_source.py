"""A recorder's database: views, strange names, locks, logs, and what is none."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedctl_agent.sources import LocalData, load, read_source, sqlite_table
from fedctl_agent.trainers import JobError
from fedctl_wire.messages import DataNeeds, TaskState

SOURCE = 'kind = "sqlite"\npath = "watch.db"\ntable = "samples"\nfeatures = ["hr", "steps"]\nlabel = "y"\n'


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "watch.db", isolation_level=None, check_same_thread=False)
    connection.execute("CREATE TABLE samples (hr REAL, steps INTEGER, y, note TEXT)")
    connection.executemany(
        "INSERT INTO samples VALUES (?, ?, ?, ?)",
        [(61.5, 10, 0, "a"), (None, 20, 1, None), ("63", "", "1", "c"), (64, 40, None, "d")],
    )
    yield connection
    connection.close()


def data(root: Path, text: str = SOURCE, features: int = 2) -> LocalData:
    (root / "recorder.toml").write_text(text)
    return load(read_source(root / "recorder.toml"), DataNeeds((features,), 2))


def test_numbers_texts_and_nulls(recorder: sqlite3.Connection, tmp_path: Path) -> None:
    found = data(tmp_path)
    np.testing.assert_array_equal(found.x, [[61.5, 10], [np.nan, 20], [63, np.nan]])
    assert found.y.tolist() == [0, 1, 1]
    assert recorder.execute("SELECT count(*) FROM samples").fetchone() == (4,)


def test_a_view_is_as_good_as_a_table(recorder: sqlite3.Connection, tmp_path: Path) -> None:
    recorder.execute(
        "CREATE VIEW days AS SELECT y, sum(steps) AS steps, avg(hr) AS hr FROM samples GROUP BY 0 + y"
    )
    assert len(data(tmp_path, SOURCE.replace("samples", "days")).y) == 2


def test_names_are_names_and_nothing_else(recorder: sqlite3.Connection, tmp_path: Path) -> None:
    evil = 'x"; DROP TABLE samples; --'
    quoted = evil.replace('"', '""')
    recorder.execute(f'CREATE TABLE "{quoted}" ("select" REAL, "a ""b""" REAL, y)')
    recorder.execute(f'INSERT INTO "{quoted}" VALUES (1, 2, 0)')  # noqa: S608
    text = SOURCE.replace('"samples"', f"'{evil}'").replace('["hr", "steps"]', "['select', 'a \"b\"']")
    np.testing.assert_array_equal(data(tmp_path, text).x, [[1, 2]])
    assert recorder.execute("SELECT count(*) FROM samples").fetchone() == (4,)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"samples"', '"sample"', "the table 'sample', which watch.db does not have"),
        ('"samples"', "'samples\" --'", "the table"),
        ('"steps"', '"step"', "the column 'step', which table 'samples' lacks"),
        ('"steps"', '"1"', "the column '1'"),
        ('"steps"', '"abs(hr)"', "the column 'abs\\(hr\\)'"),
        ('label = "y"', 'label = "z"', "the column 'z'"),
    ],
)
def test_a_name_that_is_not_there_is_no_constant(
    recorder: sqlite3.Connection, tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(JobError, match=f"^source 'recorder' names {message}") as caught:
        data(tmp_path, SOURCE.replace(old, new))
    assert (caught.value.code, caught.value.state) == ("schema", TaskState.REFUSED)
    assert recorder


def test_a_busy_database_is_waited_for(recorder: sqlite3.Connection, tmp_path: Path) -> None:
    recorder.execute("BEGIN EXCLUSIVE")
    done = threading.Timer(0.3, recorder.execute, ["COMMIT"])
    done.start()
    assert len(data(tmp_path).y) == 3
    done.join()


def test_one_that_stays_busy_is_named(
    recorder: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_table, "_BUSY_S", 0.05)
    recorder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(JobError, match=r"^watch\.db cannot be read: database is locked") as caught:
        data(tmp_path)
    assert caught.value.code == "data"


def test_a_recorder_in_wal_mode_is_not_held_up_and_its_log_counts(
    recorder: sqlite3.Connection, tmp_path: Path
) -> None:
    recorder.execute("PRAGMA journal_mode = WAL")
    recorder.execute("BEGIN IMMEDIATE")
    recorder.execute("INSERT INTO samples VALUES (70, 1, 0, '')")
    assert len(data(tmp_path).y) == 3
    recorder.execute("COMMIT")
    assert len(data(tmp_path).y) == 4


def test_nothing_is_written(recorder: sqlite3.Connection, tmp_path: Path) -> None:
    path = tmp_path / "watch.db"
    before = path.read_bytes(), path.stat().st_mtime_ns
    data(tmp_path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert recorder


AS_NOBODY = """
import os, sqlite3, sys
from pathlib import Path
import numpy
from fedctl_agent.sources import arrange, load, read_source, sqlite_table
from fedctl_wire.messages import DataNeeds
os.setgid(65534); os.setuid(65534)
directory = Path(sys.argv[1])
if len(sys.argv) > 2:  # somebody writes meanwhile
    check = sqlite_table._check
    def touch(*words):
        os.utime(directory / "watch.db")
        return check(*words)
    sqlite_table._check = touch
try:
    print(len(load(read_source(directory / "recorder.toml"), DataNeeds((2,), 2)).y))
except Exception as error:
    print(error)
"""


def as_nobody(directory: Path, *words: str) -> str:
    command = [sys.executable, "-c", AS_NOBODY, str(directory), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_user_who_may_only_read_reads_a_log_and_a_database_without_one() -> None:
    with tempfile.TemporaryDirectory() as name:  # not below pytest's, which only its owner may enter
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "recorder.toml").write_text(SOURCE)
        connection = sqlite3.connect(directory / "watch.db")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE samples (hr, steps, y)")
        connection.executemany("INSERT INTO samples VALUES (?, 1, 0)", [(i,) for i in range(30)])
        connection.commit()
        assert as_nobody(directory) == "30"
        connection.close()  # takes its log with it
        assert sorted(path.name for path in directory.iterdir()) == ["recorder.toml", "watch.db"]
        assert as_nobody(directory) == "30"
        os.chown(directory / "watch.db", 65534, 65534)
        assert as_nobody(directory, "touch").startswith("watch.db was written to while it was read: let ")
        (directory / "watch.db-wal").write_bytes(b"x" * 100)
        (directory / "watch.db-wal").chmod(0o600)
        assert "let the agent's user write to its directory" in as_nobody(directory)


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + b"\xff" * 2000, b"no database" * 100])
def test_what_is_no_database_is_bad_data(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "watch.db").write_bytes(content)
    with pytest.raises(JobError, match=r"watch\.db") as caught:
        data(tmp_path)
    assert caught.value.code == ("schema" if not content else "data")


def test_a_database_that_is_torn_in_the_middle(recorder: sqlite3.Connection, tmp_path: Path) -> None:
    recorder.execute("BEGIN")
    recorder.executemany("INSERT INTO samples VALUES (?, 1, 0, 'x')", [(i,) for i in range(5000)])
    recorder.execute("COMMIT")
    recorder.close()
    path = tmp_path / "watch.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:20_000] + os.urandom(40_000) + whole[60_000:])
    with pytest.raises(
        JobError, match=r"^watch\.db cannot be read: database disk image is malformed"
    ) as caught:
        data(tmp_path)
    assert caught.value.code == "data"


@pytest.mark.parametrize("kind", ["directory", "pipe", "device", "nothing"])
def test_a_path_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "watch.db"
    make = {
        "directory": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
    }
    make.get(kind, lambda: None)()
    with pytest.raises(JobError) as caught:
        data(tmp_path)
    assert caught.value.code == "source"


def test_a_view_runs_no_function_that_an_application_defined(
    recorder: sqlite3.Connection, tmp_path: Path
) -> None:
    recorder.execute("CREATE VIEW evil AS SELECT load_extension('x') AS hr, 1 AS steps, 0 AS y")
    with pytest.raises(JobError, match=r"^watch\.db cannot be read") as caught:
        data(tmp_path, SOURCE.replace("samples", "evil"))
    assert caught.value.code == "data"


def test_a_huge_value_is_refused_and_not_loaded(recorder: sqlite3.Connection, tmp_path: Path) -> None:
    recorder.execute("INSERT INTO samples VALUES (zeroblob(20000000), 1, 0, 'e')")
    with pytest.raises(JobError, match="it has a value of more than 1048576 bytes") as caught:
        data(tmp_path)
    assert caught.value.code == "data"


def test_a_huge_value_of_a_column_that_is_not_asked_for_does_not_matter(
    recorder: sqlite3.Connection, tmp_path: Path
) -> None:
    recorder.execute("INSERT INTO samples VALUES (65, 1, 0, zeroblob(20000000))")
    assert len(data(tmp_path).y) == 4

"""`GET /v1/data`, and the refusal of models that do not fit, by a real daemon over real files."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedctl_agent.daemon.data import Data
from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.daemon.logs import AgentLog
from fedctl_agent.daemon.policy import PolicyStore
from fedctl_wire.messages import DataNeeds, TaskKind
from tests.fakes.daemon_bed import Bed
from tests.fakes.unix_http import UnixConnection
from tests.integration.daemon.conftest import StartDaemon

NOON = 1_790_000_000
HEADER = "at,hr,steps,state\n"
SOURCE = 'kind = "csv"\npath = "../watch"\nfeatures = ["hr", "steps"]\nlabel = "state"\ntime = "at"\n'


def rows(count: int, *, first: int = 0) -> str:
    lines = [f"{NOON + 60 * i},{60 + i % 7}.25,{i},{int(i % 10 == 0)}\n" for i in range(first, first + count)]
    return "".join(lines)


@pytest.fixture
def bed(process_bed: Bed) -> Bed:
    watch = process_bed.state.path / "watch"
    watch.mkdir()
    (watch / "a.csv").write_text(HEADER + rows(60) + f"{NOON + 90_000},,7,1\n{NOON + 90_060},61,8,\n")
    (process_bed.state.sources / "recorder.toml").write_text(SOURCE)
    return process_bed


def asked(bed: Bed) -> dict[str, Any]:
    answer = bed.client("GET", "/data")
    assert answer.status == 200, answer.json
    (source,) = answer.json["sources"]
    found: dict[str, Any] = source
    return found


def test_it_tells_counts_schema_times_and_gaps_but_no_reading(bed: Bed, start_daemon: StartDaemon) -> None:
    start_daemon(bed)
    source = asked(bed)
    facts = source.pop("facts")
    assert source == {
        "source": "recorder",
        "kind": "csv",
        "features": ["hr", "steps"],
        "label": "state",
        "shape": [2],
        "classes": [],
        "rows": 62,
        "examples": 61,
        "training": 49,
        "error": None,
    }
    assert facts == {
        "first": "2026-09-21T14:13:20Z",
        "last": "2026-09-22T15:14:20Z",
        "spacing_s": 60.0,
        "gaps": 1,
        "gap_s": 180.0,
        "longest_gap_s": 86_460.0,
        "missing": {"hr": 1},
        "unreadable_rows": 0,
        "old_rows": 0,
        "unlabelled_rows": 1,
        "labels": {"0": 54, "1": 7},
    }


def test_the_policy_keeps_what_it_does_not_share(bed: Bed, start_daemon: StartDaemon) -> None:
    start_daemon(bed)
    bed.state.policy_local.write_text('{"min_examples": 100}')
    found = asked(bed)
    assert found["facts"]["labels"] is None
    assert found["facts"]["missing"] == {"hr": 1}
    bed.state.policy_local.write_text('{"share": ["metrics", "logs"]}')
    found = asked(bed)
    assert (found["facts"], found["rows"], found["shape"]) == (None, 62, [2])
    bed.state.policy_local.write_text('{"share": ["dat"]}')
    assert asked(bed)["facts"] is None


def test_an_answer_is_remembered_until_the_data_or_the_source_change(bed: Bed, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    program = tmp_path / "describe.py"
    program.write_text(
        f"import sys\nopen({str(calls)!r}, 'a').write('x')\n"
        "from fedctl_agent.sources.describe import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    data = Data(bed.state, AgentLog(bed.state.log), command=(sys.executable, str(program)))
    policy = PolicyStore(bed.state).effective()
    assert [data.report(policy).sources[0].rows for _ in range(3)] == [62] * 3
    assert calls.read_text() == "x"
    with (bed.state.path / "watch" / "a.csv").open("a") as stream:
        stream.write(rows(5, first=2000))
    assert data.report(policy).sources[0].rows == 67
    (bed.state.sources / "recorder.toml").write_text(SOURCE + 'missing = "drop"\n')
    assert data.report(policy).sources[0].examples == 65
    assert calls.read_text() == "xxx"


def test_a_recorders_database_is_read_while_it_writes(bed: Bed, start_daemon: StartDaemon) -> None:
    (bed.state.sources / "recorder.toml").write_text(
        SOURCE.replace("csv", "sqlite").replace("../watch", "../watch.db") + 'table = "samples"\n'
    )
    recorder = sqlite3.connect(bed.state.path / "watch.db")
    recorder.execute("PRAGMA journal_mode = WAL")
    recorder.execute("CREATE TABLE samples (at, hr, steps, state)")
    insert = "INSERT INTO samples VALUES (?, 60, 1, 0)"
    recorder.executemany(insert, [(NOON + i,) for i in range(30)])
    recorder.commit()
    start_daemon(bed)
    assert asked(bed)["rows"] == 30
    recorder.execute(insert, (NOON + 30,))  # not committed: the daemon must neither wait nor see it
    assert asked(bed)["rows"] == 30
    recorder.commit()
    assert asked(bed)["rows"] == 31  # though it is in the log only
    recorder.close()


def test_bad_sources_are_told_side_by_side_with_good_ones(bed: Bed, start_daemon: StartDaemon) -> None:
    (bed.state.sources / "broken.toml").write_text("kind = ")
    (bed.state.sources / "gone.toml").write_text(SOURCE.replace("watch", "nowhere"))
    start_daemon(bed)
    found = {source["source"]: source for source in bed.client("GET", "/data").json["sources"]}
    assert list(found) == ["broken", "gone", "recorder"]
    assert found["broken"]["kind"] is None
    assert found["broken"]["error"]["code"] == "source"
    assert "does not exist" in found["gone"]["error"]["message"]
    assert found["recorder"]["rows"] == 62


def test_only_an_operator_of_an_enrolled_device_may_ask(start_daemon: StartDaemon, tmp_path: Path) -> None:
    fresh = Bed(tmp_path / "fresh")
    start_daemon(fresh)
    assert fresh.client("GET", "/data").code == "not_enrolled"


def test_the_daemon_itself_loads_no_numpy_for_it(bed: Bed, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(bed)
    asked(bed)
    maps = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert "numpy" not in maps
    assert "libsqlite3" not in maps


def test_data_that_take_too_long_are_given_up_and_their_process_is_gone(bed: Bed, tmp_path: Path) -> None:
    program = tmp_path / "forever.py"
    program.write_text(
        "import os, pathlib, signal\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\nsignal.pause()\n"
    )
    data = Data(bed.state, AgentLog(bed.state.log), command=(sys.executable, str(program)), deadline_s=2)
    with pytest.raises(ApiError, match="could not be read in 2 s") as caught:
        data.report(PolicyStore(bed.state).effective())
    assert (caught.value.status, caught.value.code) == (503, "slow")
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_the_process_that_counts_ends_with_its_daemon(bed: Bed, start_daemon: StartDaemon) -> None:
    (bed.state.sources / "recorder.toml").write_text(
        SOURCE.replace("csv", "sqlite").replace("../watch", "../watch.db") + 'table = "samples"\n'
    )
    recorder = sqlite3.connect(bed.state.path / "watch.db", isolation_level=None)
    recorder.execute("CREATE TABLE samples (at, hr, steps, state)")
    recorder.execute("BEGIN EXCLUSIVE")  # whoever counts now waits
    daemon = start_daemon(bed)
    connection = UnixConnection(bed.state.socket)
    connection.request("GET", "/v1/data")
    deadline = time.monotonic() + 20
    while not (found := children_of(daemon.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    daemon.kill()
    while any(map(alive, found)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    connection.close()
    recorder.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


# ------------------------------------------------------------------ does a model fit?


def refusal(bed: Bed, needs: DataNeeds, model: str = "har") -> str | None:
    data = Data(bed.state, AgentLog(bed.state.log))
    try:
        data.require_fit(model, needs)
    except ApiError as error:
        return f"{error.status} {error.code}"
    return None


def test_a_model_that_needs_other_data_is_refused_by_what_the_source_says(bed: Bed) -> None:
    assert refusal(bed, DataNeeds((2,), 2)) is None
    assert refusal(bed, DataNeeds((2,), 2, ("steps", "hr"))) is None
    assert refusal(bed, DataNeeds((1,), 2, ("hr",))) is None
    assert refusal(bed, DataNeeds((3,), 2)) == "403 schema"
    assert refusal(bed, DataNeeds((2, 8), 2)) == "403 schema"
    assert refusal(bed, DataNeeds((2,), 2, ("hr", "spo2"))) == "403 schema"
    (bed.state.sources / "other.toml").write_text(SOURCE)
    assert refusal(bed, DataNeeds((2,), 2)) == "403 no_source"


def test_a_column_that_the_files_do_not_have_refuses_too(bed: Bed) -> None:
    (bed.state.path / "watch" / "a.csv").write_text("at,hr,state\n")
    assert refusal(bed, DataNeeds((2,), 2)) == "403 schema"


def test_the_shape_of_arrays_is_looked_up(bed: Bed) -> None:
    import numpy as np

    (bed.state.sources / "recorder.toml").write_text(
        'kind = "npz"\npath = "../watch"\nfeatures = "x"\nlabel = "y"\n'
    )
    assert refusal(bed, DataNeeds((9, 128), 6)) is None  # no data yet: the job will say so
    np.savez(bed.state.path / "watch" / "a.npz", x=np.zeros((4, 9, 128), np.float32), y=np.zeros(4, np.int64))
    assert refusal(bed, DataNeeds((9, 128), 6)) is None
    assert refusal(bed, DataNeeds((9, 64), 6)) == "403 schema"
    assert refusal(bed, DataNeeds((237,), 6)) == "403 schema"
    assert refusal(bed, DataNeeds((2, 128), 6, ("x", "y"))) == "403 schema"  # by names, which arrays lack


def test_a_task_that_does_not_fit_is_refused_before_its_model_is_asked_for(
    bed: Bed, start_daemon: StartDaemon
) -> None:
    start_daemon(bed)
    wide, fitting = DataNeeds((3,), 2), DataNeeds((2,), 2)
    for kind in (TaskKind.GOLDEN, TaskKind.STATS, TaskKind.TRAIN):
        plan = {"kinds": (kind,), "base": "ab" * 32}
        answer = bed.put_task(bed.request("ab" * 32, kind, needs=wide, **plan))
        assert (answer.status, answer.code) == (403, "schema")
        assert answer.json["message"] == "source 'recorder' gives 2 features, the model takes 3 features"
        answer = bed.put_task(bed.request("ab" * 32, kind, needs=fitting, **plan))
        assert (answer.status, answer.code) == (409, "no_model")
    (bed.state.sources / "recorder.toml").unlink()
    answer = bed.put_task(bed.request("ab" * 32, needs=fitting))
    assert (answer.status, answer.code) == (403, "no_source")
    answer = bed.put_task(bed.request("ab" * 32))  # a plan that does not say what it needs
    assert (answer.status, answer.code) == (409, "no_model")


def test_names_and_counts_are_all_that_a_report_holds(bed: Bed, start_daemon: StartDaemon) -> None:
    (bed.state.path / "watch" / "a.csv").write_text(HEADER + f"{NOON},secret-4711,1,0\n" * 20)
    start_daemon(bed)
    answer = json.dumps(bed.client("GET", "/data").json)
    assert "a.csv row 2: column 'hr' cannot be read" in answer
    assert "4711" not in answer

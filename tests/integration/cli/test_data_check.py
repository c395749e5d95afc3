"""`data check` over real agents, whose data lie in text files, a database and arrays."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedctl.cli.data_views import checked
from fedctl.ops.data import DataCheck
from tests.fleet import FEATURES, MODEL, TestAgent, TestFleet, fleet

NAMES = [f"f{i}" for i in range(FEATURES)]
COLUMNS = ",".join(["at", *NAMES, "anomaly"])
SOURCE = f'path = "../watch"\nfeatures = {json.dumps(NAMES)}\nlabel = "anomaly"\ntime = "at"\n'


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestFleet]:
    """dev-1: text files, good; dev-2: a database with problems; dev-3: arrays."""
    with fleet(tmp_path_factory.mktemp("fleet"), train=3, holdout=0) as ready:
        write_csv(ready.agents["dev-1"])
        write_sqlite(ready.agents["dev-2"])
        yield ready


def samples(count: int, *, positive_every: int) -> list[list[Any]]:
    first = int(time.time()) - 240 - 60 * count

    def row(i: int) -> list[Any]:
        cells = [((i * 7919 + f * 104_729) % 1000) / 500 - 1 for f in range(FEATURES)]
        return [first + 60 * i, *cells, int(i % positive_every == 0)]

    return [row(i) for i in range(count)]


def write_csv(agent: TestAgent) -> None:
    watch = agent.state / "watch"
    watch.mkdir()
    lines = [COLUMNS, *(",".join(map(str, row)) for row in samples(200, positive_every=4))]
    (watch / "a.csv").write_text("\n".join(lines) + "\n")
    (agent.state / "sources" / "recorder.toml").write_text('kind = "csv"\n' + SOURCE)


def write_sqlite(agent: TestAgent) -> None:
    rows = samples(100, positive_every=50)
    for row in rows[:40]:
        row[2] = None
    rows[0][0] -= 90_000
    recorder = sqlite3.connect(agent.state / "watch")
    recorder.execute("PRAGMA journal_mode = WAL")
    recorder.execute(f"CREATE TABLE beats ({COLUMNS})")
    recorder.executemany(f"INSERT INTO beats VALUES ({','.join('?' * (FEATURES + 2))})", rows)  # noqa: S608
    recorder.commit()
    recorder.close()
    (agent.state / "sources" / "recorder.toml").write_text('kind = "sqlite"\ntable = "beats"\n' + SOURCE)


def test_one_device_in_sentences(three: TestFleet) -> None:
    done = three.cli("data", "check", "dev-1")
    assert done.returncode == 0, done.stderr
    first, source, *verdicts = done.stdout.splitlines()
    assert first == "dev-1"
    assert source.startswith('  source "recorder"   200 rows, 3 h, last one ')
    assert source.endswith(" min ago")
    assert verdicts == [
        f"  ✓ schema fits {MODEL}@1",
        '  ✓ label "anomaly": 25.0 % positive (50)',
        "  ✓ no cell missing",
        "  ✓ no gaps over 3 min",
    ]


def test_the_fleet_in_a_table_with_what_is_to_be_looked_at_below(three: TestFleet) -> None:
    done = three.cli("data", "check")
    assert done.returncode == 0, done.stderr
    title, *rows = done.stdout.splitlines()[:4]
    assert title.split()[:3] == ["name", "source", "examples"]
    assert [row.split()[:2] for row in rows] == [["dev-1", "✓"], ["dev-2", "!"], ["dev-3", "✓"]]
    assert 'dev-2: ! label "anomaly": 2.0 % positive (2)' in done.stdout
    assert "! 6.7 % of cells missing, most of f1" in done.stdout
    assert "! 1 gap over 3 min, the longest 25 h" in done.stdout


def test_json_has_all_of_it(three: TestFleet) -> None:
    done = three.cli("data", "check", "dev-2", "dev-3", "-o", "json")
    two, three_ = json.loads(done.stdout)["devices"]
    (source,) = two["sources"]
    assert (two["name"], two["usable"], two["min_examples"], two["error"]) == ("dev-2", True, 20, None)
    assert (source["kind"], source["shape"], source["rows"], source["training"]) == (
        "sqlite",
        [FEATURES],
        100,
        80,
    )
    assert source["facts"]["labels"] == {"0": 98, "1": 2}
    assert source["facts"]["missing"] == {"f1": 40}
    assert {f["subject"]: f["mark"] for f in source["findings"]} == {
        "schema": "good",
        "labels": "note",
        "missing": "note",
        "gaps": "note",
    }
    assert three_["sources"][0]["facts"]["first"] is None
    assert three.cli("data", "check", "-o", "name").stdout == "dev-1\ndev-2\ndev-3\n"


def test_a_model_that_does_not_fit_is_partial(three: TestFleet) -> None:
    words = ["--builder", "mlp", "--input", "9", "--hidden", "4", "--classes", "2"]
    made = three.cli("model", "create", "wide", *words)
    assert made.returncode == 0, made.stderr
    done = three.cli("data", "check", "dev-1", "dev-3", "--model", "wide")
    assert done.returncode == 3
    assert done.stdout.count("does not fit wide@1: examples of 6 features, the model takes 9 features") == 2
    assert three.cli("data", "check", "dev-1", "--model", "no-such").returncode == 5
    unnamed = three.cli("data", "check", "dev-1")  # two models, none named: nothing to hold against
    assert unnamed.returncode == 0
    assert "schema fits" not in unnamed.stdout
    said = " ".join(unnamed.stderr.split())
    assert said == f"fit is not checked, there are several models ({MODEL}, wide): name one by --model"


def test_a_policy_that_shares_no_data_keeps_them(three: TestFleet) -> None:
    policy = three.agents["dev-1"].state / "policy.local.json"
    policy.write_text('{"share": ["metrics"]}')
    done = three.cli("data", "check", "dev-1", "--model", MODEL)
    policy.unlink()
    assert done.returncode == 0
    assert "! its policy keeps times, labels and gaps to itself" in done.stdout
    assert "label" not in done.stdout.replace("labels", "")


def test_a_device_without_a_source_is_told_what_its_kind_can_do(three: TestFleet) -> None:
    (source,) = (three.agents["dev-3"].state / "sources").glob("*.toml")
    text = source.read_text()
    source.unlink()
    try:
        done = three.cli("data", "check", "dev-3", "--model", MODEL)
    finally:
        source.write_text(text)
    assert "put a TOML into sources/ of its agent's state directory" in done.stdout
    assert "--source" not in done.stdout  # which devices on Unix sockets and HTTPS do not take


def test_a_device_with_a_login_is_told_of_the_source_that_travels() -> None:
    lines = list(checked([DataCheck(device="watch-02", scheme="ssh")]).blocks[0])  # type: ignore[call-overload]
    assert lines[1] == (
        "  ✗ no source of data: put a TOML there, or fedctl devices add watch-02 URL --source FILE"
    )


def test_devices_that_do_not_answer(three: TestFleet) -> None:
    three.agents["dev-3"].kill()
    try:
        assert three.cli("data", "check").returncode == 3
        gone = three.cli("data", "check", "dev-3", "-o", "json")
        assert gone.returncode == 4
        assert json.loads(gone.stdout)["devices"][0]["error"]["code"] == "agent_down"
        assert three.cli("data", "check", "dev-9").returncode == 5
    finally:
        three.agents["dev-3"].start()


def test_a_source_file_is_tried_on_this_machine(three: TestFleet, tmp_path: Path) -> None:
    data = tmp_path / "watch"
    data.mkdir()
    (data / "a.csv").write_text("hr,state\n" + "61,calm\n62,calm\n,ill\n" * 10)
    source = tmp_path / "recorder.toml"
    source.write_text(
        'kind = "csv"\npath = "watch"\nfeatures = ["hr"]\nlabel = "state"\nclasses = ["calm", "ill"]\n'
    )
    done = three.cli("data", "check", "--source", str(source))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "this machine",
        '  source "recorder"   30 rows',
        '  ✓ label "state": 2 classes, ill the rarest with 33.3 %',
        "  ! 33.3 % of cells missing, most of hr",
    ]
    source.write_text(source.read_text().replace('"hr"', '"pulse"'))
    done = three.cli("data", "check", "--source", str(source), "-o", "json")
    assert done.returncode == 3
    assert "names the column 'pulse', which a.csv does not have" in done.stdout
    source.write_text("kind = ")
    assert three.cli("data", "check", "--source", str(source)).returncode == 2
    assert three.cli("data", "check", "dev-1", "--source", str(source)).returncode == 2

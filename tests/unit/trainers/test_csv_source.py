"""Text files as people and recorders leave them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedctl_agent.sources import LocalData, csv_table, load, read_source
from fedctl_agent.trainers import JobError
from fedctl_wire.messages import DataNeeds, TaskState

SOURCE = 'kind = "csv"\npath = "data"\nfeatures = ["hr", "steps"]\nlabel = "y"\n'


def data(
    root: Path, text: str | bytes, settings: str = "", *, name: str = "a.csv", classes: int = 2
) -> LocalData:
    (root / "data").mkdir(exist_ok=True)
    path = root / "data" / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (root / "watch.toml").write_text(SOURCE + settings)
    return load(read_source(root / "watch.toml"), DataNeeds((2,), classes), now=1.79e9)


def many(line: str, good: str = "60,1,0", count: int = 20) -> str:
    return "hr,steps,y\n" + f"{good}\n" * count + line


@pytest.mark.parametrize(
    "text",
    [
        "hr,steps,y\n61,10,0\n62,20,1\n",
        "hr,steps,y\r\n61,10,0\r\n62,20,1\r\n",
        "hr,steps,y\n61,10,0\n62,20,1",  # without an end of its last line
        "\ufeffhr,steps,y\n61,10,0\n62,20,1\n",
        'note,y,steps,"hr"\n"a, ""b""\nc",0,10,61\nd,1,20,62\n',
        " hr , steps , y \n 61 , 10.0 , 0 \n 62, 2e1, 1.0\n",
        "hr,steps,y\n\n61,10,0\n\n62,20,1\n\n",
    ],
)
def test_what_a_table_may_look_like(tmp_path: Path, text: str) -> None:
    found = data(tmp_path, text)
    np.testing.assert_array_equal(found.x, [[61, 10], [62, 20]])
    assert found.y.tolist() == [0, 1]


def test_another_delimiter_and_labels_in_words(tmp_path: Path) -> None:
    text = "hr;steps;y\n61;10;calm\n62;20;ill\n63;30;\n"
    found = data(tmp_path, text, 'delimiter = ";"\nclasses = ["calm", "ill"]\n')
    assert found.y.tolist() == [0, 1]
    assert (
        data(tmp_path, text.replace(";", "\t"), 'delimiter = "\\t"\nclasses = ["calm", "ill"]\n').train == 2
    )


@pytest.mark.parametrize(
    "cell", ["", " ", "NA", "nan", "NULL", "None", "?", "n/a", "-", "inf", "1e99", "-1", "error"]
)
def test_every_way_to_write_nothing(tmp_path: Path, cell: str) -> None:
    found = data(tmp_path, f"hr,steps,y\n{cell},10,0\n62,20,1\n", 'missing_values = [-1, "Error"]\n')
    np.testing.assert_array_equal(found.x, [[np.nan, 10], [62, 20]])


@pytest.mark.parametrize(
    "line",
    [
        "61,10\n",
        "61,10,0,7\n",
        "sixty,10,0\n",
        "61,10,ill\n",
        "61,10,0.5\n",
        "61,10,-3\n",
        "\0\0\0,\0,\0\n",
        "6",
    ],
)
def test_a_torn_or_strange_line_is_left_out(tmp_path: Path, line: str) -> None:
    assert len(data(tmp_path, many(line)).y) == 20


def test_many_such_lines_are_bad_data_which_names_the_first_and_quotes_none(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"^a\.csv row 4: column 'steps' cannot be read, as 2 rows$") as caught:
        data(tmp_path, many("61,secret,0\n" * 2, count=2))
    assert (caught.value.code, caught.value.state) == ("data", TaskState.FAILED)
    with pytest.raises(JobError, match=r"^a\.csv row 3: it has 2 cells, the header 3"):
        data(tmp_path, many("61,1\n", count=1))


def test_files_are_read_in_the_order_of_their_names_whatever_the_order_of_their_columns(
    tmp_path: Path,
) -> None:
    data(tmp_path, "y,steps,hr\n1,20,62\n", name="b.csv")
    data(tmp_path, "", name="c.csv")  # made, but nothing written yet
    data(tmp_path, "hr,steps,y\n", name="d.csv")
    found = data(tmp_path, "hr,steps,y\n61,10,0\n", name="a.csv")
    np.testing.assert_array_equal(found.x, [[61, 10], [62, 20]])


def test_a_column_that_one_file_lacks_or_has_twice(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"'steps', which a\.csv does not have") as caught:
        data(tmp_path, "hr,y\n61,0\n")
    assert (caught.value.code, caught.value.state) == ("schema", TaskState.REFUSED)
    with pytest.raises(JobError, match=r"^a\.csv has the column 'hr' twice") as caught:
        data(tmp_path, "hr,steps,hr,y\n61,0,1,0\n")
    assert caught.value.code == "data"


@pytest.mark.parametrize("text", ["", "hr,steps,y\n", "hr,steps,y\n1,2,\n"])
def test_tables_without_examples_are_no_data(tmp_path: Path, text: str) -> None:
    with pytest.raises(JobError, match="holds no examples") as caught:
        data(tmp_path, text)
    assert (caught.value.code, caught.value.state) == ("no_data", TaskState.REFUSED)


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [
        ("1790000000", 1.79e9),
        ("1790000000123", 1790000000.123),
        ("2026-09-21T14:13:20Z", 1.79e9),
        ("2026-09-21 16:13:20+02:00", 1.79e9),
        ("2026-09-21T14:13:20", 1.79e9),
        ("2026-09-21", 1789948800.0),
    ],
)
def test_ways_to_write_a_time(tmp_path: Path, cell: str, seconds: float) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text(f"at,hr,steps,y\n{cell},1,2,0\n")
    (tmp_path / "watch.toml").write_text(SOURCE + 'time = "at"\n')
    rows = csv_table.read(read_source(tmp_path / "watch.toml"), None, None)
    assert rows.time is not None
    assert rows.time.tolist() == [seconds]


def times(root: Path, *cells: str, settings: str = "") -> list[float]:
    (root / "data").mkdir()
    (root / "data" / "a.csv").write_text("at,hr,steps,y\n" + "".join(f"{cell},1,2,0\n" for cell in cells))
    (root / "watch.toml").write_text(SOURCE + 'time = "at"\n' + settings)
    rows = csv_table.read(read_source(root / "watch.toml"), None, None)
    assert rows.time is not None
    return rows.time.tolist()


@pytest.mark.parametrize("cells", [("20240131", "20240201"), ("20240131.0", "20240201.0")])
def test_dates_without_separators_are_dates_and_not_seconds_of_1970(
    tmp_path: Path, cells: tuple[str, ...]
) -> None:
    assert times(tmp_path, *cells) == [1706659200.0, 1706745600.0]


def test_old_dates_without_separators_are_not_taken_for_older_ones(tmp_path: Path) -> None:
    text = "at,hr,steps,y\n20260901,1,2,0\n20250901,1,2,0\n"
    assert len(data(tmp_path, text, 'time = "at"\nmax_age_days = 60\n').y) == 1


def test_numbers_that_only_partly_read_as_dates_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="'at' begins with numbers that read as dates") as caught:
        times(tmp_path, "20240131", "20240132")
    assert caught.value.code == "data"


def test_seconds_that_pass_through_numbers_like_dates_stay_seconds(tmp_path: Path) -> None:
    assert times(tmp_path, "20240100", "20240101", "20240102") == [20240100.0, 20240101.0, 20240102.0]


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"^a\.csv has a line of more than 1048576 characters"):
        data(tmp_path, "hr,steps,y\n" + "1" * 3_000_000)
    with pytest.raises(JobError, match=r"^a\.csv cannot be read: field larger than field limit"):
        data(tmp_path, 'hr,steps,y\n"' + "1\n" * 300_000)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    (tmp_path / "data").mkdir()
    odd = tmp_path / "data" / "b.csv"
    os.mkfifo(odd) if kind == "pipe" else odd.symlink_to("/dev/zero")
    with pytest.raises(JobError, match=r"b\.csv is not a regular file"):
        data(tmp_path, "hr,steps,y\n61,10,0\n")


MEMORY = """
import resource, sys
from pathlib import Path
from fedctl_agent.sources import load, read_source, csv_table, arrange
from fedctl_wire.messages import DataNeeds
load(read_source(Path(sys.argv[1])), DataNeeds((2,), 2), now=1.79e9)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = load(read_source(Path(sys.argv[2])), DataNeeds((2, 64), 2), now=1.79e9)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024, data.x.nbytes, len(data.x))
"""


def test_memory_is_about_that_of_the_arrays(tmp_path: Path) -> None:
    rows = 200_000
    text = "at,hr,steps,y\n" + "".join(
        f"{1.78e9 + (i * 7919) % rows},{i % 97}.5,{i % 7},{i & 1}\n" for i in range(rows)
    )
    data(tmp_path, many(""))
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "a.csv").write_text(text)
    big = tmp_path / "big.toml"
    big.write_text(
        SOURCE.replace('"data"', '"big"')
        + 'time = "at"\nwindow = 64\nstride = 16\nsplit = "random"\nscale = "person"\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "watch.toml"), str(big)],
        check=True,
        capture_output=True,
        text=True,
    )
    grown, arrays, windows = map(int, done.stdout.split())
    assert windows > 10_000
    samples = rows * (2 * 4 + 8 + 8)  # cells, label, time
    assert grown < 1.3 * arrays + 3 * samples  # windows share samples; orders of rows come and go


def test_more_rows_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from fedctl_agent.sources import load, read_source, rows\n"
        "from fedctl_wire.messages import DataNeeds\n"
        "rows._ARRAY_BYTES = 20_000\n"
        "load(read_source(Path(sys.argv[1])), DataNeeds((2,), 2))"
    )
    data(tmp_path, many("", count=5000))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "watch.toml")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "source 'watch' has more than 20000 bytes of rows" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)

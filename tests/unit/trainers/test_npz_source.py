"""Local data: the source file, the choice among several, and every kind of bad .npz."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedctl_agent.sources import LocalData, choose_source, local_data, npz, read_source, rows
from fedctl_agent.trainers import JobError
from fedctl_wire.messages import TaskState
from tests.unit.trainers.jobs import Bench

GOOD = 'kind = "npz"\npath = "here"\nfeatures = "x"\nlabel = "y"\n'


def load(bench: Bench) -> LocalData:
    return local_data(bench.sources, bench.manifest)


def test_files_are_read_in_the_order_of_their_names(bench: Bench) -> None:
    bench.source()
    later, earlier = bench.examples(5, name="b.npz", seed=1), bench.examples(7, name="a.npz", seed=2)
    (bench.data / "notes.txt").write_text("not data")
    data = load(bench)
    np.testing.assert_array_equal(data.x, np.concatenate([earlier[0], later[0]]))
    np.testing.assert_array_equal(data.y, np.concatenate([earlier[1], later[1]]))
    assert (data.x.dtype, data.y.dtype, data.train) == (np.float32, np.int64, 9)


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2", ">f4"])
@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_are_what_numpy_reads(bench: Bench, dtype: str, *, compressed: bool) -> None:
    bench.source()
    x, y = bench.examples(30)
    save = np.savez_compressed if compressed else np.savez
    for order, labels in (("C", y.astype("u1")), ("F", y.astype(">i8"))):
        save(bench.data / "a.npz", x=np.asarray(x, dtype, order=order), y=labels)
        data = load(bench)
        np.testing.assert_array_equal(data.x, x.astype(dtype).astype(np.float32))
        np.testing.assert_array_equal(data.y, y)


def test_an_array_that_is_cut_short_is_bad_data(bench: Bench) -> None:
    bench.source()
    bench.examples(30)
    with np.load(bench.data / "a.npz") as held:
        arrays = {name: io.BytesIO() for name in held.files}
        for name, stream in arrays.items():
            np.save(stream, held[name])
    with zipfile.ZipFile(bench.data / "a.npz", "w") as archive:
        for name, stream in arrays.items():
            archive.writestr(f"{name}.npy", stream.getvalue()[:-1])
    with pytest.raises(JobError, match=r"^a\.npz cannot be read: an array is cut short") as caught:
        load(bench)
    assert caught.value.code == "data"


def test_the_last_fraction_is_the_test_part(bench: Bench) -> None:
    bench.source(test_fraction=0.25)
    x, _ = bench.examples(40)
    data = load(bench)
    np.testing.assert_array_equal(data.training(20).x, x[:30])
    np.testing.assert_array_equal(data.test(20).x, x[30:])
    np.testing.assert_array_equal(data.everything(20).x, x)


def test_a_source_may_be_one_file_with_a_fifth_as_default_test_part(bench: Bench) -> None:
    bench.source('kind = "npz"\npath = "../data/a.npz"\nfeatures = "x"\nlabel = "y"\n')
    bench.examples(10)
    bench.examples(10, name="b.npz")
    data = load(bench)
    assert (len(data.y), data.train) == (10, 8)


def test_no_test_part(bench: Bench) -> None:
    bench.source('kind = "npz"\npath = "../data"\nfeatures = "x"\nlabel = "y"\ntest_fraction = 0\n')
    bench.examples(10)
    data = load(bench)
    assert data.train == 10
    with pytest.raises(JobError, match="'recorder' has no examples for this task") as caught:
        data.test(1)
    assert (caught.value.code, caught.value.state) == ("no_data", TaskState.REFUSED)


def test_too_few_examples_are_refused_by_policy(bench: Bench) -> None:
    bench.source(test_fraction=0.25)
    bench.examples(24)
    data = load(bench)
    assert len(data.test(24).y) == 6  # the whole source counts
    with pytest.raises(JobError, match="fewer than 19 examples") as caught:
        data.training(19)
    assert (caught.value.code, caught.value.state) == ("policy", TaskState.REFUSED)


def test_an_absolute_path_is_taken_as_it_is(bench: Bench) -> None:
    bench.source(GOOD.replace("here", str(bench.data)))
    bench.examples(4)
    assert len(load(bench).y) == 4


def test_missing_cells_stay_missing_and_infinite_ones_become_so(bench: Bench) -> None:
    bench.source()
    x = np.array([[1, np.nan, 2], [np.inf, -np.inf, 1e300]])
    bench.examples(x=x, y=np.array([0, 1]))
    np.testing.assert_array_equal(load(bench).x, [[1, np.nan, 2], [np.nan] * 3])


def test_a_file_without_rows_among_others_is_no_fault(bench: Bench) -> None:
    bench.source()
    bench.examples(0)
    bench.examples(3, name="b.npz")
    assert len(load(bench).y) == 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(4, np.float32)}, r"'x' is float32\[4\]"),
        ({"x": np.zeros((4, 3, 1), np.float32)}, r"'x' is float32\[4, 3, 1\]"),
        ({"x": np.zeros((4, 3), np.int16)}, "'x' is int16"),
        ({"y": np.zeros((4, 1), np.int64)}, r"'y' is int64\[4, 1\]"),
        ({"y": np.zeros(4)}, "'y' is float64"),
        ({"y": np.array(["a"] * 4)}, "'y' is <U1"),
        ({"y": np.zeros(3, np.int64)}, "4 rows of features, but 3 labels"),
        ({"y": np.array([0, 1, 2, 0])}, "'y' has labels outside 0 to 1"),
        ({"y": np.array([0, 1, -1, 0])}, "'y' has labels outside 0 to 1"),
        ({"y": np.array([0, 1, 2**64 - 1, 0], np.uint64)}, "'y' has labels outside 0 to 1"),
    ],
)
def test_bad_arrays_name_the_file(bench: Bench, arrays: dict[str, Any], message: str) -> None:
    bench.source()
    bench.examples(4, **arrays)
    with pytest.raises(JobError, match=rf"^a\.npz: {message}") as caught:
        load(bench)
    assert (caught.value.code, caught.value.state) == ("data", TaskState.FAILED)


def test_arrays_of_another_shape_are_a_refusal(bench: Bench) -> None:
    bench.source()
    bench.examples(4, x=np.zeros((4, 2), np.float32))
    with pytest.raises(JobError, match="'recorder' gives 2 features, the model takes 3 features") as caught:
        load(bench)
    assert (caught.value.code, caught.value.state) == ("schema", TaskState.REFUSED)


def npz_bytes(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **{"x": np.zeros((50, 3), np.float32), "y": np.zeros(50, np.uint8), **arrays})
    return stream.getvalue()


class Tripwire:
    """Leaves a mark when it is unpickled."""

    sprung = False

    def __reduce__(self) -> Any:
        return (setattr, (Tripwire, "sprung", True))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a zip",
        npz_bytes()[:200],
        npz_bytes()[:-30],
        npz_bytes().replace(b"PK\x01\x02", b"PK\x09\x09"),
        npz_bytes(x=np.array([Tripwire()] * 3, object)),
        pickle.dumps(Tripwire()),
        npz_bytes()[:60] + b"\xff" * 40 + npz_bytes()[100:],
    ],
    ids=["empty", "text", "cut early", "cut late", "bad directory", "pickled array", "pickle", "bad data"],
)
def test_bad_files_are_named_and_never_unpickled(bench: Bench, content: bytes) -> None:
    bench.source()
    (bench.data / "a.npz").write_bytes(content)
    with pytest.raises(JobError, match=r"^a\.npz cannot be read") as caught:
        load(bench)
    assert caught.value.code == "data"
    assert not Tripwire.sprung


def test_a_missing_array_is_named(bench: Bench) -> None:
    bench.source(GOOD.replace("here", "../data").replace('"x"', '"x_feat"'))
    bench.examples(4)
    with pytest.raises(JobError, match=r"a\.npz has no array 'x_feat'"):
        load(bench)


def test_an_empty_directory_and_empty_files_are_no_data(bench: Bench) -> None:
    bench.source()
    with pytest.raises(JobError, match=r"holds no \.npz file") as caught:
        load(bench)
    assert (caught.value.code, caught.value.state) == ("no_data", TaskState.REFUSED)
    bench.examples(0)
    with pytest.raises(JobError, match="holds no examples") as caught:
        load(bench)
    assert (caught.value.code, caught.value.state) == ("no_data", TaskState.REFUSED)


def test_a_path_that_is_not_there(bench: Bench) -> None:
    bench.source(GOOD)
    with pytest.raises(JobError, match=r"sources/here does not exist") as caught:
        load(bench)
    assert caught.value.code == "source"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "mode = 1\n", "unknown key 'mode'"),
        (GOOD.replace("npz", "zip"), "kind 'zip' is not one of npz, csv, sqlite"),
        (GOOD.replace('label = "y"\n', ""), "lacks the key 'label'"),
        (GOOD.replace('"y"', "1"), "'label' is not a str"),
        (GOOD + 'test_fraction = "0.2"\n', "'test_fraction' is not a number"),
        (GOOD + "test_fraction = true\n", "'test_fraction' is not a number"),
        (GOOD + "test_fraction = 1\n", "not at least 0 and below 1"),
        (GOOD + "test_fraction = 1.0\n", "not at least 0 and below 1"),
        (GOOD + "test_fraction = -0.1\n", "not at least 0 and below 1"),
        (GOOD + "test_fraction = nan\n", "not at least 0 and below 1"),
        ("kind = ", "cannot be read"),
        ("#" * 70_000, "larger than 16384 bytes"),
        ("x = " + "[" * 15_000, "is nested too deeply"),
        (".".join("a" * 8_000) + " = 1\n", "unknown key 'a'"),
        (GOOD + "k" * 15_000 + " = 1\n", "unknown key 'k{200}…'$"),
        (GOOD.replace("npz", "z" * 15_000), "kind 'z{200}…' is not one of npz, csv, sqlite$"),
    ],
)
def test_a_bad_source_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "har.toml"
    path.write_text(text)
    with pytest.raises(JobError, match=rf"^har\.toml.*{message}") as caught:
        read_source(path)
    assert (caught.value.code, caught.value.state) == ("source", TaskState.FAILED)


def odd_file(path: Path, kind: str) -> None:
    """What opens but never ends, or never opens."""
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_source_file_that_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    odd_file(tmp_path / "har.toml", kind)
    with pytest.raises(JobError, match=r"^har\.toml is not a regular file") as caught:
        read_source(tmp_path / "har.toml")
    assert caught.value.code == "source"


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("path", ["../data", "../data/b.npz"])
def test_data_that_is_no_file_is_refused_at_once(bench: Bench, kind: str, path: str) -> None:
    bench.source(GOOD.replace("here", path))
    bench.examples(4)
    odd_file(bench.data / "b.npz", kind)
    with pytest.raises(JobError, match=r"b\.npz is not a regular file") as caught:
        load(bench)
    assert caught.value.code == "source"


@pytest.mark.parametrize("path", ["p" * 15_000, "a\\u0000b"])
def test_a_path_that_cannot_be_one_is_the_sources_fault(bench: Bench, path: str) -> None:
    bench.source(GOOD.replace("here", path))
    with pytest.raises(JobError, match="cannot be read") as caught:
        load(bench)
    assert caught.value.code == "source"
    assert len(caught.value.message) < 400


def test_an_archive_that_unpacks_to_more_than_there_is_room_for_is_bad_data(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_ARRAY_BYTES", 2000)
    bench.source()
    bench.examples(150)
    with pytest.raises(JobError, match=r"^a\.npz unpacks to \d+ bytes, more than the 2000") as caught:
        load(bench)
    assert caught.value.code == "data"
    bench.examples(60)
    bench.examples(60, name="b.npz")  # each alone has room
    with pytest.raises(JobError, match=r"^b\.npz unpacks to \d+ bytes"):
        load(bench)


@pytest.mark.parametrize("order", ["False", "True"])
def test_an_array_that_claims_more_than_its_file_takes_no_memory(bench: Bench, order: str) -> None:
    bench.source()
    header = f"{{'descr': '<f4', 'fortran_order': {order}, 'shape': (10000000000, 3), }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    with zipfile.ZipFile(bench.data / "a.npz", "w") as archive:
        archive.writestr("x.npy", start + bytes(120))
    with pytest.raises(JobError, match=r"^a\.npz cannot be read: an array is cut short") as caught:
        load(bench)
    assert caught.value.code == "data"


def test_a_source_file_that_is_not_utf8_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "har.toml").write_bytes(b"\xff\xfe")
    for name in ("har.toml", "none.toml"):
        with pytest.raises(JobError, match=f"^{name} cannot be read"):
            read_source(tmp_path / name)


def test_the_only_source_is_chosen_and_among_several_the_one_of_the_models_name(tmp_path: Path) -> None:
    (tmp_path / "recorder.toml").write_text(GOOD)
    assert choose_source(tmp_path, "har").name == "recorder"
    (tmp_path / "har.toml").write_text(GOOD)
    assert choose_source(tmp_path, "har").name == "har"
    with pytest.raises(JobError, match=r"several sources \(har, recorder\), none named 'sleep'") as caught:
        choose_source(tmp_path, "sleep")
    assert (caught.value.code, caught.value.state) == ("no_source", TaskState.REFUSED)


def test_no_source_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no source of data") as caught:
        choose_source(tmp_path, "har")
    assert (caught.value.code, caught.value.state) == ("no_source", TaskState.REFUSED)


def test_dates_without_separators_are_dates_here_too(bench: Bench) -> None:
    bench.source(GOOD.replace("here", "../data") + 'time = "day"\n', name="har")
    x, y = bench.examples(2)
    path = bench.data / "a.npz"
    np.savez(path, x=x, y=y, day=np.array([20240131, 20240201]))
    found = npz.read(read_source(bench.sources / "har.toml"), None, None)
    assert found.time is not None
    assert found.time.tolist() == [1706659200.0, 1706745600.0]
    np.savez(path, x=x, y=y, day=np.array([20240131, 20240132]))
    with pytest.raises(JobError, match=r"^a\.npz: 'day' begins with numbers that read as dates"):
        load(bench)

"""What every kind of source promises, whatever its files look like."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedctl_agent.sources import kind_of
from fedctl_agent.trainers import JobError
from fedctl_wire.messages import DataNeeds, TaskState
from tests.contract.sources.conftest import NOON, Kind, Table

DAY_S = 86_400.0
HOLE = "missing_values = [-1]\n"  # how arrays write a label that is missing


def numbered(rows: int, **parts: object) -> Table:
    """Rows whose only feature says which one it is."""
    return Table([[i, -i] for i in range(rows)], [i % 2 for i in range(rows)], **parts)  # type: ignore[arg-type]


def ids(part: np.ndarray) -> list[int]:
    return [int(i) for i in (part[:, 0] if part.ndim == 2 else part[:, 0, 0])]


# ------------------------------------------------------------------ rows


def test_rows_come_as_float32_and_int64_in_their_order(kind: Kind) -> None:
    data = kind.load(numbered(10))
    assert (data.x.dtype, data.y.dtype, data.x.shape) == (np.float32, np.int64, (10, 2))
    assert data.x.flags.c_contiguous
    assert data.x.flags.writeable
    assert ids(data.x) == list(range(10))
    assert data.y.tolist() == [0, 1] * 5
    assert (data.train, data.source) == (8, "recorder")


def test_missing_cells_stay_missing(kind: Kind) -> None:
    table = Table([[1, None], [None, 2], [float("inf"), 3]], [0, 1, 0])
    np.testing.assert_array_equal(
        kind.load(table).x, np.array([[1, np.nan], [np.nan, 2], [np.nan, 3]], np.float32)
    )


def test_rows_with_missing_cells_are_dropped_on_request(kind: Kind) -> None:
    table = Table([[0, 1], [1, None], [2, 3], [-9, 4]], [0, 1, 1, 0])
    data = kind.load(table, 'missing = "drop"\nmissing_values = [-9]\n')
    assert ids(data.x) == [0, 2]
    assert data.y.tolist() == [0, 1]


def test_rows_without_a_label_are_no_examples(kind: Kind) -> None:
    data = kind.load(Table([[0], [1], [2]], [0, None, 1]), HOLE)
    assert ids(data.x) == [0, 2]


def test_nothing_usable_is_no_data(kind: Kind) -> None:
    for table in (Table([[0], [1]], [None, None]), Table([[None], [None]], [1, 0])):
        with pytest.raises(JobError, match="'recorder' holds no examples") as caught:
            kind.load(table, HOLE + 'missing = "drop"\n')
        assert (caught.value.code, caught.value.state) == ("no_data", TaskState.REFUSED)


def test_a_label_that_the_model_does_not_have_is_bad_data_and_not_quoted(kind: Kind) -> None:
    with pytest.raises(JobError, match="'y' has labels outside 0 to 1") as caught:
        kind.load(Table([[0], [1]], [0, 77]))
    assert caught.value.code == "data"
    assert "77" not in caught.value.message


def test_a_class_that_never_occurs_is_no_fault(kind: Kind) -> None:
    data = kind.load(Table([[0], [1]], [1, 1]), needs=DataNeeds((1,), 5))
    assert data.y.tolist() == [1, 1]


def test_what_is_not_there_is_the_sources_fault(kind: Kind) -> None:
    with pytest.raises(JobError, match="does not exist") as caught:
        kind.load_again(numbered(3))
    assert caught.value.code == "source"


# ------------------------------------------------------------------ schema


def test_another_number_of_features_is_refused(kind: Kind) -> None:
    with pytest.raises(JobError, match="gives 2 features, the model takes 3 features") as caught:
        kind.load(numbered(5), needs=DataNeeds((3,), 2))
    assert (caught.value.code, caught.value.state) == ("schema", TaskState.REFUSED)


def test_another_window_is_refused(kind: Kind) -> None:
    with pytest.raises(JobError, match="gives windows of 4 samples of 2 features, the model takes") as caught:
        kind.load(numbered(20), "window = 4\n", needs=DataNeeds((2, 8), 2))
    assert caught.value.code == "schema"


def test_a_column_that_is_not_there_is_refused(kind: Kind) -> None:
    kind.write(numbered(5))
    with pytest.raises(JobError, match="'at'") as caught:
        kind.load_again(numbered(5, at=[0] * 5))
    assert caught.value.code == ("data" if kind.name == "npz" else "schema")


def test_the_shape_is_seen_without_reading_the_rows(kind: Kind) -> None:
    table = numbered(20)
    kind.write(table)
    assert kind_of(kind.source(table)).shape(kind.source(table)) == (2,)
    windowed = kind.source(table, "window = 4\n")
    assert kind_of(windowed).shape(windowed) == (2, 4)


# ------------------------------------------------------------------ time and age


def test_rows_are_put_in_the_order_of_time(kind: Kind) -> None:
    data = kind.load(numbered(5, at=[NOON - s for s in (0, 10, 20, 30, 40)]))
    assert ids(data.x) == [4, 3, 2, 1, 0]
    assert data.y.tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_array_equal(data.x[:, 1], -data.x[:, 0])


@pytest.mark.parametrize("factor", [1, 1e3, 1e6, 1e9])
def test_old_rows_are_left_out_by_the_devices_clock(kind: Kind, factor: float) -> None:
    at = [(NOON - days * DAY_S) * factor for days in (40, 31.9, 20, 10)]
    assert ids(kind.load(numbered(4, at=at), "max_age_days = 30\n").x) == [2, 3]
    with pytest.raises(JobError, match="all 4 rows are older than 30 days") as caught:
        kind.load_again(numbered(4, at=at), "max_age_days = 30\n", now=NOON + 100 * DAY_S)
    assert (caught.value.code, caught.value.state) == ("no_data", TaskState.REFUSED)


def test_a_clock_that_was_never_set_gives_way_to_the_newest_row(kind: Kind) -> None:
    table = numbered(4, at=[NOON - days * DAY_S for days in (40, 31.9, 20, 10)])
    assert ids(kind.load(table, "max_age_days = 15\n", now=3600.0).x) == [2, 3]


def test_within_a_day_no_row_becomes_too_old(kind: Kind) -> None:
    midnight = NOON - NOON % DAY_S
    table = numbered(4, at=[midnight - s for s in (31, 29, 20, 10)])
    settings = f"max_age_days = {30 / DAY_S}\n"
    kind.write(table)
    for hour in (0, 12, 23):
        assert ids(kind.load_again(table, settings, now=midnight + hour * 3600).x) == [1, 2, 3]


# ------------------------------------------------------------------ training and test part


def test_a_random_split_stays_when_rows_are_added(kind: Kind) -> None:
    at = [NOON + i for i in range(400)]
    settings = 'split = "random"\ntest_fraction = 0.25\nseed = 7\n'
    before = kind.load(numbered(300, at=at[:300]), settings)
    after = kind.load(numbered(400, at=at), settings)
    tested = [set(ids(data.x[data.train :])) for data in (before, after)]
    assert tested[1] & set(range(300)) == tested[0]
    assert 50 < len(tested[0]) < 100
    assert sorted(ids(after.x)) == list(range(400))
    other = kind.load(numbered(400, at=at), settings.replace("7", "8"))
    assert set(ids(other.x[other.train :])) != tested[1]


def test_a_random_split_without_times_goes_by_the_rows_place(kind: Kind) -> None:
    settings = 'split = "random"\ntest_fraction = 0.5\n'
    before, after = kind.load(numbered(100), settings), kind.load(numbered(150), settings)
    tested = [set(ids(data.x[data.train :])) for data in (before, after)]
    assert tested[1] & set(range(100)) == tested[0]
    assert 30 < len(tested[0]) < 70


# ------------------------------------------------------------------ windows


def test_windows_are_channels_by_samples(kind: Kind) -> None:
    data = kind.load(numbered(10), "window = 4\nstride = 2\ntest_fraction = 0\n")
    assert data.x.shape == (4, 2, 4)
    np.testing.assert_array_equal(data.x[1], [[2, 3, 4, 5], [-2, -3, -4, -5]])
    assert data.y.tolist() == [0, 0, 0, 0]  # as many of each: the lower


def test_no_window_crosses_a_gap_or_a_person(kind: Kind) -> None:
    at = [NOON + s for s in (0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17)]
    person = [1] * 8 + [2] * 4
    data = kind.load(numbered(12, at=at, person=person), "window = 3\nstride = 1\ntest_fraction = 0\n")
    assert ids(data.x) == [0, 1, 4, 5, 8, 9]
    data = kind.load(numbered(12, at=at), "window = 3\nstride = 1\ntest_fraction = 0\nmax_gap_s = 60\n")
    assert ids(data.x) == list(range(10))


def test_people_who_were_recorded_at_the_same_time_are_told_apart(kind: Kind) -> None:
    at = [NOON + i // 2 for i in range(16)]
    table = numbered(16, at=at, person=[i % 2 for i in range(16)])
    data = kind.load(table, "window = 4\ntest_fraction = 0\n")
    assert sorted(map(tuple, data.x[:, 0].astype(int).tolist())) == [
        (0, 2, 4, 6),
        (1, 3, 5, 7),
        (8, 10, 12, 14),
        (9, 11, 13, 15),
    ]


def test_a_windows_label_is_its_most_frequent_one(kind: Kind) -> None:
    table = Table([[i] for i in range(9)], [0, 1, 1, None, None, 1, None, None, None])
    data = kind.load(table, HOLE + "window = 3\ntest_fraction = 0\n")
    assert (ids(data.x), data.y.tolist()) == ([0, 3], [1, 1])


def test_a_window_with_a_missing_cell_is_dropped_on_request_but_none_is_patched_up(kind: Kind) -> None:
    table = Table([[i if i != 4 else None] for i in range(9)], [0] * 9)
    assert ids(kind.load(table, 'window = 3\ntest_fraction = 0\nmissing = "drop"\n').x) == [0, 6]
    assert np.isnan(kind.load_again(table, "window = 3\ntest_fraction = 0\n").x).sum() == 1


@pytest.mark.parametrize("split", ["time", "random"])
def test_no_sample_is_both_trained_and_tested_on(kind: Kind, split: str) -> None:
    table = numbered(2000, at=[NOON + i / 50 for i in range(2000)])
    data = kind.load(table, f'window = 8\nstride = 2\nsplit = "{split}"\ntest_fraction = 0.3\n')
    trained, tested = set(data.x[: data.train, 0].flat), set(data.x[data.train :, 0].flat)
    assert not trained & tested
    assert len(trained) > 1000
    assert len(tested) > 300
    if split == "time":
        assert max(trained) < min(tested)


def test_too_few_samples_for_a_window_are_no_data(kind: Kind) -> None:
    for rows in (1, 5):
        with pytest.raises(JobError, match="holds no examples"):
            kind.load(numbered(rows), "window = 6\n")


# ------------------------------------------------------------------ scaling


@pytest.mark.parametrize("window", ["", "window = 5\n"])
def test_a_person_is_scaled_by_their_own_training_part(kind: Kind, window: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(50, 7, (100, 3))
    x[:, 1] = 3.25  # constant
    x[80:] += 100
    cells = [[None if rng.random() < 0.2 else float(cell) for cell in row[:2]] + [None] for row in x]
    data = kind.load(Table(cells, [0, 1] * 50), 'scale = "person"\n' + window)
    part = data.x[: data.train].astype(np.float64)
    axes = (0, 2) if window else 0
    np.testing.assert_allclose(np.nanmean(part[:, :1], axis=axes), 0, atol=1e-5)
    np.testing.assert_allclose(np.nanstd(part[:, :1], axis=axes), 1, atol=1e-4)
    assert np.nanmin(data.x[data.train :, 0]) > 5
    assert set(np.unique(part[:, 1][~np.isnan(part[:, 1])])) == {0}
    assert np.isnan(data.x[:, 2]).all()


@pytest.mark.parametrize("scale", ["none", "person"])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_tiny_devices_load(kind: Kind, rows: int, scale: str) -> None:
    data = kind.load(numbered(rows), f'scale = "{scale}"\ntest_fraction = 0.9\n')
    assert len(data.y) == rows
    assert not np.isnan(data.x).any()


def test_columns_come_in_the_models_order(kind: Kind) -> None:
    table = Table([[1, 2, 3]] * 4, [0, 1] * 2, names=["hr", "steps", "temp"], extra={"note": ["x"] * 4})
    needs = DataNeeds((2,), 2, ("temp", "hr"))
    if kind.name == "npz":  # whose order nobody can check
        with pytest.raises(JobError, match=r"has no names of columns .*: temp, hr") as caught:
            kind.load(table, needs=needs)
        assert (caught.value.code, caught.value.state) == ("schema", TaskState.REFUSED)
        return
    np.testing.assert_array_equal(kind.load(table, needs=needs).x, [[3, 1]] * 4)
    with pytest.raises(JobError, match="lacks the features spo2") as caught:
        kind.load_again(table, needs=replace(needs, features=("temp", "spo2")))
    assert (caught.value.code, caught.value.state) == ("schema", TaskState.REFUSED)

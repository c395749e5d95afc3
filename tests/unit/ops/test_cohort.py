from pathlib import Path

import numpy as np
import pytest

from fedctl.core.errors import UsageError
from fedctl.ops.cohort import FEATURES, generate


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return file["x"], file["y"]


def test_one_file_a_person_with_the_promised_arrays(tmp_path: Path) -> None:
    cohort = generate(tmp_path / "data", people=3, seed=1)
    assert [p.name for p in cohort.people] == ["person-01", "person-02", "person-03"]
    assert sorted(tmp_path.glob("data/*")) == [p.path for p in cohort.people]
    for person in cohort.people:
        x, y = load(person.path)
        assert (x.dtype, x.shape) == (np.float32, (420, len(FEATURES)))
        assert (y.dtype, y.shape) == (np.uint8, (420,))
        assert set(y.tolist()) == {0, 1}
        assert person.anomalous_days == y.sum()
        assert not np.isinf(x).any()


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_people(tmp_path: Path) -> None:
    few = generate(tmp_path / "few", people=2, seed=5)
    many = generate(tmp_path / "many", people=4, seed=5)
    for a, b in zip(few.people, many.people, strict=False):
        assert a.path.read_bytes() == b.path.read_bytes()


def test_another_seed_and_another_person_give_other_data(tmp_path: Path) -> None:
    one, two = (generate(tmp_path / str(seed), people=2, seed=seed).people for seed in (1, 2))
    assert len({p.path.read_bytes() for p in (*one, *two)}) == 4


def test_anomalies_last_for_days_and_are_rare_but_never_absent(tmp_path: Path) -> None:
    for person in generate(tmp_path, people=30, seed=3).people:
        _, y = load(person.path)
        onsets = int((np.diff(y.astype(int), prepend=0) == 1).sum())
        assert 2 <= onsets <= 6
        assert y.sum() >= 2 * onsets
        assert y.mean() < 0.2


def test_anomalous_days_differ_in_the_expected_directions(tmp_path: Path) -> None:
    parts = [load(p.path) for p in generate(tmp_path, people=30, seed=4).people]
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    gap = np.nanmean(x[y == 1], axis=0) - np.nanmean(x[y == 0], axis=0)
    rises = ("resting_heart_rate_change_bpm", "awakenings", "skin_temperature_change_c")
    falls = ("steps_change_thousands", "sleep_change_minutes", "hrv_change_log_ms")
    assert all(gap[FEATURES.index(name)] > 0 for name in rises)
    assert all(gap[FEATURES.index(name)] < 0 for name in falls)


def test_no_single_feature_gives_the_answer_away(tmp_path: Path) -> None:
    """Confounders move single features as far on healthy days as an episode does on anomalous ones."""
    parts = [load(p.path) for p in generate(tmp_path, people=30, seed=4).people]
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    for column in np.nan_to_num(x).T:
        assert column[y == 0].max() > np.quantile(column[y == 1], 0.9)
        assert column[y == 0].min() < np.quantile(column[y == 1], 0.1)


def test_nights_without_the_device_are_missing_cells_of_the_night_only(tmp_path: Path) -> None:
    x = np.concatenate([load(p.path)[0] for p in generate(tmp_path, people=10, seed=0).people])
    missing = np.isnan(x)
    assert 0 < missing.mean() < 0.1
    assert not missing[:, FEATURES.index("steps_thousands")].any()
    assert (missing[:, FEATURES.index("sleep_minutes")] == missing.any(axis=1)).all()


def test_every_length_from_the_shortest_on_can_be_simulated(tmp_path: Path) -> None:
    for person in generate(tmp_path, people=20, days=60, seed=9).people:
        x, y = load(person.path)
        assert len(x) == len(y) == 60
        assert person.anomalous_days > 0


@pytest.mark.parametrize(("people", "days", "seed"), [(0, 420, 0), (1000, 420, 0), (2, 59, 0), (2, 420, -1)])
def test_impossible_cohorts_are_refused_before_anything_is_written(
    tmp_path: Path, people: int, days: int, seed: int
) -> None:
    with pytest.raises(UsageError, match="cannot be simulated"):
        generate(tmp_path / "data", people=people, days=days, seed=seed)
    assert not (tmp_path / "data").exists()

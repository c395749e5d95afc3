"""Windows, labels and splits against the plain way to say the same, sample by sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedctl_agent.sources.arrange import arrange
from fedctl_agent.sources.rows import UNLABELLED, Rows
from fedctl_agent.sources.source import Source
from fedctl_agent.trainers import JobError
from fedctl_wire.sources import SourceSpec

START = 1.7e9
samples = st.lists(
    st.tuples(
        st.sampled_from([1.0, 1.0, 1.0, 1.0, 2.0, 50.0]),  # seconds after the one before
        st.integers(0, 2),  # group
        st.sampled_from([0, 0, 1, 2, UNLABELLED]),
        st.booleans(),  # cell missing
    ),
    min_size=1,
    max_size=80,
)


def rows_of(drawn: list[tuple[float, int, int, bool]]) -> Rows:
    steps, groups, labels, missing = zip(*drawn, strict=True)
    x = np.arange(len(drawn), dtype=np.float32)[:, None].repeat(2, axis=1)
    x[list(missing), 1] = np.nan
    times = START + np.cumsum(np.array(steps))
    return Rows(x, np.array(labels, np.int64), times, np.array(groups, np.int32))


def expected_windows(rows: Rows, spec: SourceSpec) -> list[tuple[int, ...]]:
    """Numbers of the samples in each window."""
    assert rows.time is not None
    assert rows.group is not None
    window, found = spec.window or 1, []
    for group in range(3):
        stretch: list[int] = []
        stretches = [stretch]
        for at in np.flatnonzero(rows.group == group).tolist():
            if stretch and rows.time[at] - rows.time[stretch[-1]] > (spec.max_gap_s or 0):
                stretch = []
                stretches.append(stretch)
            stretch.append(at)
        for part in stretches:
            begins = range(0, len(part) - window + 1, spec.step)
            found += [tuple(part[begin : begin + window]) for begin in begins]
    return found


def label_of(rows: Rows, window: tuple[int, ...]) -> int:
    labels = [int(rows.y[at]) for at in window if rows.y[at] != UNLABELLED]
    return min(labels, key=lambda y: (-labels.count(y), y)) if labels else UNLABELLED


@given(
    samples,
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(["keep", "drop"]),
    st.sampled_from(["time", "random"]),
)
def test_windows_are_those_that_one_would_cut_by_hand(
    drawn: list[tuple[float, int, int, bool]], window: int, stride: int, missing: str, split: str
) -> None:
    spec = SourceSpec(
        "csv", "p", ("a", "b"), "y", time="t", group="g", window=window, stride=stride, max_gap_s=3.0,
        missing=missing, split=split, test_fraction=0.3,
    )  # fmt: skip
    rows = rows_of(drawn)
    wanted = {w: label_of(rows, w) for w in expected_windows(rows, spec) if label_of(rows, w) != UNLABELLED}
    if missing == "drop":
        wanted = {w: y for w, y in wanted.items() if not np.isnan(rows.x[list(w)]).any()}
    try:
        data = arrange(rows_of(drawn), Source("s", Path("p"), spec), None)
    except JobError:
        assert not wanted  # which is what there is to refuse
        return
    cut = [tuple(int(at) for at in x[0]) for x in data.x]
    assert len(set(cut)) == len(cut)
    assert {w: int(y) for w, y in zip(cut, data.y, strict=True)}.items() <= wanted.items()
    np.testing.assert_array_equal(data.x[:, 1], rows.x[np.array(cut), 1])
    tested = {at for w in cut[data.train :] for at in w}
    left_out = set(wanted) - set(cut)
    assert all(tested & set(w) for w in left_out)  # only for what is tested on
    assert not any(tested & set(w) for w in cut[: data.train])
    if split == "time":
        assert len(cut) - data.train == int(len(wanted) * 0.3)

"""From rows to examples, alike for all kinds of source: age, windows, missing cells, test part, scaling.

Nothing is copied as a whole but what windows must be: rows are put into order column by column, in place.
All decisions depend on the rows, the source file and the day only, so that a job that runs again sees
the same examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedctl_agent.sources import LocalData
from fedctl_agent.sources.rows import UNLABELLED, Rows, no_examples, room
from fedctl_agent.sources.source import Source
from fedctl_agent.trainers.contract import JobError
from fedctl_wire.limits import MIB
from fedctl_wire.sources import SourceSpec

DAY_S = 86_400.0
_CLOCK_SET = 1_704_067_200.0  # the start of 2024; a clock before it was never set
_USUAL_GAPS = 3.0  # a pause of more than so many usual distances is a gap
_CHUNK_WINDOWS = 16  # neighbours that a random split leaves together
_MIN_STD = 1e-6
Index = NDArray[np.int64]


def oldest_row(spec: SourceSpec, now: float) -> float | None:
    """Unix seconds before which a row is too old: from the start of the day, so that it holds for the day.

    None where no age is asked for, or by a clock that was never set; see `arrange`.
    """
    if spec.max_age_days is None or now < _CLOCK_SET:
        return None
    return now - now % DAY_S - spec.max_age_days * DAY_S


def arrange(rows: Rows, source: Source, oldest: float | None) -> LocalData:
    """Make examples of rows, which are used up by it.

    Args:
        rows: As read.
        source: Says how.
        oldest: See `oldest_row`.

    Raises:
        JobError: Refused, `no_data`, when nothing is left; failed, `data`, when windows need too much memory.
    """
    rows = fresh(rows, source, oldest)
    x, y, train = _windows(rows, source) if source.spec.window else _examples(rows, source)
    if not len(y):
        raise no_examples(source)
    if source.spec.scale == "person":
        scale_by(x, x[:train] if train else x)
    return LocalData(source.name, x, y, train)


# ------------------------------------------------------------------ age


def fresh(rows: Rows, source: Source, oldest: float | None) -> Rows:
    """The rows that are not too old; without `oldest` by the newest of them.

    Raises:
        JobError: Refused, `no_data`, when all are.
    """
    spec = source.spec
    if spec.max_age_days is None or rows.time is None:
        return rows
    if oldest is None:
        newest = float(rows.time.max())
        oldest = newest - newest % DAY_S - spec.max_age_days * DAY_S
    kept = np.flatnonzero(rows.time >= oldest)
    if not len(kept):
        raise no_examples(source, len(rows.y))
    old = len(rows.y) - len(kept)
    return rows if not old else _taken(rows, kept, old)


def _taken(rows: Rows, order: Index, old: int = 0) -> Rows:
    return Rows(
        take(rows.x, order),
        rows.y[order],
        None if rows.time is None else rows.time[order],
        None if rows.group is None else rows.group[order],
        rows.unreadable,
        rows.old + old,
    )


def take(x: NDArray[np.float32], order: Index) -> NDArray[np.float32]:
    """The rows `order` of x, in x itself: beside it never more than about a MiB, or one column."""
    if len(order) == len(x) and bool((order[1:] > order[:-1]).all()):
        return x
    flat = x.reshape(len(x), -1)
    step = max(1, MIB // max(1, 4 * len(order)))
    for start in range(0, flat.shape[1], step):
        flat[: len(order), start : start + step] = flat[order, start : start + step]
    return x[: len(order)]


# ------------------------------------------------------------------ one example a row


def _examples(rows: Rows, source: Source) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    spec = source.spec
    usable = rows.y != UNLABELLED
    if spec.missing == "drop":
        usable &= ~_has_missing(rows.x)
    order = np.flatnonzero(usable)
    if rows.time is not None:
        order = order[np.argsort(rows.time[order], kind="stable")]
    if spec.split == "random":
        identity = order.astype(np.uint64) if rows.time is None else rows.time[order].view(np.uint64)
        tested = _drawn(identity, spec)
        order = np.concatenate([order[~tested], order[tested]])
        train = len(order) - int(tested.sum())
    else:
        train = _first_part(len(order), spec)
    return take(rows.x, order), rows.y[order], train


def _first_part(count: int, spec: SourceSpec) -> int:
    return count - int(count * spec.test_fraction)


def _drawn(identity: NDArray[np.uint64], spec: SourceSpec) -> NDArray[np.bool_]:
    """Which examples are tested on: drawn from what each is, so that later rows change no earlier draw.

    The mixing of SplitMix64 (Steele, Lea, Flood 2014).
    """
    with np.errstate(over="ignore"):
        z = identity + np.uint64(spec.seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53 < spec.test_fraction


def _has_missing(x: NDArray[np.float32]) -> NDArray[np.bool_]:
    flat = x.reshape(len(x), -1)
    found = np.zeros(len(x), np.bool_)
    step = max(1, MIB // max(1, flat[:1].nbytes))
    for start in range(0, len(x), step):
        found[start : start + step] = np.isnan(flat[start : start + step]).any(axis=1)
    return found


# ------------------------------------------------------------------ windows over a sampled signal


def _windows(rows: Rows, source: Source) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    spec, window = source.spec, source.spec.window or 1
    rows = in_sequence(rows)
    starts = _starts(rows, spec)
    labels = _majority(rows.y, starts, window)
    usable = labels != UNLABELLED
    if spec.missing == "drop":
        usable &= _within(_has_missing(rows.x), starts, window) == 0
    starts, labels = starts[usable], labels[usable]
    if rows.time is not None:
        order = np.argsort(rows.time[starts], kind="stable")
        starts, labels = starts[order], labels[order]
    chosen, train = _split_windows(rows, starts, spec)
    return _cut(rows.x, starts[chosen], window, source), labels[chosen], train


def in_sequence(rows: Rows) -> Rows:
    """The rows group by group, each in the order of time."""
    keys = [key for key in (rows.time, rows.group) if key is not None]
    if not keys:
        return rows
    order = np.lexsort(keys)
    return rows if bool((order[1:] > order[:-1]).all()) else _taken(rows, order)


def usual_distance(rows: Rows) -> float | None:
    """Seconds between neighbouring rows of a group, the median; None without times."""
    if rows.time is None or len(rows.time) < 2:
        return None
    steps = _pauses(rows)[~_new_group(rows)]
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else None


@dataclass(frozen=True, slots=True)
class Gaps:
    """Pauses within a group that are longer than usual; rows are in sequence."""

    longer_than_s: float
    count: int
    longest_s: float  # 0 without any


def gaps(rows: Rows, spec: SourceSpec) -> Gaps | None:
    """The gaps of rows in sequence; None without times."""
    longest = gap_of(rows, spec)
    if longest is None:
        return None
    pauses = _pauses(rows)[~_new_group(rows)]
    long = pauses[pauses > longest]
    return Gaps(longest, len(long), float(long.max()) if len(long) else 0.0)


def _new_group(rows: Rows) -> NDArray[np.bool_]:
    """Whether each row but the first belongs to another group than the one before it."""
    if rows.group is None:
        return np.zeros(max(0, len(rows.y) - 1), np.bool_)
    return np.asarray(np.diff(rows.group) != 0)


def _pauses(rows: Rows) -> NDArray[np.float64]:
    """Seconds between each row but the first and the one before it; 0 without times."""
    return np.zeros(max(0, len(rows.y) - 1)) if rows.time is None else np.diff(rows.time)


def gap_of(rows: Rows, spec: SourceSpec) -> float | None:
    """Seconds of pause from which on it is a gap; None without times."""
    if spec.max_gap_s is not None:
        return spec.max_gap_s
    usual = usual_distance(rows)
    return None if usual is None else _USUAL_GAPS * usual


def _starts(rows: Rows, spec: SourceSpec) -> Index:
    """Where windows begin, in stretches that neither a gap nor another group interrupts."""
    window = spec.window or 1
    longest = gap_of(rows, spec)
    broken = _new_group(rows) | (_pauses(rows) > (np.inf if longest is None else longest))
    begins = np.concatenate([[0], np.flatnonzero(broken) + 1])
    lengths = np.diff(np.append(begins, len(rows.y)))
    counts = np.maximum(0, (lengths - window) // spec.step + 1)
    before = np.cumsum(counts) - counts
    ordinal = np.arange(counts.sum()) - np.repeat(before, counts)
    return np.asarray(np.repeat(begins, counts) + spec.step * ordinal, np.int64)


def _within(marks: NDArray[np.bool_], starts: Index, window: int) -> Index:
    """How many of each window's samples are marked."""
    sums = np.zeros(len(marks) + 1, np.int64)
    np.cumsum(marks, out=sums[1:])
    return np.asarray(sums[starts + window] - sums[starts], np.int64)


def _majority(y: NDArray[np.int64], starts: Index, window: int) -> NDArray[np.int64]:
    """The most frequent label of each window, the lowest of several; UNLABELLED without any."""
    best = np.zeros(len(starts), np.int64)
    labels = np.full(len(starts), UNLABELLED, np.int64)
    for label in np.unique(y[y != UNLABELLED]).tolist():
        count = _within(y == label, starts, window)
        more = count > best
        best[more], labels[more] = count[more], label
    return labels


def _split_windows(rows: Rows, starts: Index, spec: SourceSpec) -> tuple[Index, int]:
    """Indices of the windows, the training part first, and how many that has.

    A window to train on that shares a sample with one to test on is left out.
    """
    window = spec.window or 1
    if spec.split == "random":
        tested = _drawn(_chunks(rows, starts, spec), spec)
    else:
        tested = np.arange(len(starts)) >= _first_part(len(starts), spec)
    edges = np.zeros(len(rows.y) + 1, np.int64)
    np.add.at(edges, starts[tested], 1)
    np.add.at(edges, starts[tested] + window, -1)
    covered = np.cumsum(edges)[:-1] > 0
    training = np.flatnonzero(~tested & (_within(covered, starts, window) == 0))
    return np.concatenate([training, np.flatnonzero(tested)]), len(training)


def _chunks(rows: Rows, starts: Index, spec: SourceSpec) -> NDArray[np.uint64]:
    """What the windows that a random split leaves together have in common, now and after further rows."""
    usual = usual_distance(rows)
    if rows.time is None or usual is None:
        return (starts // (_CHUNK_WINDOWS * spec.step)).astype(np.uint64)
    span = 2.0 ** np.ceil(
        np.log2(_CHUNK_WINDOWS * spec.step * usual)
    )  # rounded: the median may move a little
    return np.asarray(np.floor(rows.time[starts] / span).astype(np.int64).view(np.uint64))


def _cut(x: NDArray[np.float32], starts: Index, window: int, source: Source) -> NDArray[np.float32]:
    """The windows themselves, (n, features, window)."""
    features = x.shape[1]
    needed = 4 * len(starts) * features * window
    if needed > room():
        raise JobError("data", f"source {source.name!r}: its windows take {needed} bytes, more than {room()}")
    cut = np.empty((len(starts), features, window), np.float32)
    if len(starts):
        slices = np.lib.stride_tricks.sliding_window_view(x, window, axis=0)
        step = max(1, MIB // (4 * features * window))
        for begin in range(0, len(starts), step):
            cut[begin : begin + step] = slices[starts[begin : begin + step]]
    return cut


# ------------------------------------------------------------------ scaling


def scale_by(x: NDArray[np.float32], reference: NDArray[np.float32]) -> None:
    """`(x - mean) / std` in place, per feature, by the present cells of `reference`, which may be part of x.

    A feature without a spread, or without a present cell, keeps its spread; missing cells stay so.
    """
    features = x.shape[1]
    count, total = np.zeros(features), np.zeros(features)
    for block in _blocks(reference):
        present = ~np.isnan(block)
        count += present.sum(axis=(0, 2))
        total += np.where(present, block, 0).sum(axis=(0, 2), dtype=np.float64)
    mean = total / np.maximum(count, 1)
    spread = np.zeros(features)
    for block in _blocks(reference):
        spread += np.nansum(np.square(block - mean[:, None]), axis=(0, 2))
    std = np.sqrt(spread / np.maximum(count, 1))
    std[std < _MIN_STD] = 1
    for block in _blocks(x):
        np.subtract(block, mean[:, None].astype(np.float32), out=block)
        np.divide(block, std[:, None].astype(np.float32), out=block)


def _blocks(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Views of x as (rows, features, samples), about a MiB each."""
    if not len(x):
        return []
    whole = x.reshape(len(x), x.shape[1], -1)
    step = max(1, MIB // max(1, whole[:1].nbytes))
    return [whole[start : start + step] for start in range(0, len(x), step)]

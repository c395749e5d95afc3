"""What the daemon notes of a task, and what a torn file of notes still says."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedctl_agent.daemon.marks import Marks
from fedctl_wire.messages import Usage

USAGE = Usage(cpu_ms=12, wall_ms=30, peak_rss_bytes=4096)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """An empty file of marks."""
    Marks.make(str(tmp_path / "marks"))
    return str(tmp_path / "marks")


def test_what_was_noted_is_read_again(path: str) -> None:
    marks = Marks(path)
    marks.count_run()
    marks.count_run()
    marks.add_usage(USAGE)
    marks.cancel()
    marks.ack(7)
    assert marks == Marks.read(path)
    assert (marks.runs, marks.usage, marks.cancelled, marks.acked) == (2, USAGE, True, 7)


def test_without_a_file_nothing_was_noted(tmp_path: Path) -> None:
    assert Marks.read(str(tmp_path / "marks")) == Marks(str(tmp_path / "marks"))


def test_a_line_cut_short_says_nothing_and_the_next_one_counts(path: str) -> None:
    marks = Marks(path)
    marks.count_run()
    marks.ack(12)
    whole = Path(path).read_bytes()
    for size in range(len(whole)):
        Path(path).write_bytes(whole[:size])
        torn = Marks.read(path)
        assert torn.acked is None
        torn.count_run()
        assert Marks.read(path).runs == torn.runs
        assert Marks.read(path).acked is None


def test_rubbish_is_passed_over(path: str) -> None:
    Path(path).write_bytes(b"\x00\xff\nacked x\nacked 1?\nusage {\nrun\n")
    assert Marks.read(path) == Marks(path, runs=1)

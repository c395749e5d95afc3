"""Notes and live lines."""

from __future__ import annotations

import pytest

from fedctl.cli.progress import Watcher, live_lines
from fedctl.cli.screen import Screen, cells
from fedctl.core.progress import DeviceProgress, Note

FINE = Screen(columns=80, colour=True, unicode=True)
ROUGH = Screen(columns=40, colour=False, unicode=False)


def test_notes_go_to_stderr_and_are_wrapped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with Watcher(quiet=False, indent="  ") as watcher:
        watcher(Note("a sentence that is longer than the forty columns of this terminal"))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 2
    assert all(len(line) <= 40 and line.startswith("  ") for line in lines)


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Watcher(quiet=True) as watcher:
        watcher(Note("note"))
        watcher(DeviceProgress("watch-01", "training"))
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_without_a_terminal_there_are_no_live_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Watcher(quiet=False) as watcher:
        watcher(DeviceProgress("watch-01", "training"))
    assert capsys.readouterr().err == ""


def test_one_line_a_device_with_bar_words_and_bytes() -> None:
    devices = {
        "watch-02": DeviceProgress("watch-02", "sending", fraction=0.5, bytes_down=14_000),
        "watch-01": DeviceProgress("watch-01", "training", "epoch 2 of 3"),
    }
    assert live_lines(devices, FINE) == [
        "  watch-01  training epoch 2 of 3",
        "  watch-02  ██████████░░░░░░░░░░  sending  14 kB",
    ]
    rough = live_lines(devices, ROUGH)
    assert all(line.isascii() for line in rough)
    assert rough[1].startswith("  watch-02  ##########....")


def test_many_devices_are_counted_by_stage() -> None:
    devices = {f"d{n}": DeviceProgress(f"d{n}", "training" if n % 2 else "waiting") for n in range(20)}
    assert live_lines(devices, FINE) == ["  20 devices: 10 training, 10 waiting"]


def test_live_lines_do_not_wrap() -> None:
    devices = {"a": DeviceProgress("a", "dropped", "a reason " * 40, fraction=3.0)}
    assert max(map(cells, live_lines(devices, ROUGH))) <= 40

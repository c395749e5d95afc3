"""The agent's log: capped, filtered, and never in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedctl_agent.daemon import logs
from fedctl_agent.daemon.logs import AgentLog


def messages(log: AgentLog, priority: str = "info") -> list[str]:
    return [json.loads(line)["message"] for line in log.lines(priority=priority)]


def test_lines_are_filtered_by_priority(tmp_path: Path) -> None:
    log = AgentLog(tmp_path / "agent.log")
    log.write("info", "one", device="wrist-01")
    log.write("error", "two")
    log.write("warning", "three")
    assert messages(log) == ["one", "two", "three"]
    assert messages(log, "warning") == ["two", "three"]
    assert messages(log, "error") == ["two"]


def test_the_file_is_capped_and_its_predecessor_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_FILE_BYTES", 500)
    log = AgentLog(tmp_path / "agent.log")
    for number in range(30):
        log.write("info", str(number))
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 1400
    assert messages(log)[-1] == "29"
    assert messages(log) == sorted(messages(log), key=int)


def test_followers_see_what_comes_after_a_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_FILE_BYTES", 100)
    log = AgentLog(tmp_path / "agent.log")
    log.write("info", "first")
    waits = iter([False, False, True])

    def gone(_seconds: float) -> bool:
        log.write("info", "later")
        return next(waits)

    seen = [json.loads(line)["message"] for line in log.lines(gone=gone)]
    assert seen[:3] == ["first", "later", "later"]


def test_a_disk_without_room_costs_lines_only(tmp_path: Path) -> None:
    log = AgentLog(tmp_path / "missing" / "agent.log")
    log.write("error", "lost")


def test_a_damaged_line_does_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    path.write_bytes(b'\x00\x00"priority":"info"\n')
    log = AgentLog(path)
    log.write("info", "readable")
    assert [b"readable" in line for line in log.lines(since="1")] == [True]

"""Verdicts of `devices check`, from what was seen to the way out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fedctl.core import check_verdicts as verdicts
from fedctl.core.check_verdicts import Verdict

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
MIB = 1024 * 1024
WELL: dict[str, Any] = {
    "cgroup": "v2",
    "memory": {"available": True, "limit_bytes": 256 * MIB, "counted": True},
    "cpu": {"available": True, "limit_cores": 0.5},
    "tasks": {"available": True, "limit": 64},
    "rlimits": {"open_files": 1024},
}


@pytest.mark.parametrize(
    ("agent", "verdict", "hint"),
    [
        ("0.4.0", Verdict.WELL, ""),
        ("0.3.9", Verdict.NOTE, "fedctl devices upgrade watch-1"),
        ("0.10.0", Verdict.NOTE, "upgrade fedctl here"),
        ("odd", Verdict.NOTE, "fedctl devices upgrade watch-1"),
    ],
)
def test_version(agent: str, verdict: Verdict, hint: str) -> None:
    found = verdicts.judge_version("watch-1", agent, "0.4.0")
    assert (found.verdict, found.hint) == (verdict, hint)


@pytest.mark.parametrize(
    ("off", "said"),
    [
        (timedelta(seconds=3), "3.0 s off"),
        (timedelta(seconds=-60), "60.0 s off"),
        (timedelta(seconds=90), "2 minutes ahead of ours"),
        (timedelta(hours=-3), "3 hours behind ours"),
        (timedelta(days=-20_000), "20000 days behind ours"),  # it boots in 1970
    ],
)
def test_clock(off: timedelta, said: str) -> None:
    found = verdicts.judge_clock((NOW + off).isoformat(), NOW)
    assert said in found.text
    assert (found.verdict is Verdict.WELL) is (abs(off) <= timedelta(seconds=60))
    assert bool(found.hint) is (found.verdict is Verdict.NOTE)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-03-01T08:00:00"])
def test_a_clock_that_tells_no_time(text: str) -> None:
    assert verdicts.judge_clock(text, NOW).verdict is Verdict.NOTE


def test_roster_and_certificate() -> None:
    assert verdicts.judge_roster("w", 7, 7).verdict is Verdict.WELL
    behind = verdicts.judge_roster("w", 5, 7)
    assert behind.verdict is Verdict.NOTE
    assert behind.hint.endswith("fedctl devices ping w")
    for days, verdict in ((4000, Verdict.WELL), (30, Verdict.NOTE), (-1, Verdict.FAILED)):
        assert verdicts.judge_certificate(NOW + timedelta(days=days), NOW).verdict is verdict


@pytest.mark.parametrize(
    ("free", "total", "verdict"),
    [
        (5e9, 30e9, Verdict.WELL),
        (1e9, 30e9, Verdict.NOTE),
        (90e6, 200e6, Verdict.NOTE),
        (5e6, 30e9, Verdict.FAILED),
    ],
)
def test_disk(free: float, total: float, verdict: Verdict) -> None:
    found = verdicts.judge_disk({"resources": {"disk": {"free_bytes": free, "total_bytes": total}}})
    assert found.verdict is verdict
    assert bool(found.hint) is (verdict is not Verdict.WELL)


@pytest.mark.parametrize("status", [{}, {"resources": None}, {"resources": {"disk": None}}, {"limits": 3}])
def test_what_a_device_does_not_tell_is_no_fault(status: dict[str, Any]) -> None:
    for judge in (verdicts.judge_disk, verdicts.judge_cgroup, verdicts.judge_limits):
        found = judge(status)
        assert found.verdict is Verdict.NOT_REACHED
        assert found.text


def test_limits_that_really_limit() -> None:
    assert verdicts.judge_cgroup({"limits": WELL}).text == "cgroup v2"
    found = verdicts.judge_limits({"limits": WELL})
    assert found.text == "limits: memory 256 MiB, 0.5 cores, 64 tasks, 1024 open files"
    assert verdicts.judge_limits({"limits": {"cgroup": "none"}}).text == "no limits set"


def test_limits_that_are_taken_and_not_kept() -> None:
    ignored = {**WELL, "memory": {"available": True, "limit_bytes": 256 * MIB, "counted": False}}
    found = verdicts.judge_limits({"limits": ignored})
    assert found.verdict is Verdict.NOTE
    assert "does not keep it" in found.text
    assert "job_memory_bytes" in found.hint


def test_a_kernel_without_the_memory_controller() -> None:
    lacking = {**WELL, "memory": {"available": False}, "tasks": {"available": False}}
    found = verdicts.judge_cgroup({"limits": lacking})
    assert found.verdict is Verdict.NOTE
    assert "cgroup_enable=memory" in found.hint
    assert verdicts.judge_cgroup({"limits": {"cgroup": "none"}}).verdict is Verdict.NOTE
    without_tasks = {**WELL, "tasks": {"available": False}}
    assert verdicts.judge_cgroup({"limits": without_tasks}).text == "cgroup v2 without tasks"

"""What `devices check` shows, on screens of every width."""

from __future__ import annotations

import json

import pytest

from fedctl.cli.check_views import checked
from fedctl.cli.output import Flow, Format, show
from fedctl.core.check_verdicts import Finding, Verdict
from fedctl.core.errors import ExitCode, TrustError, UnreachableError
from fedctl.ops.check import DeviceCheck

REFUSED = TrustError("device watch-07 refused the fleet's login key for user pi", hint="Put it back: …")
WELL = (
    Finding("name", Verdict.WELL, "name resolves (192.0.2.47)"),
    Finding("port", Verdict.WELL, "port 22 open (12 ms)"),
    Finding("host_key", Verdict.WELL, "host key as enrolled"),
)
BROKEN = DeviceCheck(
    device="watch-07",
    url="ssh://pi@192.0.2.47",
    findings=(
        *WELL,
        Finding("login", Verdict.FAILED, REFUSED.message, "Put it back:  fedctl devices rekey watch-07"),
        Finding("agent", Verdict.NOT_REACHED),
        Finding("cgroup", Verdict.NOT_REACHED),
    ),
    error=REFUSED,
)
FINE = DeviceCheck(
    device="watch-08",
    url="ssh://pi@192.0.2.48",
    findings=(*WELL, Finding("clock", Verdict.NOTE, "its clock is 3 hours behind ours", "set it there")),
)


@pytest.fixture(autouse=True)
def utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *results: DeviceCheck) -> list:
    monkeypatch.setenv("COLUMNS", "100")
    show(checked(results), None, quiet=False)
    return capsys.readouterr().out.splitlines()


def test_one_device_is_shown_without_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(monkeypatch, capsys, BROKEN) == [
        "  ✓ name resolves (192.0.2.47)   ✓ port 22 open (12 ms)   ✓ host key as enrolled",
        "  ✗ login: refused the fleet's login key for user pi",
        "    Put it back:  fedctl devices rekey watch-07",
        "  · not reached: agent, cgroups",
    ]


def test_several_are_named_and_a_note_has_its_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(monkeypatch, capsys, BROKEN, FINE)
    assert lines[0] == "watch-07   ssh://pi@192.0.2.47"
    assert lines[-2:] == ["  ! its clock is 3 hours behind ours", "    set it there"]


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    show(checked([BROKEN, FINE]), None, quiet=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if "ssh://" not in line) <= columns


def test_exit_codes_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    gone = DeviceCheck(device="w", url="ssh://w", findings=(), error=UnreachableError("gone"))
    assert checked([FINE]).exit_code == ExitCode.OK
    assert checked([BROKEN]).exit_code == ExitCode.TRUST
    assert checked([gone, gone]).exit_code == ExitCode.UNREACHABLE
    assert checked([gone, FINE]).exit_code == ExitCode.PARTIAL
    assert checked([]).exit_code == ExitCode.OK
    assert list(checked([BROKEN, FINE]).names) == ["watch-08"]
    show(checked([BROKEN]), Format.JSON, quiet=False)
    (row,) = json.loads(capsys.readouterr().out)["devices"]
    assert row["error"]["code"] == "trust"
    assert row["checks"][3]["hint"] == "Put it back:  fedctl devices rekey watch-07"
    assert row["checks"][4] == {"check": "agent", "verdict": "not_reached", "text": None, "hint": None}


def test_phrases_flow_and_long_ones_wrap() -> None:
    assert list(Flow(["aaa", "bbb", "ccc"]).lines(9)) == ["aaa   bbb", "ccc"]
    assert list(Flow(["one two three"], "  ").lines(9)) == ["  one two", "    three"]
    assert list(Flow([]).lines(9)) == []

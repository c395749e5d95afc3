"""What a table of devices says of those that failed: all of it, on an 80-column screen too."""

from __future__ import annotations

import json

import pytest

from fedctl.cli import device_views as views
from fedctl.cli import model_views
from fedctl.cli.output import Details, Format, show
from fedctl.core.errors import ConfigError, UnreachableError
from fedctl.core.records import Device, DeviceState
from fedctl.ops.devices import PingOutcome, RemoveOutcome
from fedctl.ops.enrolment.add import AddResult
from fedctl.ops.enrolment.many import RowOutcome, RowState
from fedctl.ops.models import PushOutcome, PushResult
from fedctl_wire.signing import fingerprint

WHY = "could not be reached at 127.0.0.9 port 22922: connection refused"
ERROR = UnreachableError(
    f"device watch-01 {WHY}", hint="`fedctl devices add watch-01 ssh://pi@127.0.0.9:22922` repairs it"
)
BELOW = [
    f"watch-01: {WHY}",
    "  `fedctl devices add watch-01 ssh://pi@127.0.0.9:22922` repairs it",
]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("COLUMNS", "80")


def check(lines: list[str]) -> None:
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert lines[-3:] == ["", *BELOW]


def test_ping_says_why_and_what_to_do_below_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = [
        PingOutcome(device="watch-00", round_trip_ms=4.0),
        PingOutcome(device="watch-01", error=ERROR),
    ]
    show(views.pinged(outcomes), None, quiet=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["watch-01", "✗", "-", "unreachable"]
    check(lines)


def test_remove_says_what_it_did_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    steps = ("stopped the agent and deleted /home/pi/.local/share/fedctl/agent", "took the login key out")
    outcomes = [RemoveOutcome(device="watch-00", steps=steps), RemoveOutcome(device="watch-01", error=ERROR)]
    show(views.removed(outcomes), None, quiet=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in lines[1:3]] == [["✓", "removed"], ["✗", "unreachable"]]
    assert lines[4:6] == [f"watch-00: {steps[0]}", f"  {steps[1]}"]
    check(lines)


def test_push_says_why_below_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = PushOutcome(device="watch-01", installed=None, bytes_down=0, error=ERROR)
    result = PushResult(model="health", version=1, sha256="0" * 64, outcomes=(outcome,))
    show(model_views.pushed(result), None, quiet=False)
    check(capsys.readouterr().out.splitlines())


def test_json_has_the_whole_message_and_nothing_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    show(views.pinged([PingOutcome(device="watch-01", error=ERROR)]), Format.JSON, quiet=False)
    (row,) = json.loads(capsys.readouterr().out)["devices"]
    assert row["error"] == {"code": "unreachable", "message": ERROR.message, "hint": ERROR.hint}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("device watch-01: it is busy", "it is busy"),
        ("device watch-01 hung up", "hung up"),
        ("watch-01: unpack failed", "unpack failed"),
        ("agent is not running on device watch-01: no such file", "agent is not running: no such file"),
        ("device watch-011 hung up", "device watch-011 hung up"),
    ],
)
def test_a_message_beside_the_name_does_not_repeat_it(message: str, shown: str) -> None:
    assert views.beside("watch-01", message) == shown


def test_long_sentences_wrap_below_their_name_and_words_stay_whole() -> None:
    error = ConfigError(" ".join(["word"] * 30), hint="x" * 100)
    lines = list(views.reasons([("a", error), ("b", None)]).lines(40))
    assert lines[0].startswith("a: word word")
    assert lines[1].startswith("  word")
    assert lines[-1] == "  " + "x" * 100
    assert list(Details([]).lines(80)) == []


def test_a_file_s_table_says_how_each_new_agent_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = "a supervisor keeps it running until a reboot; there is no cron"
    result = AddResult(name="watch-00", url="ssh://a", device=None, changed=True, steps=(), verdict=verdict)
    outcomes = [
        RowOutcome(line=2, device="watch-00", url="ssh://a", state=RowState.ADDED, result=result),
        RowOutcome(line=3, device="watch-01", url="ssh://b", state=RowState.UNCHANGED),
    ]
    show(views.added_many(outcomes, dry_run=False), None, quiet=False)
    out = capsys.readouterr().out
    assert f"watch-00: {verdict}" in out
    assert "watch-01:" not in out


def test_a_device_is_shown_with_the_fingerprint_that_adding_it_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    device = Device(
        name="watch-00",
        url="ssh://a",
        identity_key="ab" * 32,
        host_key=None,
        arch=None,
        python=None,
        agent_version=None,
        last_seen=None,
        serial=1,
        state=DeviceState.ENROLLED,
        enrolled_at="2026-01-01T00:00:00.000000Z",
    )
    show(views.shown(device, []), None, quiet=False)
    assert fingerprint(device.identity_key) in capsys.readouterr().out

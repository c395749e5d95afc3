"""How rounds look, and which of them end with an error."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedctl.cli import round_views as views
from fedctl.cli.command import Session
from fedctl.cli.output import Format, Lines, View, show
from fedctl.cli.progress import Watcher
from fedctl.core.errors import ExitCode, NotMetError
from fedctl.core.progress import DeviceProgress, RoundEnded, RoundStarted
from fedctl.core.records import Role
from fedctl.core.round_records import RoundDevice, RoundPhase, RoundSummary, Stage
from fedctl.ops.round_results import RoundDetail, RoundDeviceReport, RunResult

PUBLISHED = RoundSummary(
    id=41,
    uuid="0b8f6b2e-3c60-4b5c-9d0e-0d7a51f0a001",
    model="health",
    base_version=12,
    result_version=13,
    phase=RoundPhase.PUBLISHED,
    reason=None,
    gate="passed",
    attempt=1,
    plan="9d" * 32,
    cohort=8,
    contributors=6,
    evaluated=4,
    loss=0.352,
    loss_before=0.363,
    accuracy=0.9,
    auroc=0.879,
    auroc_before=0.875,
    bytes_up=41_000,
    bytes_down=80_000,
    started_at="2026-03-01T02:00:00.000Z",
    ended_at="2026-03-01T02:09:58.000Z",
    duration_s=598.0,
)
DROPPED = (RoundDevice(41, "watch-05", Role.TRAIN, Stage.DROPPED, "policy (battery)"),)
FOLLOWED = RoundDevice(41, "watch-06", Role.TRAIN, Stage.DROPPED, "quorum 6 not met")
FAILED = replace(
    PUBLISHED,
    phase=RoundPhase.FAILED,
    result_version=None,
    reason="quorum 6 not met",
    dropped=(*DROPPED, FOLLOWED),
)


@pytest.fixture(autouse=True)
def utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("COLUMNS", "80")


def sentences(view: View) -> list[str]:
    return [line for block in view.blocks if isinstance(block, Lines) for line in block.texts]


def test_a_published_round_ends_with_one_line_and_its_drop_outs() -> None:
    view = views.ran(RunResult((replace(PUBLISHED, dropped=DROPPED),)), strict=False)
    measures = "loss .352 (\N{MINUS SIGN}.011)   AUROC .879 (+.004)"
    assert sentences(view) == [
        f"published health@13   6 of 8   {measures}   9 min 58 s   up 41 kB",
        "dropped watch-05: policy (battery)",
    ]
    assert view.exit_code is ExitCode.OK
    assert view.names == ["health@13"]


def test_strict_makes_drop_outs_a_partial_result() -> None:
    assert (
        views.ran(RunResult((replace(PUBLISHED, dropped=DROPPED),)), strict=True).exit_code
        is ExitCode.PARTIAL
    )
    assert views.ran(RunResult((PUBLISHED,)), strict=True).exit_code is ExitCode.OK


def test_a_gate_that_nobody_could_judge_is_said() -> None:
    lonely = replace(PUBLISHED, gate="none", loss=None, auroc=None, evaluated=0)
    assert "gate none" in sentences(views.ran(RunResult((lonely,)), strict=False))[0]


def test_hold_out_devices_that_did_not_answer_are_warned_of_even_quietly(
    capsys: pytest.CaptureFixture[str],
) -> None:
    unmeasured = replace(PUBLISHED, gate="none", loss=None, auroc=None, evaluated=0, holdout=2)
    show(views.ran(RunResult((unmeasured,)), strict=False), None, quiet=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert " ".join(captured.err.split()) == (
        "warning: health@13 is published unmeasured: none of its 2 hold-out devices answered "
        "(round 41, gate none)"
    )
    assert views.ran(RunResult((unmeasured,)), strict=True).exit_code is ExitCode.PARTIAL
    without = replace(unmeasured, holdout=0)  # nobody was there to measure
    assert views.ran(RunResult((without,)), strict=True).exit_code is ExitCode.OK
    assert not views.ran(RunResult((without,)), strict=False).warnings


def test_a_failed_round_names_cause_devices_and_what_stays() -> None:
    with pytest.raises(NotMetError) as caught:
        views.ran(RunResult((FAILED,)), strict=False)
    error = caught.value
    assert error.exit_code == ExitCode.NOT_MET
    assert error.message.splitlines() == [
        "round 41 of health failed: quorum 6 not met",
        "  watch-05  policy (battery)",
    ]
    assert error.hint == "nothing was published, health@12 stays; see: fedctl round show 41"


def test_a_target_that_was_not_reached_is_an_error_though_versions_stay() -> None:
    with pytest.raises(NotMetError, match=r"target auroc>=0\.9 not reached after 1 round:") as caught:
        views.ran(RunResult((PUBLISHED,), until="auroc>=0.9", until_met=False), strict=False)
    assert "health@13 is published" in caught.value.hint


def test_a_skipped_run_is_fine() -> None:
    view = views.ran(RunResult((), skipped=True), strict=False)
    assert (view.exit_code, view.body["skipped"]) == (ExitCode.OK, True)


def test_nothing_to_resume_is_fine_and_a_failed_one_is_not() -> None:
    assert sentences(views.resumed([])) == ["no round is unfinished"]
    with pytest.raises(NotMetError):
        views.resumed([PUBLISHED, FAILED])


@pytest.mark.parametrize("phase", [RoundPhase.REJECTED, RoundPhase.CANCELLED, RoundPhase.FAILED])
def test_watching_a_round_that_ended_unpublished_is_no_success(phase: RoundPhase) -> None:
    with pytest.raises(NotMetError, match=r"round 41 of health .*(rejected|cancelled|failed)") as caught:
        views.watched(replace(PUBLISHED, phase=phase, gate="failed", reason="loss rose"))
    assert "health@12 stays" in caught.value.hint


def test_a_candidate_before_its_gate_is_not_called_published() -> None:
    view = views.watched(replace(PUBLISHED, phase=RoundPhase.EVALUATING, gate=None, loss=None))
    assert sentences(view)[0].startswith("round 41: evaluating   6 of 8")


def test_the_table_grows_by_a_row_a_round(capsys: pytest.CaptureFixture[str]) -> None:
    with Watcher(quiet=False) as watcher:
        table = views.RoundTable(Session(), watcher)
        for number in (1, 2):
            table(RoundStarted(number, "health", 12, "9d" * 32, ("a",), ("b",), number, 2))
            table(DeviceProgress("a", "training"))
            table(RoundEnded(number, number, 2, replace(PUBLISHED, id=number, duration_s=0.31)))
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "round  devices  loss   AUROC          up        time",
        "1      6/8      .352   .879  ▇     41 kB       .31 s",
        "2      6/8      .352   .879  ▇     41 kB       .31 s",
    ]
    assert captured.err == ""


@pytest.mark.parametrize(("form", "quiet"), [(Format.JSON, False), (None, True)])
def test_programs_and_quiet_get_no_growing_table(
    capsys: pytest.CaptureFixture[str], form: Format | None, *, quiet: bool
) -> None:
    session = Session()
    session.form, session.quiet = form, quiet
    with Watcher(quiet=True) as watcher:
        views.RoundTable(session, watcher)(RoundEnded(1, 1, 1, PUBLISHED))
    assert capsys.readouterr().out == ""


def test_a_round_that_failed_has_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    with Watcher(quiet=False) as watcher:
        views.RoundTable(Session(), watcher)(RoundEnded(41, 1, 1, FAILED))
    assert capsys.readouterr().out == ""


def test_a_single_round_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    with Watcher(quiet=False) as watcher:
        table = views.RoundTable(Session(), watcher)
        table(RoundStarted(41, "health", 12, "9d" * 32, ("a", "b"), ("c",), 1, 1))
    err = " ".join(capsys.readouterr().err.split())
    assert err == "round 41 starts plan 9d9d9d9d… base health@12 2 train, 1 evaluate"


def test_lists_fit_80_columns_and_have_plain_numbers_in_json() -> None:
    view = views.listed([PUBLISHED, FAILED])
    (table,) = view.blocks
    assert not isinstance(table, list)
    assert all(len(line) <= 80 for line in table.lines(80))  # type: ignore[union-attr]
    rows = view.body["rounds"]
    assert rows[0]["bytes_up"] == 41_000
    assert rows[1]["result_version"] is None


def test_a_round_in_full_says_each_reason_whole(capsys: pytest.CaptureFixture[str]) -> None:
    why = "could not be reached at 127.0.0.9 port 22922: connection refused"
    devices = (
        report("watch-05", "policy (battery)"),
        report("watch-07", f"device watch-07 {why}"),
    )
    show(views.shown(RoundDetail(FAILED, {}, devices)), None, quiet=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"watch-07: {why}"
    assert lines[-3].endswith("could not be reached at…")
    assert lines[-4].endswith("policy (battery)")
    assert lines[-2] == ""


def test_a_drop_out_is_named_once() -> None:
    dropped = (RoundDevice(41, "watch-05", Role.TRAIN, Stage.DROPPED, "device watch-05 hung up"),)
    view = views.ran(RunResult((replace(PUBLISHED, dropped=dropped),)), strict=False)
    assert sentences(view)[1] == "dropped watch-05: hung up"


def report(device: str, reason: str) -> RoundDeviceReport:
    return RoundDeviceReport(
        device=device,
        role="train",
        stage="dropped",
        reason=reason,
        examples=None,
        norm=None,
        update_sha256=None,
        train_loss=None,
        bytes_up=0,
        bytes_down=0,
        cpu_ms=0,
        wall_ms=0,
        peak_rss_bytes=0,
    )


def test_a_target_that_was_met_is_said() -> None:
    view = views.ran(RunResult((PUBLISHED,), until="auroc>=0.85", until_met=True), strict=False)
    assert sentences(view)[-1] == "target auroc>=0.85 met after 1 round"


@pytest.mark.parametrize("columns", [40, 60, 200])
def test_the_last_lines_are_no_wider_than_the_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    summary = replace(PUBLISHED, dropped=DROPPED)
    show(views.ran(RunResult((summary,), (), None, None), strict=False), None, quiet=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert "".join(lines).replace(" ", "").startswith("publishedhealth@136of8loss.352")

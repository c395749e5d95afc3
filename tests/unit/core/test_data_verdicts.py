"""Verdicts over reports of counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fedctl.core.data_verdicts import Finding, Mark, Wanted, age_s, days, judge, missing_share, since, span
from fedctl_wire.messages import DataNeeds, DataReport, Reason, SourceFacts, SourceReport

FACTS = SourceFacts(
    first="2026-09-01T00:00:00Z",
    last="2026-09-21T12:00:00Z",
    spacing_s=60.0,
    gaps=0,
    gap_s=7200.0,
    longest_gap_s=0.0,
    missing={},
    unreadable_rows=0,
    old_rows=0,
    unlabelled_rows=0,
    labels={"0": 80, "1": 20},
)
SOURCE = SourceReport(
    "recorder", "csv", ("hr", "steps"), "anomaly", (2,), (), rows=100, examples=100, training=80, facts=FACTS
)
HEALTH = Wanted("health@1", DataNeeds((2,), 2))


def findings(
    wanted: Wanted | None = HEALTH, now: str = "2026-09-21T12:04:00Z", **changes: Any
) -> dict[str, str]:
    """Subjects, marks and texts; changes whose names are those of facts change these."""
    of_facts = {k: v for k, v in changes.items() if hasattr(FACTS, k)}
    own = {k: v for k, v in changes.items() if k not in of_facts}
    source = replace(SOURCE, facts=replace(FACTS, **of_facts))
    source = replace(source, **own)
    found = judge(DataReport(now, 20, (source,)), source, wanted)
    return {finding.subject: f"{finding.mark} {finding.text}" for finding in found}


def test_good_data() -> None:
    assert findings() == {
        "schema": "good schema fits health@1",
        "labels": 'good label "anomaly": 20.0 % positive (20)',
        "missing": "good no cell missing",
        "gaps": "good no gaps over 2 h",
    }
    assert "schema" not in findings(None)


@pytest.mark.parametrize(
    ("needs", "changes", "text"),
    [
        (DataNeeds((3,), 2), {}, "examples of 2 features, the model takes 3 features"),
        (DataNeeds((9, 128), 2), {"shape": (9, 64)}, "examples of 9 x 64, the model takes 9 x 128"),
        (DataNeeds((2,), 2, ("hr", "spo2", "rmssd")), {}, "it lacks spo2, rmssd"),
        (DataNeeds((2,), 3), {"classes": ("calm", "ill")}, "2 classes, the model has 3"),
    ],
)
def test_a_schema_that_does_not_fit(needs: DataNeeds, changes: dict[str, Any], text: str) -> None:
    assert findings(Wanted("health@1", needs), **changes)["schema"] == f"bad does not fit health@1: {text}"


def test_a_model_that_names_some_of_the_columns_fits() -> None:
    wanted = Wanted("health@1", DataNeeds((1,), 2, ("steps",)))
    assert findings(wanted)["schema"] == "good schema fits health@1"
    arrays = findings(wanted, kind="npz", shape=None)["schema"]
    assert arrays == "bad does not fit health@1: an array has no names of columns, the model takes steps"


@pytest.mark.parametrize(
    ("changes", "subject", "expected"),
    [
        ({"training": 19}, "rows", "bad 19 examples to train on, its policy asks for 20"),
        ({"labels": {"0": 97, "1": 3}}, "labels", 'note label "anomaly": 3.0 % positive (3)'),
        ({"labels": {"0": 97}}, "labels", 'note label "anomaly": only class 0'),
        ({"labels": {"0": 1, "5": 1}}, "labels", 'bad label "anomaly" has classes that the model lacks: 5'),
        (
            {"labels": {"calm": 90, "ill": 10}, "classes": ("calm", "ill")},
            "labels",
            'good label "anomaly": 2 classes, ill the rarest with 10.0 %',
        ),
        ({"missing": {"hr": 10}}, "missing", "good 5.0 % of cells missing"),
        ({"missing": {"hr": 30}}, "missing", "note 15.0 % of cells missing, most of hr"),
        ({"missing": {"hr": 100}}, "missing", "note no value at all for hr"),
        ({"gaps": 1, "longest_gap_s": 90_000.0}, "gaps", "note 1 gap over 2 h, the longest 25 h"),
        ({"gaps": 3, "longest_gap_s": 432_000.0}, "gaps", "note 3 gaps over 2 h, the longest 5 days"),
        ({"now": "2026-10-21T12:00:00Z"}, "age", "note nothing new for 30 days: does the recorder run?"),
        (
            {"now": "1970-01-02T00:00:00Z"},
            "age",
            "note the newest row is 20716 days ahead of the device's clock",
        ),
        ({"gap_s": 1e300}, "gaps", "note its times make no sense: rows are over 1000 years apart"),
        (
            {"gaps": 1, "longest_gap_s": 2e300},
            "gaps",
            "note 1 gap over 2 h, the longest over 1000 years",
        ),
        ({"unreadable_rows": 4}, "unreadable", "note 4 rows cannot be read"),
    ],
)
def test_what_is_to_be_looked_at(changes: dict[str, Any], subject: str, expected: str) -> None:
    assert findings(**changes)[subject] == expected


def test_a_class_that_the_model_has_and_the_device_does_not() -> None:
    wanted = Wanted("har@1", DataNeeds((2,), 6))
    text = findings(wanted, labels={"0": 1, "2": 1, "5": 1})["labels"]
    assert text == 'note label "anomaly": no example of 1, 3, 4'


def test_a_device_that_only_measures_needs_no_training_part() -> None:
    source = replace(SOURCE, training=0)
    report = DataReport("2026-09-21T12:04:00Z", 20, (source,))
    assert "rows" in {finding.subject for finding in judge(report, source, HEALTH)}
    assert "rows" not in {finding.subject for finding in judge(report, source, HEALTH, trains=False)}
    few = replace(source, examples=3)
    (found,) = [f for f in judge(report, few, HEALTH, trains=False) if f.subject == "rows"]
    assert found.text == "3 examples, its policy asks for 20"


def test_what_the_policy_keeps_is_said_and_not_guessed() -> None:
    assert findings(facts=None) == {
        "schema": "good schema fits health@1",
        "policy": "note its policy keeps times, labels and gaps to itself",
    }
    assert "labels" not in findings(labels=None)
    assert set(findings(first=None, last=None, gaps=None, gap_s=None)) == {"schema", "labels", "missing"}


def test_an_error_is_all_there_is_to_say() -> None:
    source = replace(SOURCE, error=Reason("source", "it is gone"))
    found = judge(DataReport("2026-09-21T12:04:00Z", 20, (source,)), source, HEALTH)
    assert found == (Finding(Mark.BAD, "error", "it is gone"),)


def test_a_report_that_makes_no_sense_breaks_nothing() -> None:
    assert findings(shape=(0,), missing={"hr": -3}, labels={"0": 0, "1": 0}, rows=-1)
    assert findings(labels={})


def test_ages_days_and_shares() -> None:
    report = DataReport("2026-09-21T12:04:00Z", 20, (SOURCE,))
    assert age_s(report, SOURCE) == 240
    assert days(SOURCE) == 20.5
    windows = replace(SOURCE, kind="npz", shape=(2, 10), facts=replace(FACTS, missing={"x[0]": 500}))
    assert missing_share(windows) == 0.25
    assert [span(s) for s in (0.06, 59, 60, 3600, 86_400, 172_800)] == [
        "0.06 s",
        "59 s",
        "1 min",
        "1 h",
        "24 h",
        "2 days",
    ]
    assert span(1e300) == "over 1000 years"
    assert (since(240), since(-7200)) == ("4 min ago", "2 h in the future")

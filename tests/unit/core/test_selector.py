"""Choosing devices, and the words that set labels."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedctl.core.errors import NotFoundError, UsageError
from fedctl.core.records import Device, DeviceState
from fedctl.core.selector import Selector, parse_label_changes, without_maintenance


def device(name: str, **labels: str) -> Device:
    state = DeviceState.ENROLLED
    return Device(name, f"unix:///{name}", None, "", 1, None, None, None, state, "", None, labels=labels)


FLEET = (
    device("watch-10", site="lab", role="train"),
    device("watch-02", site="home", role="holdout"),
    device("watch-01", site="lab", role="holdout"),
    device("band-1"),
)


@pytest.mark.parametrize(
    ("names", "labels", "found"),
    [
        ([], [], ["band-1", "watch-01", "watch-02", "watch-10"]),
        (["watch-02"], [], ["watch-02"]),
        (["watch-0*"], [], ["watch-01", "watch-02"]),
        (["watch-?0", "band-1"], [], ["band-1", "watch-10"]),
        (["watch-0[2-9]"], [], ["watch-02"]),
        (["watch-01", "watch-*", "watch-01"], [], ["watch-01", "watch-02", "watch-10"]),
        ([], ["site=lab"], ["watch-01", "watch-10"]),
        ([], ["site=lab", "role=holdout"], ["watch-01"]),
        (["watch-1*"], ["site=lab"], ["watch-10"]),
        ([], ["site=lab,role=holdout"], ["watch-01"]),
        ([], ["site==home"], ["watch-02"]),
        ([], ["site!=lab"], ["band-1", "watch-02"]),
        ([], ["site!=lab,site"], ["watch-02"]),
        ([], ["site in (lab,home)"], ["watch-01", "watch-02", "watch-10"]),
        ([], ["site in ( lab , home ),role!=holdout"], ["watch-10"]),
        ([], ["role=holdout,site in(home,moon)", "site"], ["watch-02"]),
        ([], ["site notin (lab,moon)"], ["band-1", "watch-02"]),
        ([], ["site"], ["watch-01", "watch-02", "watch-10"]),
        ([], ["!site"], ["band-1"]),
        ([], ["! site"], ["band-1"]),
        ([], ["role=train"], ["band-1", "watch-10"]),  # also without the label
    ],
)
def test_names_globs_and_labels_are_anded(names: list[str], labels: list[str], found: list[str]) -> None:
    assert [d.name for d in Selector.parse(names, labels).select(FLEET)] == found


@pytest.mark.parametrize(
    ("names", "labels", "message", "hint"),
    [
        (["wach-01"], [], "no device is named 'wach-01'", "watch-01"),
        (["watch-01", "zzz"], [], "no device is named 'zzz'", "devices list"),
        (["Watch-01"], [], "'Watch-01'", "watch-01"),
        (["bnad-*"], [], "no device matches 'bnad-*'", "band-1"),
        ([], ["site=lap"], "no device matches '-l site=lap'", "lab"),
        ([], ["site=mars"], "'-l site=mars'", "site is one of: home, lab"),
        ([], ["sit=lab"], "'-l sit=lab'", "site"),
        ([], ["colour=red"], "'-l colour=red'", "no device has the label 'colour'"),
        (["band-*"], ["site=lab"], "'band-* -l site=lab'", "none matches all"),
        ([], ["site in (mars,moon)"], "-l 'site in (mars,moon)'", "site is one of: home, lab"),
        ([], ["!role"], "-l '!role'", "every device has role"),
    ],
)
def test_matching_nothing_is_an_error_with_near_misses(
    names: list[str], labels: list[str], message: str, hint: str
) -> None:
    with pytest.raises(NotFoundError) as caught:
        Selector.parse(names, labels).select(FLEET)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_everything_of_an_empty_fleet_is_nothing_without_an_error() -> None:
    assert Selector.parse([], []).select([]) == ()
    with pytest.raises(NotFoundError):
        Selector.parse(["*"], []).select([])


@pytest.mark.parametrize(
    "label", ["=lab", "Site=lab", "site=", "a b=c", "site=a b", "../x=y", "site='x'", "x=" + "y" * 64]
)
def test_a_label_of_another_form_is_refused(label: str) -> None:
    for read in (lambda: Selector.parse([], [label]), lambda: parse_label_changes([label])):
        with pytest.raises(UsageError) as caught:
            read()
        assert caught.value.subject == label
        assert caught.value.hint


@pytest.mark.parametrize(
    "label",
    [
        "",
        ",",
        "site=lab,",
        "site in lab",
        "site in ()",
        "site in (a,",
        "site in (a b)",
        "site ni (a)",
        "!",
        "a<b",
    ],
)
def test_a_condition_of_another_form_is_refused(label: str) -> None:
    with pytest.raises(UsageError) as caught:
        Selector.parse([], [label])
    assert caught.value.subject == label
    assert caught.value.hint


def test_a_limit_takes_the_first_by_name() -> None:
    assert [d.name for d in Selector.parse([], [], 2).select(FLEET)] == ["band-1", "watch-01"]
    assert len(Selector.parse([], ["site"], 9).select(FLEET)) == 3
    for bad in (0, -1):
        with pytest.raises(UsageError, match="--limit"):
            Selector.parse([], [], bad)


def test_devices_in_maintenance_are_left_out_and_all_of_them_is_an_error() -> None:
    resting = replace(FLEET[0], state=DeviceState.MAINTENANCE)
    assert without_maintenance((resting, FLEET[1])) == ((FLEET[1],), (resting,))
    assert without_maintenance(()) == ((), ())
    with pytest.raises(NotFoundError, match="in maintenance") as caught:
        without_maintenance((resting,))
    assert "fedctl devices maintenance watch-10 off" in caught.value.hint


def test_label_changes() -> None:
    words = ["site=lab", "role=holdout", "old-", "fw=1.2.0"]
    assert parse_label_changes(words) == {"site": "lab", "role": "holdout", "old": None, "fw": "1.2.0"}
    assert parse_label_changes(["role-"]) == {"role": None}
    for bad in (["site=a", "site=b"], ["site=a", "site-"], ["role=hold-out"], ["-"]):
        with pytest.raises(UsageError):
            parse_label_changes(bad)

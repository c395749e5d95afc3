"""Rendering of results: every form, every width, every kind of place it goes to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedctl.cli.output import Column, Format, Table, View, facts, show
from fedctl.cli.screen import Screen, cells, clean, clip, write
from fedctl.core.errors import ConfigError

COLUMNS = (
    Column("name"),
    Column("sent (kB)", right=True),
    Column("labels", drop=1),
    Column("url", drop=2),
    Column("reason"),
)
ROWS = [
    ("watch-01", "7", "ward=3", "ssh://pi@192.0.2.41", None),
    ("watch-02", "1234", None, "ssh://pi@192.0.2.42", "connection lost"),
]
VIEW = View(
    {"devices": [{"name": "watch-01", "seen": None}]},
    [["two devices"], Table(COLUMNS, ROWS)],
    [{"name": "watch-01", "seen": None}],
    ["watch-01", "watch-02"],
)


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_table_aligns_names_left_and_numbers_right() -> None:
    assert list(Table(COLUMNS, ROWS).lines(200)) == [
        "name      sent (kB)  labels  url                  reason",
        "watch-01          7  ward=3  ssh://pi@192.0.2.41  -",
        "watch-02       1234  -       ssh://pi@192.0.2.42  connection lost",
    ]


def test_a_narrow_table_drops_its_least_columns_and_then_cuts_text() -> None:
    assert next(Table(COLUMNS, ROWS).lines(50)) == "name      sent (kB)  labels  reason"
    lines = list(Table(COLUMNS, ROWS).lines(30))
    assert lines[0].split() == ["name", "sent", "(kB)", "reason"]
    assert lines[2].endswith("connecti…")
    assert max(map(len, lines)) <= 30


def test_a_column_without_a_value_is_left_out() -> None:
    table = Table((Column("name"), Column("arch"), Column("error")), [("a", None, None), ("b", "x86", None)])
    assert list(table.lines(80)) == ["name  arch", "a     -", "b     x86"]


def test_no_rows_are_no_lines() -> None:
    assert list(Table(COLUMNS, []).lines(80)) == []


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=20), st.text(max_size=200), st.text(max_size=90)), min_size=1
    ),
    st.integers(min_value=60, max_value=200),
)
def test_rows_never_wrap(rows: list[tuple[str, str, str]], width: int) -> None:
    table = Table((Column("name"), Column("free text", drop=1), Column("reason")), rows)
    assert all(cells(line) <= width and "\n" not in line for line in table.lines(width))


def test_text_from_devices_cannot_steer_the_terminal() -> None:
    assert clean("bell\x07 and \x1b[31mred\r\nline") == "bell  and  [31mred  line"
    table = Table((Column("name"), Column("reason")), [("a", "\x1b]0;title\x07")])
    assert "\x1b" not in "".join(table.lines(80))


def test_wide_characters_count_twice_and_combining_ones_not_at_all() -> None:
    assert cells("幅") == 2
    assert cells("e\u0301") == 1
    assert clip("幅幅幅", 4) == "幅…"


def test_json_has_a_schema_version_and_null_for_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    show(VIEW, Format.JSON, quiet=False)
    out = capsys.readouterr().out
    assert json.loads(out) == {"schema_version": 1, "devices": [{"name": "watch-01", "seen": None}]}
    assert out.count("\n") == 1  # one line where no person looks


def test_jsonl_has_one_object_a_row_and_name_one_name_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show(VIEW, Format.JSONL, quiet=False)
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == ["watch-01"]
    show(VIEW, Format.NAME, quiet=False)
    assert capsys.readouterr().out == "watch-01\nwatch-02\n"


def test_blocks_are_set_apart_by_an_empty_line(capsys: pytest.CaptureFixture[str]) -> None:
    show(VIEW, None, quiet=False)
    first, empty, header, *_ = capsys.readouterr().out.splitlines()
    assert (first, empty) == ("two devices", "")
    assert header.startswith("name ")


def test_quiet_silences_actions_but_neither_data_nor_an_asked_for_form(
    capsys: pytest.CaptureFixture[str],
) -> None:
    action = View({"done": True}, [["done"]], names=["x"], action=True)
    show(action, None, quiet=True)
    assert capsys.readouterr().out == ""
    show(action, Format.JSON, quiet=True)
    assert json.loads(capsys.readouterr().out)["done"] is True
    show(VIEW, None, quiet=True)
    assert "watch-01" in capsys.readouterr().out


def test_facts_align_and_keep_long_values_whole() -> None:
    long = "f" * 64
    assert facts([("sha256", long), ("parent", None), ("a", "b")]) == [
        f"sha256  {long}",
        "parent  -",
        "a       b",
    ]


@pytest.mark.parametrize(
    ("environment", "unicode"),
    [
        ({"LC_ALL": "C.UTF-8"}, True),
        ({"LC_ALL": "", "LANG": "en_US.utf8"}, True),
        ({"LC_ALL": "", "LANG": "en_US.ISO-8859-1"}, False),
        ({"LC_ALL": "C", "LANG": "en_US.UTF-8"}, False),
    ],
)
def test_the_locale_decides_about_ascii(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *, unicode: bool
) -> None:
    monkeypatch.delenv("LC_CTYPE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with Path(os.devnull).open("w", encoding="utf-8") as null:
        assert Screen.of(null).unicode is unicode


def test_ascii_stands_in_one_for_one() -> None:
    rough = Screen(columns=80, colour=False, unicode=False)
    line = "✓ watch-01  ███░  .871 (\N{MINUS SIGN}.011) … 幅"
    painted = rough.paint(line)
    assert painted.isascii()
    assert len(painted) == len(line)
    assert painted.startswith("+ watch-01  ###.")


def test_only_a_terminal_gets_colour_and_only_for_ticks() -> None:
    assert (
        Screen(columns=80, colour=True, unicode=True).paint("✓ ok ✗")
        == "\x1b[32m✓\x1b[0m ok \x1b[31m✗\x1b[0m"
    )
    assert Screen(columns=80, colour=False, unicode=True).paint("✓ ok ✗") == "✓ ok ✗"


def test_a_full_disk_under_stdout_is_an_error_with_a_way_out() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full, pytest.raises(ConfigError) as caught:
        write(full, ["text"])
    assert "no space left" in caught.value.message

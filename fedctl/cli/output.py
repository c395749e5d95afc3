"""What a command shows: one value, rendered as table, JSON, JSON lines or names."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from fedctl.cli.screen import Screen, cells, clean, clip, is_terminal, write
from fedctl.core.errors import ExitCode
from fedctl_wire.codec import Json

SCHEMA_VERSION = 1  # of `-o json`; grows when a field changes its meaning or goes
_GAP = "  "
_FLOW_GAP = "   "
_NARROWEST = 8  # columns of a terminal that a cut text keeps


class Format(StrEnum):
    """The values of `-o`."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    NAME = "name"


class Block(Protocol):
    """A part of a result that is laid out for the width of the screen."""

    def lines(self, width: int) -> Iterator[str]:
        """The lines, none of them wider than `width` where that can be."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table. Numbers stand on the right, with their unit in the title."""

    title: str
    right: bool = False
    drop: int = 0  # where the table is too wide, the highest goes first; 0 stays
    width: int = 0  # at least; for tables whose rows come one at a time


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; None is shown as "-", a column of nothing else not at all.

    The first column, names, is never cut.
    """

    columns: Sequence[Column]
    rows: Iterable[Sequence[str | None]]  # read once, when the table is shown

    def lines(self, width: int) -> Iterator[str]:
        """Lay the table out in at most `width` columns: columns are dropped, rows never wrap."""
        rows = list(self.rows)
        if not rows:
            return
        shown = [i for i in range(len(self.columns)) if i == 0 or any(row[i] for row in rows)]
        body = [[clean(cell) if cell else "-" for cell in row] for row in rows]
        widths = [
            max(column.width, cells(column.title), *(cells(row[i]) for row in body))
            for i, column in enumerate(self.columns)
        ]
        self._fit(shown, widths, width)
        for row in ([column.title for column in self.columns], *body):
            yield _GAP.join(
                _pad(clip(row[i], widths[i]), widths[i], right=self.columns[i].right) for i in shown
            ).rstrip()

    def _fit(self, shown: list[int], widths: list[int], width: int) -> None:
        """Drop columns until the rest fits; narrow the widest text when that was not enough."""

        def excess() -> int:
            return sum(widths[i] for i in shown) + len(_GAP) * (len(shown) - 1) - width

        while excess() > 0 and (droppable := [i for i in shown if self.columns[i].drop]):
            shown.remove(max(droppable, key=lambda i: self.columns[i].drop))
        while excess() > 0 and (
            texts := [i for i in shown[1:] if not self.columns[i].right and widths[i] > _NARROWEST]
        ):
            widest = max(texts, key=lambda i: widths[i])
            widths[widest] = max(_NARROWEST, widths[widest] - excess())


@dataclass(frozen=True, slots=True)
class Details:
    """What a cell of the table above has no room for: whole sentences below their name, wrapped."""

    entries: Sequence[tuple[str, Sequence[str]]]  # name, sentences; the first stands beside the name

    def lines(self, width: int) -> Iterator[str]:
        """Lay the sentences out in `width` columns; words longer than that stay whole."""
        import textwrap

        for name, (first, *rest) in self.entries:
            for start, sentence in ((f"{name}: ", first), *((_GAP, other) for other in rest)):
                yield from textwrap.wrap(
                    clean(sentence),
                    width,
                    initial_indent=start,
                    subsequent_indent=_GAP,
                    break_long_words=False,
                    break_on_hyphens=False,
                )


@dataclass(frozen=True, slots=True)
class Flow:
    """Short phrases, as many on a line as there is room for; one that is wider than a line is wrapped."""

    phrases: Sequence[str]
    indent: str = ""

    def lines(self, width: int) -> Iterator[str]:
        """Lay the phrases out in `width` columns; words longer than that stay whole."""
        import textwrap

        line = ""
        for phrase in map(clean, self.phrases):
            longer = f"{line}{_FLOW_GAP}{phrase}" if line else f"{self.indent}{phrase}"
            if cells(longer) <= width:
                line = longer
                continue
            if line:
                yield line
            *whole, line = textwrap.wrap(
                phrase,
                width,
                initial_indent=self.indent,
                subsequent_indent=f"{self.indent}{_GAP}",
                break_long_words=False,
                break_on_hyphens=False,
            ) or [""]
            yield from whole
        if line:
            yield line


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines; where one is too wide, its phrases (three spaces apart) go onto the next."""

    texts: Sequence[str]

    def lines(self, width: int) -> Iterator[str]:
        """Lay the lines out in `width` columns."""
        for text in self.texts:
            yield from Flow(text.split(_FLOW_GAP)).lines(width)


@dataclass(frozen=True, slots=True)
class View:
    """A command's result in every form; the command line renders the one that was asked for."""

    body: dict[str, Json]  # `-o json`, where `schema_version` is added
    blocks: Sequence[Block | Sequence[str]]  # `-o table`, an empty line between them
    rows: Sequence[Json] | None = None  # `-o jsonl`; None: the body is the only one
    names: Sequence[str] = ()  # `-o name`
    nothing: str = ""  # said on stderr where a table for a person has no rows
    action: bool = False  # done rather than asked for: `-q` says nothing of it
    warnings: Sequence[str] = ()  # said on stderr in every form, and with `-q`
    exit_code: ExitCode = ExitCode.OK


def show(view: View, form: Format | None, *, quiet: bool) -> None:
    """Write a view to stdout; `form` is None where nobody asked for one."""
    _warn(view.warnings)
    if view.action and quiet and form is None:
        return
    screen = Screen.of(sys.stdout)
    write(sys.stdout, _LINES[form or Format.TABLE](view, screen))
    if view.nothing and not view.rows and form in {None, Format.TABLE} and not quiet:
        write(sys.stderr, [Screen.of(sys.stderr).paint(view.nothing)])


def _warn(warnings: Sequence[str]) -> None:
    screen = Screen.of(sys.stderr)
    for warning in warnings:
        write(sys.stderr, map(screen.paint, Details([("warning", (warning,))]).lines(screen.columns)))


def _table_lines(view: View, screen: Screen) -> Iterator[str]:
    first = True
    for block in view.blocks:
        lines = map(clean, block) if isinstance(block, Sequence) else block.lines(screen.columns)
        for number, line in enumerate(lines):
            if number == 0 and not first:
                yield ""
            first = False
            yield screen.paint(line)


def _json_lines(view: View, screen: Screen) -> Iterator[str]:
    indent = 2 if is_terminal(sys.stdout) else None
    yield json.dumps(
        {"schema_version": SCHEMA_VERSION, **view.body}, indent=indent, ensure_ascii=not screen.unicode
    )


def _jsonl_lines(view: View, screen: Screen) -> Iterator[str]:
    for row in (view.body,) if view.rows is None else view.rows:
        yield json.dumps(row, ensure_ascii=not screen.unicode)


def _name_lines(view: View, _screen: Screen) -> Iterator[str]:
    yield from view.names


_LINES: dict[Format, Callable[[View, Screen], Iterator[str]]] = {
    Format.TABLE: _table_lines,
    Format.JSON: _json_lines,
    Format.JSONL: _jsonl_lines,
    Format.NAME: _name_lines,
}


def facts(pairs: Sequence[tuple[str, str | None]]) -> list[str]:
    """Names and values, one a line; None is shown as "-". Values are not cut, they were asked for."""
    left = max((cells(name) for name, _ in pairs), default=0)
    return [f"{_pad(name, left)}{_GAP}{value or '-'}" for name, value in pairs]


def _pad(text: str, width: int, *, right: bool = False) -> str:
    space = " " * (width - cells(text))
    return space + text if right else text + space

"""Arguments and options that several commands share."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedctl.cli.screen import is_terminal
from fedctl.core.errors import NotFoundError, UsageError
from fedctl.core.home import Home

if TYPE_CHECKING:
    from fedctl.core.records import Device
    from fedctl.core.selector import Selector
    from fedctl.store import ReadStore, Store

_DAY_S = 24 * 3600
_STDIN = "-"
_STDIN_EXAMPLE = "for example: fedctl devices list -l ward=3 -o name | fedctl devices ping -"

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAMES]...", help="Devices, by name or glob such as 'watch-*'; - reads names from stdin."
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "-l",
        "--label",
        metavar="CONDITIONS",
        help="Only devices whose labels are so: k=v, k!=v, 'k in (a,b)', 'k notin (a,b)', k, '!k'; "
        "commas and repeats narrow.",
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=1, help="At most so many devices, by name.")
]
RootKey = Annotated[
    Path | None,
    typer.Option("--root-key", metavar="PATH", help="Where the root key is, if not in the fleet's home."),
]


def _finite(value: float) -> float:
    if not math.isfinite(value):  # no range keeps out what is not a number
        raise typer.BadParameter(f"{value} is not a number of seconds")
    return value


Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        min=0.001,
        max=_DAY_S,
        callback=_finite,
        help="For each device.",
    ),
]
Parallel = Annotated[int, typer.Option("--parallel", metavar="N", min=1, help="Devices at the same time.")]


def home() -> Home:
    """The state directory that this command works on."""
    return Home.from_environment()


def reading() -> ReadStore:
    """The state database, opened for reading."""
    from fedctl.store import ReadStore

    return ReadStore.open(home())


def writing() -> Store:
    """The state database, opened for writing."""
    from fedctl.store import Store

    return Store.open(home())


def selector_of(
    names: Sequence[str] | None, label: Sequence[str] | None, limit: int | None = None
) -> Selector:
    """What names, globs, labels and a limit mean; the name `-` stands for those on stdin."""
    from fedctl.core.selector import Selector

    words = names or ()
    named = [word for word in words if word != _STDIN]
    return Selector.parse([*named, *_names_on_stdin()] if _STDIN in words else named, label or (), limit)


def selected(
    store: ReadStore, names: Sequence[str] | None, label: Sequence[str] | None, limit: int | None = None
) -> tuple[Device, ...]:
    """The devices that names, globs and labels mean; all of them where none is given."""
    return selector_of(names, label, limit).select(store.devices())


def chosen(
    store: ReadStore, names: Sequence[str] | None, label: Sequence[str] | None, limit: int | None = None
) -> tuple[Device, ...]:
    """The selected devices, where something is changed: choosing nothing is not choosing all.

    Raises:
        UsageError: When there is neither a name nor a label.
    """
    if not names and not label:
        raise UsageError("no device was named", hint="name devices, use -l KEY=VALUE, or '*' for all of them")
    return selected(store, names, label, limit)


def _names_on_stdin() -> list[str]:
    """The words on stdin, as `-o name` writes them.

    Raises:
        NotFoundError: There is none: nothing must not mean every device.
        UsageError: They are no text.
    """
    try:
        names = sys.stdin.read().split()
    except UnicodeDecodeError:
        raise UsageError("what is on stdin is no text", hint=_STDIN_EXAMPLE, subject=_STDIN) from None
    if not names:
        raise NotFoundError("stdin names no device", hint=_STDIN_EXAMPLE, subject=_STDIN)
    return names


def integers(words: Sequence[str], *, option: str) -> tuple[int, ...]:
    """Read whole numbers above 0, each word one or a comma-separated list of them.

    Raises:
        UsageError: When a part is no such number.
    """
    parts = [part.strip() for word in words for part in word.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"{option} {','.join(words)!r} is not a list of whole numbers above 0",
            hint=f"for example: {option} 64 or {option} 64,32",
            subject=option,
        )
    return tuple(int(part) for part in parts)


def names_of(words: Sequence[str], *, option: str) -> tuple[str, ...]:
    """Read names, each word one or a comma-separated list, where a name with a comma is in double quotes.

    Raises:
        UsageError: When a quote does not end.
    """
    import csv

    try:
        rows = [next(csv.reader([word], strict=True, skipinitialspace=True), [""]) for word in words]
    except csv.Error as error:
        hint = f"for example: {option} hr,steps or {option} 'hr,\"acc, x\"'"
        raise UsageError(f"{option} is not a list of names: {error}", hint=hint, subject=option) from error
    return tuple(name.strip() for row in rows for name in row)


def seconds_of(text: str, *, option: str) -> float:
    """Read a duration: seconds, or a number with s, m or h.

    Raises:
        UsageError: When it is none.
    """
    factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    try:
        return float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is not a duration",
            hint=f"for example: {option} 90s, 10m or 1h",
            subject=option,
        ) from None


def confirm(question: str) -> bool:
    """Ask a person; only `y` and `yes` agree."""
    return typer.confirm(question, default=False, err=True)


def prompts() -> bool:
    """Whether there is a person to ask."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


BOTH_WHEELS = (
    "both fedctl and fedctl-agent are installed here and own the same files: "
    "pip uninstall fedctl-agent, then install fedctl again"
)

"""Arguments and options that several commands share."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedctl.cli.screen import is_terminal
from fedctl.core.errors import UsageError
from fedctl.core.home import Home

if TYPE_CHECKING:
    from fedctl.core.records import Device
    from fedctl.store import ReadStore, Store

_DAY_S = 24 * 3600

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAMES]...", help="Devices, by name or glob such as 'watch-*'.", show_default=False
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "-l", "--label", metavar="KEY=VALUE", help="Only devices with this label; repeat to narrow."
    ),
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


def selected(
    store: ReadStore, names: Sequence[str] | None, label: Sequence[str] | None
) -> tuple[Device, ...]:
    """The devices that names, globs and labels mean; all of them where none is given."""
    from fedctl.core.selector import Selector

    return Selector.parse(names or (), label or ()).select(store.devices())


def chosen(store: ReadStore, names: Sequence[str] | None, label: Sequence[str] | None) -> tuple[Device, ...]:
    """The selected devices, where something is changed: choosing nothing is not choosing all.

    Raises:
        UsageError: When there is neither a name nor a label.
    """
    if not names and not label:
        raise UsageError("no device was named", hint="name devices, use -l KEY=VALUE, or '*' for all of them")
    return selected(store, names, label)


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
            f"{option} {text!r} is not a duration such as 90s, 10m or 1h", subject=option
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

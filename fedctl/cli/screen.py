"""Where text goes: how wide the place is, whether it takes colour, and which characters it can show."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TextIO

from fedctl.core.errors import ConfigError, reason_of

_FALLBACK_COLUMNS = 80
_GREEN, _RED, _RESET = "\x1b[32m", "\x1b[31m", "\x1b[0m"
_FINE = "✓✗…·→≥≤▁▂▃▄▅▆▇█░\N{MINUS SIGN}\N{EN DASH}"
_ROUGH = "+x~->><.:-=+*##.--"  # one character for one, so that columns stay aligned
_ASCII = str.maketrans(_FINE, _ROUGH)


@dataclass(frozen=True, slots=True)
class Screen:
    """What one output stream can show."""

    columns: int
    colour: bool
    unicode: bool

    @classmethod
    def of(cls, stream: TextIO) -> Screen:
        """Ask the stream and the environment: `COLUMNS`, `NO_COLOR`, `TERM` and the locale."""
        columns = shutil.get_terminal_size((_FALLBACK_COLUMNS, 24)).columns
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        return cls(columns, colour=is_terminal(stream) and not plain, unicode=_unicode_locale())

    def paint(self, line: str) -> str:
        """Make a laid-out line fit for this screen: ticks and crosses coloured, or ASCII instead."""
        if not self.unicode:
            line = line.translate(_ASCII).encode("ascii", "replace").decode()
        if self.colour:
            for mark, colour in (("✓", _GREEN), ("✗", _RED)):
                line = line.replace(mark, f"{colour}{mark}{_RESET}")
        return line


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at the stream."""
    return not stream.closed and stream.isatty()


def clean(text: str) -> str:
    """The text on one line, without characters that could steer a terminal; devices send such text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " for c in text)


def cells(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def clip(text: str, width: int) -> str:
    """Cut the text to `width` columns, the last one an ellipsis when something is missing."""
    if cells(text) <= width:
        return text
    kept = text
    while kept and cells(kept) > width - 1:
        kept = kept[:-1]
    return kept + "…"


def write(stream: TextIO, lines: Iterable[str]) -> None:
    """Write lines and flush; a reader that has gone (`| head -1`) is no error.

    Raises:
        ConfigError: When the disk under the stream is full or broken.
    """
    try:
        stream.writelines(f"{line}\n" for line in lines)
        stream.flush()
    except BrokenPipeError:
        discard(stream)
    except OSError as error:
        discard(stream)
        raise ConfigError(
            f"cannot write the output: {reason_of(error)}", hint="free space where the output goes"
        ) from error


def discard(stream: TextIO) -> None:
    """Let what is still buffered go nowhere, or the interpreter complains about it at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _unicode_locale() -> bool:
    """Whether the locale's characters are UTF-8.

    Python runs in UTF-8 mode under the C locale and then sets LC_CTYPE itself, which says nothing
    about the terminal.
    """
    names = ("LC_ALL", "LANG") if sys.flags.utf8_mode else ("LC_ALL", "LC_CTYPE", "LANG")
    locale = next((value for name in names if (value := os.environ.get(name))), "")
    return "utf-8" in locale.lower() or "utf8" in locale.lower()

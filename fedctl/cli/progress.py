"""What a person sees while an operation works: notes, and after a second one live line a device.

Everything goes to stderr. Live lines only appear on a terminal; `-q` silences both.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedctl.cli.screen import Screen, cells, clean, clip, is_terminal, write
from fedctl.core.progress import DeviceProgress, Event, Note

if TYPE_CHECKING:
    from rich.live import Live

_PATIENCE_S = 1.0  # a shorter operation shows nothing but its result
_MOST_LINES = 12  # more devices than that are counted by stage
_BAR_CELLS = 20
_REFRESH_PER_S = 8


class Watcher:
    """An observer of operations; a context manager that leaves a clean terminal behind.

    Called from the threads that work on the devices.
    """

    def __init__(self, *, quiet: bool, indent: str = "") -> None:
        self._quiet = quiet
        self._indent = indent  # before each note
        self._screen = Screen.of(sys.stderr)
        self._terminal = is_terminal(sys.stderr) and self._screen.colour
        self._started = time.monotonic()
        self._devices: dict[str, DeviceProgress] = {}
        self._live: Live | None = None
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pause()

    def __call__(self, event: Event) -> None:
        """Take an event; those that this class does not know are somebody else's."""
        if self._quiet:
            return
        with self._lock:
            if isinstance(event, Note):
                self.pause()
                write(sys.stderr, map(self._screen.paint, self._wrapped(event.text)))
            elif isinstance(event, DeviceProgress):
                self._devices[event.device] = event
                self._show()

    def note(self, sentence: str) -> None:
        """A word of the command line itself."""
        self(Note(sentence))

    def pause(self) -> None:
        """Take the live lines away, to write something else; the next event brings them back."""
        with self._lock:
            live, self._live = self._live, None
            if live is not None:
                live.stop()

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Keep the terminal free of live lines and notes, for a question; other threads wait meanwhile."""
        with self._lock:
            self.pause()
            yield

    def forget(self) -> None:
        """Start with no devices again: another round begins."""
        with self._lock:
            self.pause()
            self._devices.clear()
            self._started = time.monotonic()

    def _wrapped(self, text: str) -> list[str]:
        import textwrap

        return textwrap.wrap(
            clean(text),
            self._screen.columns,
            initial_indent=self._indent,
            subsequent_indent=f"{self._indent}  ",
            break_long_words=False,
            break_on_hyphens=False,
        )

    def _show(self) -> None:
        if not self._terminal or self._live is not None or time.monotonic() - self._started < _PATIENCE_S:
            return
        from rich.console import Console
        from rich.live import Live

        self._live = Live(
            get_renderable=self._render,
            console=Console(file=sys.stderr, width=self._screen.columns, highlight=False),
            refresh_per_second=_REFRESH_PER_S,
            transient=True,
            redirect_stdout=False,  # the result must never end up on stderr
            redirect_stderr=False,
        )
        self._live.start()

    def _render(self) -> str:
        from rich.markup import escape

        with self._lock:
            return escape("\n".join(live_lines(self._devices, self._screen)))


def live_lines(devices: dict[str, DeviceProgress], screen: Screen) -> list[str]:
    """One line a device, or one for all of them when they are many."""
    if len(devices) > _MOST_LINES:
        return [clip(_count(devices), screen.columns)]
    left = max(map(cells, devices), default=0)
    lines = []
    for device in sorted(devices):
        progress = devices[device]
        words = clean(" ".join(filter(None, (progress.stage, progress.detail))))
        bar = f"{_bar(progress.fraction)}  " if progress.fraction is not None else ""
        line = clip(f"  {device:{left}}  {bar}{words}{_traffic(progress)}", screen.columns)
        lines.append(screen.paint(line) if not screen.unicode else line)
    return lines


def _count(devices: dict[str, DeviceProgress]) -> str:
    stages: dict[str, int] = {}
    for progress in devices.values():
        stages[progress.stage] = stages.get(progress.stage, 0) + 1
    return f"  {len(devices)} devices: " + ", ".join(
        f"{n} {clean(stage)}" for stage, n in sorted(stages.items())
    )


def _bar(fraction: float) -> str:
    done = round(max(0.0, min(1.0, fraction)) * _BAR_CELLS)
    return "█" * done + "░" * (_BAR_CELLS - done)


def _traffic(progress: DeviceProgress) -> str:
    from fedctl.cli.units import byte_count

    total = progress.bytes_up + progress.bytes_down
    return f"  {byte_count(total)}" if total else ""

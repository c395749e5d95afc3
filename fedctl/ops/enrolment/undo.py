"""Taking back what a command did before it failed."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from fedctl.core.errors import FedctlError


class Undo:
    """Steps that are run in reverse order when the block ends with an exception, Ctrl-C included.

    A step that fails never hides why the command failed: what could not be taken back is added to the
    hint of the error that is on its way.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def add(self, what: str, step: Callable[[], object]) -> None:
        """Register how to take back the change that comes next; `what` names it for a person."""
        self._steps.append((what, step))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        left: list[str] = []
        while self._steps:
            what, step = self._steps.pop()
            try:
                step()
            except FedctlError as failure:
                left.append(f"{what} ({failure.message})")
        if left and isinstance(error, FedctlError):
            error.hint = "; ".join(filter(None, [error.hint, f"left behind: {', '.join(left)}"]))

"""Taking back what was done: in reverse order, and never hiding why it is taken back."""

from __future__ import annotations

import pytest

from fedctl.core.errors import DeviceError, UnreachableError
from fedctl.ops.enrolment.undo import Undo


def run(undo_log: list[str], error: BaseException | None, *, failing: str = "") -> None:
    def step(name: str) -> None:
        undo_log.append(name)
        if name == failing:
            raise UnreachableError("connection lost")

    with Undo() as undo:
        undo.add("files", lambda: step("files"))
        undo.add("key", lambda: step("key"))
        if error is not None:
            raise error


def test_success_undoes_nothing() -> None:
    log: list[str] = []
    run(log, None)
    assert log == []


@pytest.mark.parametrize("error", [DeviceError("x"), KeyboardInterrupt(), ValueError("defect")])
def test_any_failure_undoes_all_in_reverse(error: BaseException) -> None:
    log: list[str] = []
    with pytest.raises(type(error)):
        run(log, error)
    assert log == ["key", "files"]


def test_a_step_that_fails_is_told_with_the_first_error_and_stops_no_other() -> None:
    log: list[str] = []
    with pytest.raises(DeviceError, match="the cause") as error:
        run(log, DeviceError("the cause", hint="do this"), failing="key")
    assert log == ["key", "files"]
    assert error.value.hint == "do this; left behind: key (connection lost)"

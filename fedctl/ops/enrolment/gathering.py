"""Devices that are added at the same time become members together: one new roster for all of them."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from fedctl.core.errors import FedctlError
from fedctl.core.records import Device
from fedctl.ops.enrolment.enrol import Candidate

_PATIENCE_S = 60.0  # that a device waits for slower ones; then those present go first
Enrol = Callable[[Sequence[Candidate]], Mapping[str, Device | FedctlError]]


class Gathering:
    """Where the threads that add devices meet. Thread-safe.

    Each thread works on one row after the other; for a row it may call `join`, and it calls `leave` at its
    end in any case. The roster is made when everybody who can still come is here.
    """

    def __init__(self, rows: int, threads: int, enrol: Enrol, *, patience_s: float = _PATIENCE_S) -> None:
        """`rows` in all, worked on by `threads` at a time; `enrol` makes members of those who are here."""
        self._unfinished = rows
        self._threads = threads
        self._enrol = enrol
        self._patience_s = patience_s
        self._waiting: list[Candidate] = []
        self._answers: dict[str, Device | BaseException] = {}
        self._changed = threading.Condition()

    def join(self, candidate: Candidate) -> Device:
        """Wait for the others and become a member with them.

        Raises:
            FedctlError: The device did not take its enrolment, or the roster could not be made.
        """
        with self._changed:
            deadline = time.monotonic() + self._patience_s
            self._waiting.append(candidate)
            self._changed.notify_all()
            while candidate.name not in self._answers:
                left_s = deadline - time.monotonic()
                if len(self._waiting) >= min(self._threads, self._unfinished) or left_s <= 0:
                    self._enrol_waiting()
                else:
                    self._changed.wait(left_s)
            answer = self._answers.pop(candidate.name)
        if isinstance(answer, BaseException):
            raise copy.copy(answer)  # each thread adds its own words to it
        return answer

    def leave(self) -> None:
        """A row is finished, whatever became of it."""
        with self._changed:
            self._unfinished -= 1
            self._changed.notify_all()

    def _enrol_waiting(self) -> None:
        """Enrol who is here, with the lock held: who comes meanwhile is of the next roster."""
        present, self._waiting = self._waiting, []
        try:
            self._answers.update(self._enrol(present))
        except BaseException as error:  # noqa: BLE001 - raised again in each of the threads
            self._answers.update({candidate.name: error for candidate in present})
        self._changed.notify_all()

"""What an operation reports while it works; the command line decides how it looks, or drops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedctl.core.round_records import RoundSummary


@dataclass(frozen=True, slots=True)
class Note:
    """One sentence for a person, about the whole operation."""

    text: str


@dataclass(frozen=True, slots=True)
class DeviceProgress:
    """How far one device is: `stage` is a word such as "training", `detail` a few more."""

    device: str
    stage: str
    detail: str = ""
    fraction: float | None = None  # 0 to 1, where it is known
    bytes_up: int = 0  # device to workstation, so far in this operation
    bytes_down: int = 0


@dataclass(frozen=True, slots=True)
class RoundStarted:
    """A round begins, or goes on after an interruption."""

    round_id: int
    model: str
    base_version: int
    plan: str  # sha256
    train: tuple[str, ...]
    holdout: tuple[str, ...]
    number: int  # 1 for the first of a run
    rounds: int  # of this run
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """A round reached its final phase."""

    round_id: int
    number: int
    rounds: int
    summary: RoundSummary


Event = Note | DeviceProgress | RoundStarted | RoundEnded
Observer = Callable[[Event], None]


def silent(_event: Event) -> None:
    """The observer of an operation that nobody watches."""

"""What the round operations return: plain facts, derived from the database."""

from __future__ import annotations

from dataclasses import dataclass

from fedctl.core.records import Role
from fedctl.core.round_records import RoundSummary, Stage
from fedctl_wire.codec import Json


@dataclass(frozen=True, slots=True)
class RoundDeviceReport:
    """What one device did in a round and what it cost."""

    device: str
    role: Role
    stage: Stage
    reason: str | None
    examples: int | None
    norm: float | None  # L2 norm of the update
    update_sha256: str | None
    train_loss: float | None
    bytes_up: int
    bytes_down: int
    cpu_ms: int
    wall_ms: int
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class RoundDetail:
    """Everything about one round."""

    summary: RoundSummary
    plan: dict[str, Json]
    devices: tuple[RoundDeviceReport, ...]


@dataclass(frozen=True, slots=True)
class RunResult:
    """The outcome of `round start`: the rounds of this run, after those that it finished first."""

    rounds: tuple[RoundSummary, ...]
    resumed: tuple[RoundSummary, ...] = ()
    until: str | None = None
    until_met: bool | None = None  # None without --until
    skipped: bool = False  # --skip-if-running found another run

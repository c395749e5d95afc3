"""Rounds, their devices and tasks as plain facts; `fedctl.store` reads and writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fedctl.core.records import Role
from fedctl_wire.codec import Json


class RoundPhase(StrEnum):
    """State of a round; the last four are final."""

    PLANNED = "planned"
    RUNNING = "running"
    AGGREGATING = "aggregating"
    EVALUATING = "evaluating"
    PUBLISHED = "published"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether the round has ended."""
        return self in {
            RoundPhase.PUBLISHED,
            RoundPhase.REJECTED,
            RoundPhase.FAILED,
            RoundPhase.CANCELLED,
        }


class Stage(StrEnum):
    """State of a device in a round; `aggregated`, `evaluated` and `dropped` are final."""

    SELECTED = "selected"
    SENT = "sent"
    TRAINING = "training"
    READY = "ready"
    COLLECTED = "collected"
    AGGREGATED = "aggregated"
    EVALUATED = "evaluated"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Round:
    """One pass of the road."""

    id: int
    uuid: str
    model: str
    base_version: int
    plan: str  # sha256 of the plan's payload
    phase: RoundPhase
    attempt: int
    started_at: str
    deadline_at: str
    ended_at: str | None
    result_version: int | None
    reason: str | None
    metrics: dict[str, Json] = field(default_factory=dict)  # gate, loss before and after, AUROC, bytes


@dataclass(frozen=True, slots=True)
class RoundDevice:
    """What became of one device in a round."""

    round_id: int
    device: str
    role: Role
    stage: Stage
    reason: str | None = None
    update_sha256: str | None = None
    norm: float | None = None  # L2 norm of the update
    examples: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One task of one device, with what it cost."""

    task_id: str
    round_id: int | None  # None outside rounds: golden, stats
    device: str
    kind: str
    attempt: int
    state: str
    reason: str | None = None
    bytes_up: int = 0  # device to workstation
    bytes_down: int = 0  # workstation to device
    cpu_ms: int = 0
    wall_ms: int = 0
    peak_rss_bytes: int = 0
    metrics: dict[str, Json] = field(default_factory=dict)  # an Evaluation pair, or the training loss


@dataclass(frozen=True, slots=True)
class Totals:
    """What the tasks of a round have sent so far, over all devices and attempts."""

    bytes_up: int = 0  # devices to workstation
    bytes_down: int = 0  # workstation to devices


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """One round in one line; a measure that nobody took is None."""

    id: int
    uuid: str
    model: str
    base_version: int
    result_version: int | None
    phase: RoundPhase
    reason: str | None
    gate: str | None  # "passed", "failed", "none" (nobody to evaluate); None before the gate
    attempt: int
    plan: str  # sha256
    cohort: int  # training devices selected
    contributors: int  # whose updates are in the result
    evaluated: int  # devices that measured both versions
    loss: float | None
    loss_before: float | None
    accuracy: float | None
    auroc: float | None
    auroc_before: float | None
    bytes_up: int  # devices to workstation
    bytes_down: int
    started_at: str  # RFC 3339, UTC
    ended_at: str | None
    duration_s: float | None
    dropped: tuple[RoundDevice, ...] = ()
    macro_f1: float | None = None
    macro_f1_before: float | None = None
    holdout: int = 0  # devices selected to measure only

    @property
    def unmeasured(self) -> bool:
        """Whether it is published though devices were there to measure it: none of them did."""
        return self.phase is RoundPhase.PUBLISHED and self.gate == "none" and self.holdout > 0

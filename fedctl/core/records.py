"""The state database's rows as plain facts; `fedctl.store` reads and writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fedctl_wire.codec import Json


class DeviceState(StrEnum):
    """Administrative state of a device; whether it answers is never stored."""

    ENROLLED = "enrolled"
    MAINTENANCE = "maintenance"
    REMOVED = "removed"


class VersionState(StrEnum):
    """Where a model version stands."""

    DRAFT = "draft"
    CANDIDATE = "candidate"
    PUBLISHED = "published"
    REJECTED = "rejected"


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


class Role(StrEnum):
    """What a device does in a round."""

    TRAIN = "train"
    HOLDOUT = "holdout"


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
class Fleet:
    """The one fleet of a home directory."""

    uuid: str
    root_key: str  # public, hex
    operator_key: str  # public, hex
    roster_serial: int
    demo: bool


@dataclass(frozen=True, slots=True)
class Device:
    """An enrolled device."""

    name: str
    url: str
    host_key: str | None  # SSH: "ssh-ed25519 AAAA…"
    identity_key: str  # public, hex
    serial: int
    arch: str | None
    python: str | None
    agent_version: str | None
    state: DeviceState
    enrolled_at: str  # RFC 3339, UTC
    last_seen: str | None  # RFC 3339, UTC: last authenticated answer
    facts: dict[str, Json] = field(default_factory=dict)
    notes: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def role(self) -> Role:
        """`holdout` when the label `role` says so, else `train`."""
        return Role.HOLDOUT if self.labels.get("role") == Role.HOLDOUT.value else Role.TRAIN


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model."""

    model: str
    version: int
    sha256: str  # of the manifest bytes
    parent: str | None  # manifest sha256 of the version it came from
    round_id: int | None
    state: VersionState
    created_at: str
    metrics: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Model:
    """A named series of versions."""

    name: str
    created_at: str
    published_version: int | None
    latest_version: int


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

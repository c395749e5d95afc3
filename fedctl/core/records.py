"""Fleet and devices as plain facts; `fedctl.store` reads and writes them.

Models and rounds have modules of their own: making such classes costs a listing of devices a tenth of its
time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fedctl_wire.codec import Json


class DeviceState(StrEnum):
    """Administrative state of a device; whether it answers is never stored."""

    ENROLLED = "enrolled"
    MAINTENANCE = "maintenance"
    REMOVED = "removed"


class Role(StrEnum):
    """What a device does in a round."""

    TRAIN = "train"
    HOLDOUT = "holdout"


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

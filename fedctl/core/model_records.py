"""Models, their versions and where they are, as plain facts; `fedctl.store` reads and writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fedctl_wire.codec import Json


class VersionState(StrEnum):
    """Where a model version stands."""

    DRAFT = "draft"
    CANDIDATE = "candidate"
    PUBLISHED = "published"
    REJECTED = "rejected"


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
class Deployment:
    """A model version in a slot of a device, as the device last confirmed it."""

    device: str
    model: str
    version: int
    slot: str  # "A" or "B"
    active: bool
    at: str  # RFC 3339, UTC

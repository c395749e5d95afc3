"""What this device agrees to: the root-signed policy, tightened by whoever is at the device.

`policy.json` was verified before it was stored. `policy.local.json` is plain JSON with the same keys,
all optional. Lists are intersected, the larger number wins, and the result is what every route and
job is held to. A local file that cannot be read refuses everything: a typing mistake must not widen
what its author meant to narrow.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.state import StateDir, read_json
from fedctl_wire.codec import decode, encode, from_json
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import Policy, TaskKind
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope

NO_ACCESS = "none"


@dataclass(frozen=True, slots=True)
class LocalPolicy:
    """`policy.local.json`. The identifying keys are taken, unread, so that a signed policy can be copied."""

    allow: tuple[TaskKind, ...] | None = None
    min_examples: int | None = None
    share: tuple[str, ...] | None = None
    access: str | None = None
    fleet: str | None = None
    device: Name | None = None
    serial: int | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class EffectivePolicy:
    """The intersection of both policies."""

    allow: tuple[TaskKind, ...]
    min_examples: int
    share: tuple[str, ...]
    access: str

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: two devices with the same one agree to the same."""
        return hashlib.sha256(encode(self)).hexdigest()

    def require_kind(self, kind: TaskKind) -> None:
        """Refuse a task that the policy does not allow.

        Raises:
            ApiError: 403 `policy`.
        """
        if kind not in self.allow:
            raise refused(f"this device's policy does not allow {kind.value!r} tasks", subject=kind.value)

    def require_share(self, word: str) -> None:
        """Refuse to hand out what the policy keeps on the device.

        Raises:
            ApiError: 403 `policy`.
        """
        if word not in self.share:
            raise refused(f"this device's policy does not share {word}", subject=word)


def intersect(policy: Policy, local: LocalPolicy) -> EffectivePolicy:
    """The stricter of both, key by key; order is the signed policy's."""
    kinds = policy.allow if local.allow is None else tuple(k for k in policy.allow if k in local.allow)
    share = policy.share if local.share is None else tuple(s for s in policy.share if s in local.share)
    return EffectivePolicy(
        allow=kinds,
        min_examples=max(policy.min_examples, local.min_examples or 0),
        share=share,
        access=NO_ACCESS if local.access == NO_ACCESS else policy.access,
    )


def effective_policy(state: StateDir) -> EffectivePolicy:
    """Read both files and intersect them.

    Raises:
        FileNotFoundError: When the device holds no policy, i.e. before enrolment.
        WireError: When a file is malformed or has an unknown key, naming the file.
    """
    envelope = Envelope.from_json(read_json(state.policy), what=state.policy.name)
    policy = _decode_signed(envelope)
    try:
        raw = read_json(state.policy_local)
    except FileNotFoundError:
        return intersect(policy, LocalPolicy())
    return intersect(policy, from_json(LocalPolicy, raw, what=state.policy_local.name))


def refused(message: str, *, subject: str) -> ApiError:
    """The answer to whatever the policy forbids."""
    return ApiError(
        403,
        "policy",
        message,
        hint="only the fleet's root or someone at the device changes it",
        subject=subject,
    )


class PolicyStore:
    """The effective policy, read again only when one of its files changed."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._seen: tuple[object, object] | None = None
        self._policy: EffectivePolicy | None = None

    def effective(self) -> EffectivePolicy:
        """The policy in force now.

        Raises:
            ApiError: 403 `policy` when a policy file is missing or malformed.
        """
        with self._lock:
            seen = (_stamp(self._state.policy), _stamp(self._state.policy_local))
            if self._policy is None or seen != self._seen:
                try:
                    self._policy = effective_policy(self._state)
                except (OSError, WireError) as error:
                    self._policy = None
                    raise refused(
                        f"this device refuses everything: its policy cannot be read: {error}",
                        subject="policy",
                    ) from error
                self._seen = seen
            return self._policy


def _decode_signed(envelope: Envelope) -> Policy:
    return decode(Policy, envelope.payload, limit=LIMITS.json_body_bytes, what="policy")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size

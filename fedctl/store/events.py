"""The audit log's chain: each line's hash covers the line and the hash of the one before.

Whoever changes or removes a line must rewrite all that follow; comparing the last hash with a copy
kept elsewhere then shows it. It is no protection against someone who rewrites both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fedctl.core.errors import TrustError
from fedctl_wire.codec import Json, dump_bytes, to_json

FIRST_HASH = "0" * 64  # what the first line has in place of a predecessor's hash


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the append-only audit log; `hash` covers every other field, so also the line before."""

    seq: int
    at: str  # RFC 3339, UTC
    actor: str  # e.g. "alice@workstation"
    verb: str  # e.g. "device.add"
    subject: str
    result: str  # e.g. "ok"
    detail: dict[str, Json]
    op_id: int | None
    prev_hash: str
    hash: str


def seal(event: Event) -> Event:
    """The event with its hash filled in: SHA-256 over the canonical JSON of all other fields."""
    row = to_json(event)
    del row["hash"]
    return replace(event, hash=hashlib.sha256(dump_bytes(row)).hexdigest())


def check_chain(events: Iterable[Event]) -> str:
    """Return the last line's hash when the lines, oldest first and complete, form a chain.

    Raises:
        TrustError: Naming the first line that was changed, or before which one is missing.
    """
    last, expected_seq = FIRST_HASH, 1
    for event in events:
        if event.seq != expected_seq or event.prev_hash != last or seal(event).hash != event.hash:
            raise TrustError(
                f"the event log was changed at or before line {event.seq}",
                hint="compare it with a backup of the state database",
                subject=f"event {event.seq}",
                code="event_chain",
            )
        last, expected_seq = event.hash, event.seq + 1
    return last

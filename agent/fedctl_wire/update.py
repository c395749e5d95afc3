"""What the header of a client update says: the same words where it is written and where it is checked."""

from __future__ import annotations

_FORMAT = "fedctl-update-v1"


def update_metadata(*, round_id: str, plan: str, base: str, examples: int) -> dict[str, str]:
    """The metadata of a client update: uuid of its round, hashes of plan and base, number of examples."""
    return {
        "format": _FORMAT,
        "round": round_id,
        "plan": plan,
        "base": base,
        "examples": str(examples),
    }

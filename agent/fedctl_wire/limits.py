"""Every cap on what is read from the other side, in one place, checked before anything is parsed."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps with their units; one instance, `LIMITS`, serves both sides."""

    json_body_bytes: int = 4 * MIB  # a signed manifest with 10,000 features' scaling is under 1 MiB
    json_depth: int = 32  # objects and arrays in one another
    integer: int = 2**63 - 1  # largest magnitude; what SQLite and other languages can hold
    signatures: int = 16  # of one envelope
    blob_bytes: int = 1024 * MIB
    tensor_header_bytes: int = 1 * MIB
    tensors: int = 4096
    tensor_rank: int = 8
    parameters: int = 256 * 1024 * 1024  # float32 elements of one model
    columns: int = 10_000  # of a table, that a model names
    column_bytes: int = 200  # of one's name, in UTF-8
    graph_nodes: int = 10_000
    cohort: int = 10_000  # devices in a fleet or round
    message_chars: int = 2_000  # of a reason or error that travels


LIMITS = Limits()

"""The contract between a job and what it computes: what goes in, what comes out, how it fails.

Imports no NumPy, so that the worker can name these types before it needs arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedctl_wire.manifest import Manifest
from fedctl_wire.messages import Evaluation, Plan, Progress, TaskKind, TaskState


@dataclass(frozen=True, slots=True)
class JobContext:
    """Everything a job may read. Plan, manifests and files have been verified before it is built."""

    kind: TaskKind
    plan: Plan
    plan_sha256: str  # of the plan's payload bytes as signed; goes into the update's header
    manifest: Manifest
    model_dir: Path  # the files of `manifest`: weights, graph, golden batch
    base_dir: Path | None  # evaluate only: the files of the version to compare with
    base_manifest: Manifest | None
    policy_min_examples: int
    share_metrics: bool  # whether losses and metrics may leave the device
    sources_dir: Path  # *.toml that say where local data is
    seed: int  # of every random choice: same seed, same data, same bytes
    output: Path  # train and stats write their safetensors file here; the caller syncs and hashes it
    progress: Callable[[Progress], None]  # `seq` counts from 1 in each run


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished job may say of itself; every figure is a count, a mean or a sum."""

    examples: int  # train: the update's weight; else how many examples were used
    loss: float | None = None  # train: mean loss of the last local epoch
    base: Evaluation | None = None
    candidate: Evaluation | None = None


class JobError(Exception):
    """A job ended by its own decision; final, never tried again.

    Attributes:
        code: Stable word: `policy`, `no_source`, `no_data`, `source`, `data`, `graph`, `settings`,
            `non_finite`, `golden`, or a `WireError`'s code for a malformed model file.
        message: Lower case, naming the file and the cause; never a value read from the data.
        state: `FAILED`, or `REFUSED` where the device's policy or its lack of data decided.
    """

    def __init__(self, code: str, message: str, *, state: TaskState = TaskState.FAILED) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.state = state


def refuse(code: str, message: str) -> JobError:
    """A `JobError` that says no on the device's behalf."""
    return JobError(code, message, state=TaskState.REFUSED)

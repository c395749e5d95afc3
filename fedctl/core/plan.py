"""How a person's wishes become a plan: defaults, checks, and the one-task plans outside rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedctl.core.errors import UsageError
from fedctl.core.training import TrainWishes, check_positive, check_training, train_settings
from fedctl.core.until import Until
from fedctl_wire.manifest import Manifest
from fedctl_wire.messages import BaseModel, Cohort, DataNeeds, Plan, RoundRules, TaskKind

_LONGEST_S = 365 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundWishes(TrainWishes):
    """What was asked for on the command line; None means the model's or the tool's default."""

    quorum: int | None = None
    deadline_s: float = 600.0
    tolerance: float = 0.05
    until: str | None = None
    seed: int | None = None
    max_update_norm: float | None = None


def quorum_of(wishes: RoundWishes, cohort_size: int) -> int:
    """The quorum in force: as wished, else half the cohort rounded up, at least one.

    Raises:
        UsageError: When more is wished than there are devices, or less than one.
    """
    if wishes.quorum is None:
        return max(1, math.ceil(cohort_size / 2))
    if not 1 <= wishes.quorum <= cohort_size:
        raise UsageError(
            f"quorum {wishes.quorum} cannot be met: {cohort_size} devices are selected for training",
            hint="choose --quorum between 1 and the number of selected devices",
        )
    return wishes.quorum


def round_plan(
    *,
    fleet: str,
    round_id: str,
    manifest: Manifest,
    bundle: str,
    train: tuple[str, ...],
    holdout: tuple[str, ...],
    wishes: RoundWishes,
    seed: int,
) -> Plan:
    """The plan of one round over these training and hold-out devices.

    Raises:
        UsageError: When a wish is out of range.
    """
    check_wishes(wishes)
    return Plan(
        fleet=fleet,
        round=round_id,
        model=manifest.model,
        base=BaseModel(manifest.model_version, bundle),
        kinds=(TaskKind.TRAIN, TaskKind.EVALUATE),
        seed=seed,
        cohort=Cohort.of(train),
        holdout=Cohort.of(holdout),
        train=train_settings(
            manifest.defaults, wishes, classes=manifest.classes, weighted=manifest.takes_class_weights
        ),
        rules=RoundRules(
            quorum=quorum_of(wishes, len(train)),
            deadline_s=wishes.deadline_s,
            tolerance=wishes.tolerance,
            until=wishes.until,
            max_update_norm=wishes.max_update_norm,
        ),
        needs=needs_of(manifest),
    )


def task_plan(
    *, fleet: str, round_id: str, manifest: Manifest, bundle: str, kind: TaskKind, devices: tuple[str, ...]
) -> Plan:
    """The plan of one kind of task outside a round (golden, stats)."""
    return Plan(
        fleet=fleet,
        round=round_id,
        model=manifest.model,
        base=BaseModel(manifest.model_version, bundle),
        kinds=(kind,),
        seed=0,
        cohort=Cohort.of(devices),
        holdout=Cohort.of(()),
        needs=needs_of(manifest),
    )


def needs_of(manifest: Manifest) -> DataNeeds:
    """What a model asks of a device's data: by its plan alone a device can decline it."""
    return DataNeeds(manifest.input_shape, manifest.classes, manifest.columns)


def check_wishes(wishes: RoundWishes) -> None:
    """Refuse what no round can do.

    Raises:
        UsageError: Naming the option that is out of range.
    """
    check_training(wishes)
    check_positive(
        {
            "--deadline": (wishes.deadline_s, _LONGEST_S),
            "--max-update-norm": (wishes.max_update_norm, math.inf),
        }
    )
    if not (math.isfinite(wishes.tolerance) and wishes.tolerance >= 0):
        raise UsageError(f"--tolerance is {wishes.tolerance}; it must be 0 or more")
    if wishes.seed is not None and not 0 <= wishes.seed < 2**53:
        raise UsageError(f"--seed is {wishes.seed}; it must be from 0 to 2^53 - 1")
    if wishes.until is not None:
        Until.parse(wishes.until)

"""How a person's wishes become a plan: defaults, checks, and the one-task plans outside rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fedctl.core.errors import UsageError
from fedctl.core.until import Until
from fedctl_wire.manifest import Manifest
from fedctl_wire.messages import BaseModel, Cohort, Plan, RoundRules, TaskKind, TrainSettings

_MOST = 10**9  # epochs or examples; far from what a signed plan can hold
_LONGEST_S = 365 * 24 * 3600


@dataclass(frozen=True, slots=True)
class RoundWishes:
    """What was asked for on the command line; None means the model's or the tool's default."""

    local_epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    momentum: float | None = None
    quorum: int | None = None
    deadline_s: float = 600.0
    tolerance: float = 0.05
    until: str | None = None
    seed: int | None = None
    max_examples: int | None = None
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
        train=_train_settings(manifest.defaults, wishes),
        rules=RoundRules(
            quorum=quorum_of(wishes, len(train)),
            deadline_s=wishes.deadline_s,
            tolerance=wishes.tolerance,
            until=wishes.until,
            max_update_norm=wishes.max_update_norm,
        ),
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
    )


def check_wishes(wishes: RoundWishes) -> None:
    """Refuse what no round can do.

    Raises:
        UsageError: Naming the option that is out of range.
    """
    ranges = {
        "--local-epochs": (wishes.local_epochs, _MOST),
        "--batch-size": (wishes.batch_size, _MOST),
        "--lr": (wishes.lr, math.inf),
        "--deadline": (wishes.deadline_s, _LONGEST_S),
        "--max-examples": (wishes.max_examples, _MOST),
        "--max-update-norm": (wishes.max_update_norm, math.inf),
    }
    for option, (value, most) in ranges.items():
        if value is None:
            continue
        if not 0 < value < math.inf:
            raise UsageError(f"{option} is {value}; it must be greater than 0")
        if value > most:
            raise UsageError(f"{option} is {value}; it must be at most {most}")
    if wishes.momentum is not None and not 0 <= wishes.momentum < 1:
        raise UsageError(f"--momentum is {wishes.momentum}; it must be from 0 to below 1")
    if not (math.isfinite(wishes.tolerance) and wishes.tolerance >= 0):
        raise UsageError(f"--tolerance is {wishes.tolerance}; it must be 0 or more")
    if wishes.seed is not None and not 0 <= wishes.seed < 2**53:
        raise UsageError(f"--seed is {wishes.seed}; it must be from 0 to 2^53 - 1")
    if wishes.until is not None:
        Until.parse(wishes.until)


def _train_settings(defaults: TrainSettings, wishes: RoundWishes) -> TrainSettings:
    wished = {
        name: getattr(wishes, name)
        for name in ("local_epochs", "batch_size", "lr", "momentum", "max_examples")
        if getattr(wishes, name) is not None
    }
    return replace(defaults, **wished)

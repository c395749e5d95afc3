"""What federated training is compared with: each device alone, and all data in one place.

The same model, hyper-parameters and scaling rules on the same people, measured on the people who took no
part. Everybody takes as many steps as a federated device: alone over its own batches, pooled over batches
as large as all devices' together (with small ones, eight times as many steps overfit). Only a demo may
look at everybody's data, because it made them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl.core.gate import total
from fedctl.models import BuiltModel
from fedctl.models.metrics import auroc
from fedctl_wire.messages import TrainSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Data = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """AUROC over the people who took no part."""

    local: float  # each device alone, mean
    central: float  # all data in one place


def compare(
    model: BuiltModel,
    train: Sequence[Path],
    holdout: Sequence[Path],
    *,
    settings: TrainSettings,
    rounds: int,
    seed: int,
) -> Comparison:
    """Train alone and pooled for as many epochs as the federated model had, and measure both."""
    import numpy as np

    people = [_load(path) for path in train]
    unseen = [_load(path) for path in holdout]
    as_long = replace(settings, local_epochs=settings.local_epochs * rounds)
    pooled = np.concatenate([x for x, _ in people]), np.concatenate([y for _, y in people])
    alone = [_reach(model, person, unseen, as_long, seed) for person in people]
    as_wide = replace(as_long, batch_size=settings.batch_size * len(people))
    return Comparison(local=sum(alone) / len(alone), central=_reach(model, pooled, unseen, as_wide, seed))


def _reach(
    model: BuiltModel, data: Data, unseen: Sequence[Data], settings: TrainSettings, seed: int
) -> float:
    from fedctl.models import local

    scaling = local.scaling_from([data[0]])
    weights = local.fit(model, data, settings=settings, seed=seed, scaling=scaling)
    measured = total([local.evaluate(model, weights, person, scaling=scaling) for person in unseen])
    if measured.histogram is None:
        raise ValueError("AUROC needs a model of two classes")
    return auroc(measured.histogram) or 0.5  # None: the unseen people have no anomalous day at all


def _load(path: Path) -> Data:
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        return file["x"].astype(np.float32), file["y"].astype(np.int64)

"""Training and evaluation in this process, by the same rules as on a device.

For comparisons: what each device would reach alone, and what all data in one place would.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedctl.core.scaling import scaling_of
from fedctl.models.built import BuiltModel
from fedctl_wire.codec import parse_bytes
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import CLASS_WEIGHTS, Preprocessing
from fedctl_wire.messages import Evaluation, TrainSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedctl_graph.interpreter import Graph
    from fedctl_graph.training import Scaling

    Weights = dict[str, NDArray[np.float32]]
    Data = tuple[NDArray[np.float32], NDArray[np.int64]]


def scaling_from(parts: Iterable[NDArray[np.float32]]) -> Preprocessing:
    """The scaling that a fleet would get whose devices hold these features, each (n, features).

    At least one part.
    """
    import numpy as np

    sums = np.sum([_sums(x) for x in parts], axis=0)
    return scaling_of(*sums.tolist())


def _sums(x: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """Count, sum and sum of squares of the present cells, each (features,)."""
    import numpy as np

    present = np.isfinite(x)
    cells = np.where(present, x, 0).astype(np.float64)
    return [present.sum(axis=0).astype(np.float64), cells.sum(axis=0), np.square(cells).sum(axis=0)]


def fit(
    model: BuiltModel, data: Data, *, settings: TrainSettings, seed: int, scaling: Preprocessing | None
) -> Weights:
    """Train a copy of the model's first weights as a device would.

    Args:
        model: From a builder; left as it is.
        data: x (n, features), not scaled, and labels (n,); left as they are.
        settings: As in a plan; `local_epochs` are all the epochs that there are.
        seed: Of the shuffles.
        scaling: Applied to x; None: not scaled.

    Raises:
        GraphError: When settings or data do not fit the model, or training diverges.
    """
    from fedctl_graph import optimisers, training

    x, y = data
    examples = x.copy()
    training.prepare(examples, _arrays(scaling))
    weights = {name: value.copy() for name, value in model.weights.items()}
    fixed, balanced = settings.class_weights, settings.balance_classes
    by_class = training.class_weights(y, model.classes, fixed=fixed, balanced=balanced)
    if by_class is not None and CLASS_WEIGHTS in weights:
        weights[CLASS_WEIGHTS] = by_class
    training.fit(
        _graph(model),
        weights,
        (examples, y),
        optimiser=optimisers.make(
            settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            proximal_mu=settings.proximal_mu,
            max_gradient_norm=settings.max_gradient_norm,
            base=model.weights,
        ),
        epochs=settings.local_epochs,
        batch_size=settings.batch_size,
        seed=seed,
    )
    return weights


def evaluate(model: BuiltModel, weights: Weights, data: Data, *, scaling: Preprocessing | None) -> Evaluation:
    """Measure weights of the model as a device would; see `fit` for data and scaling.

    Raises:
        GraphError: When the data do not fit the model, or its figures are not finite.
    """
    from fedctl_graph import training

    measured = training.Measured(_graph(model), weights, _arrays(scaling))
    (tally,) = training.evaluate([measured], data, classes=model.classes)
    return Evaluation(tally.examples, tally.loss_sum, tally.correct, tally.histogram, tally.class_counts)


def _graph(model: BuiltModel) -> Graph:
    from fedctl_graph.interpreter import Graph
    from fedctl_graph.program import Program

    program = parse_bytes(model.graph, limit=LIMITS.json_body_bytes, what="train.json")
    return Graph(Program.from_json(program, max_nodes=LIMITS.graph_nodes))


def _arrays(scaling: Preprocessing | None) -> Scaling | None:
    import numpy as np

    from fedctl_graph.training import Scaling

    if scaling is None:
        return None
    return Scaling(np.array(scaling.mean, np.float32), np.array(scaling.std, np.float32), scaling.clip)

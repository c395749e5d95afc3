"""`golden`: does this device compute the model's graph as the workstation does?

Runs the bundle's golden batch, with the batch's own fixed weights; no local data is read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedctl_agent.trainers.contract import JobContext, JobError, Outcome
from fedctl_agent.trainers.model import load_graph
from fedctl_agent.trainers.reporter import Reporter
from fedctl_agent.trainers.tensorfile import read_tensors
from fedctl_wire.manifest import GOLDEN_FILE, Manifest

SMALLEST_NORM = 1e-3  # below it a difference is held against this: near zero "relative" means nothing


def run(context: JobContext) -> Outcome:
    """Compare loss, logits and gradients with the golden file's, by the manifest's tolerances.

    Raises:
        JobError: With code `golden`, naming the first tensor that is too far off or missing.
    """
    manifest = context.manifest
    graph = load_graph(context.model_dir, manifest)
    golden = read_tensors(context.model_dir / GOLDEN_FILE)
    parameters = {spec.name: _given(golden, f"param:{spec.name}", spec.shape) for spec in manifest.tensors}
    y = _labels(golden, manifest)
    x = _given(golden, "x", (len(y), *manifest.input_shape))
    loss, logits, gradients = graph.loss_and_gradients(parameters, x, y)
    _compare(golden, "loss", np.array(loss), manifest.tolerances.loss)
    _compare(golden, "logits", logits, manifest.tolerances.loss)
    for name, gradient in gradients.items():
        _compare(golden, f"grad:{name}", gradient, manifest.tolerances.gradients)
    Reporter(context.progress).report(examples=len(y), always=True)
    return Outcome(examples=len(y))


def _labels(golden: dict[str, NDArray[Any]], manifest: Manifest) -> NDArray[np.int64]:
    y = golden.get("y")
    if y is None or y.dtype != np.int64 or y.ndim != 1 or not len(y):
        raise JobError("golden", f"{GOLDEN_FILE} has no labels y")
    if y.min() < 0 or y.max() >= manifest.classes:
        raise JobError("golden", f"{GOLDEN_FILE} has labels outside 0 to {manifest.classes - 1}")
    return y


def _given(golden: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    array = golden.get(name)
    if array is None or array.dtype != np.float32 or array.shape != shape:
        raise JobError("golden", f"{GOLDEN_FILE} has no {name!r} of shape {list(shape)} in float32")
    return array


def _compare(golden: dict[str, NDArray[Any]], name: str, found: NDArray[Any], tolerance: float) -> None:
    wanted = _given(golden, name, found.shape).astype(np.float64)
    difference = float(np.linalg.norm(found - wanted))
    allowed = tolerance * max(float(np.linalg.norm(wanted)), SMALLEST_NORM)
    if not difference <= allowed:  # also when it is NaN
        raise JobError("golden", f"{name} is off by {difference:.3g}, more than {allowed:.3g}")

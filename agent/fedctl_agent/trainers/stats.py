"""`stats`: count, sum and sum of squares per feature, or channel of a window, for the fleet's scaling.

No minimum, no maximum and no histogram: those are readings. A feature that is present in fewer than
the policy's `min_examples` examples counts as absent, for its sums would be close to readings too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedctl_agent.sources import local_data
from fedctl_agent.trainers.contract import JobContext, Outcome
from fedctl_agent.trainers.reporter import Reporter
from fedctl_agent.trainers.tensorfile import write_tensors
from fedctl_graph.training import block_rows
from fedctl_wire.tensors import layout

TENSORS = ("count", "sum", "sumsq")
FORMAT = "fedctl-stats-v1"


def run(context: JobContext) -> Outcome:
    """Write float64 tensors `count`, `sum` and `sumsq`, each (features,), over the training part.

    Raises:
        JobError: `policy` when there are fewer examples than the policy asks for; see `local_data`.
    """
    data = local_data(context.sources_dir, context.manifest)
    x = data.training(context.policy_min_examples).x
    sums, examples = sums_of(x)
    for tensor in TENSORS:
        sums[tensor][examples < context.policy_min_examples] = 0
    tensors = layout([(name, "F64", (x.shape[1],)) for name in TENSORS])
    metadata = {"format": FORMAT, "round": context.plan.round, "plan": context.plan_sha256}
    write_tensors(context.output, tensors, sums, {**metadata, "examples": str(len(x))})
    Reporter(context.progress).report(examples=len(x), always=True)
    return Outcome(examples=len(x))


def sums_of(x: NDArray[np.float32]) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """Sums over the present cells of x, and in how many examples each feature has any.

    Args:
        x: Shape (n, features), or (n, channels, samples), summed over the samples too; NaN where a cell
            is missing.
    """
    sums = {name: np.zeros(x.shape[1]) for name in TENSORS}
    examples = np.zeros(x.shape[1], np.int64)
    rows = block_rows(x)
    others = (0, *range(2, x.ndim))
    for start in range(0, len(x), rows):
        block = x[start : start + rows].astype(np.float64)
        present = ~np.isnan(block)
        block[~present] = 0
        examples += present.any(axis=others[1:]).sum(axis=0)
        sums["count"] += present.sum(axis=others)
        sums["sum"] += block.sum(axis=others)
        sums["sumsq"] += np.square(block).sum(axis=others)
    return sums, examples

"""How much memory training takes, estimated from a run of the graph on zeros."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedctl_wire.codec import parse_bytes
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import Manifest
from fedctl_wire.messages import TrainSettings

_FLOAT = 4  # bytes


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a job takes beside its process and the device's data."""

    batch_size: int
    batch: int  # one batch of examples and labels
    values: int  # most that the graph has alive in a step, gradients included
    weights: int
    optimizer: int  # what it remembers, and what corrects the gradients
    example: int  # bytes of one example of the device's data, all of which are in memory

    @property
    def total(self) -> int:
        """All but the data."""
        return self.batch + self.values + self.weights + self.optimizer


def footprint(graph: bytes, manifest: Manifest, settings: TrainSettings, *, batch_size: int) -> Footprint:
    """Estimate what training takes at a batch size.

    Raises:
        GraphError: When the graph does not run.
    """
    example = _FLOAT * math.prod(manifest.input_shape)
    trainable = _FLOAT * sum(math.prod(spec.shape) for spec in manifest.tensors if spec.trainable)
    corrected = settings.weight_decay or settings.proximal_mu or settings.max_gradient_norm is not None
    kept = {"adam": 2}.get(settings.optimizer, int(settings.momentum > 0))
    kept += int(settings.proximal_mu > 0) + int(bool(corrected))
    return Footprint(
        batch_size=batch_size,
        batch=batch_size * (example + 8),  # labels are of 8 bytes
        values=_values(graph, manifest, batch_size),
        weights=_FLOAT * manifest.parameters,
        optimizer=kept * trainable,
        example=example + 8,
    )


def _values(graph: bytes, manifest: Manifest, batch_size: int) -> int:
    """Each value's size is a line in the batch's size, so two small batches tell about any other."""
    import numpy as np

    from fedctl_graph.interpreter import Graph
    from fedctl_graph.program import Program

    program = parse_bytes(graph, limit=LIMITS.json_body_bytes, what="train.json")
    runner = Graph(Program.from_json(program, max_nodes=LIMITS.graph_nodes))
    parameters = {spec.name: np.ones(spec.shape, np.float32) for spec in manifest.tensors}
    one, two = (
        runner.training_bytes(
            parameters, np.zeros((n, *manifest.input_shape), np.float32), np.zeros(n, np.int64)
        )
        for n in (1, 2)
    )
    return max(a + (b - a) * (batch_size - 1) for a, b in zip(one, two, strict=True))

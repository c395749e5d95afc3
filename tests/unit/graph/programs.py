"""What several tests of graphs need: loss slopes by trying."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedctl_graph.interpreter import Graph

STEP = 1e-6


def numerical(graph: Graph, parameters: dict[str, Any], x: Any, y: Any, name: str) -> Any:
    """Central differences by every single entry of a parameter."""
    slopes = np.zeros(parameters[name].shape)
    for index in np.ndindex(slopes.shape):
        losses = []
        for sign in (1, -1):
            moved = parameters[name].copy()
            moved[index] += sign * STEP
            losses.append(graph.loss_and_logits({**parameters, name: moved}, x, y)[0])
        slopes[index] = (losses[0] - losses[1]) / (2 * STEP)
    return slopes

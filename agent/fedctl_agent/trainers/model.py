"""A bundle's files as a graph that can run, held against their manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedctl_agent.trainers.contract import JobError
from fedctl_agent.trainers.tensorfile import read_tensors
from fedctl_graph.interpreter import Graph
from fedctl_graph.program import Program
from fedctl_graph.training import Scaling
from fedctl_wire.codec import parse_bytes
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import GRAPH_FILE, WEIGHTS_FILE, Manifest


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One model version, ready to train or measure."""

    manifest: Manifest
    graph: Graph
    parameters: dict[str, NDArray[np.float32]]  # fresh arrays: training changes them in place

    @property
    def scaling(self) -> Scaling | None:
        """How the bundle scales features; None when it does not."""
        return scaling(self.manifest)


def load_graph(directory: Path, manifest: Manifest) -> Graph:
    """Load `train.json`.

    Raises:
        JobError: With code `graph` when it is not the graph that the manifest describes.
        GraphError: When it is malformed.
        WireError: When it is no JSON.
    """
    path = directory / GRAPH_FILE
    data = parse_bytes(path.read_bytes(), limit=LIMITS.json_body_bytes, what=GRAPH_FILE)
    program = Program.from_json(data, max_nodes=LIMITS.graph_nodes)
    trainable = {spec.name for spec in manifest.tensors if spec.trainable}
    facts = {
        "parameters": (program.parameters, tuple(spec.name for spec in manifest.tensors)),
        "input shape": (program.input_shape, manifest.input_shape),
        "operators": (program.operators, manifest.operators),
        "gradients": (set(program.gradients), trainable),
    }
    for what, (found, wanted) in facts.items():
        if found != wanted:
            raise JobError("graph", f"{GRAPH_FILE}: its {what} differ from the manifest's")
    return Graph(program)


def load_model(directory: Path, manifest: Manifest) -> LoadedModel:
    """Load graph and weights; see `load_graph`.

    Raises:
        JobError: Also with code `scaling` when the bundle still lacks the scaling that it asks for.
    """
    if manifest.needs_scaling:
        raise JobError("scaling", f"{manifest.model}@{manifest.model_version} has no scaling yet")
    graph = load_graph(directory, manifest)
    return LoadedModel(manifest, graph, read_tensors(directory / WEIGHTS_FILE, manifest.weights_layout()))


def scaling(manifest: Manifest) -> Scaling | None:
    """The manifest's scaling as arrays."""
    values = manifest.preprocessing
    if values is None:
        return None
    return Scaling(np.array(values.mean, np.float32), np.array(values.std, np.float32), values.clip)

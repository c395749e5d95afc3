"""A bundle's files as a graph that can run, held against their manifest."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedctl_agent.trainers.contract import JobError
from fedctl_agent.trainers.tensorfile import read_tensors
from fedctl_graph.errors import GraphError
from fedctl_graph.interpreter import Graph
from fedctl_graph.program import Program
from fedctl_graph.training import Scaling, class_weights
from fedctl_wire.codec import parse_bytes
from fedctl_wire.errors import WireError
from fedctl_wire.limits import KIB, LIMITS
from fedctl_wire.manifest import CLASS_WEIGHTS, GRAPH_FILE, WEIGHTS_FILE, Manifest
from fedctl_wire.messages import TrainSettings

_PREPARED = 2  # graphs: an `evaluate` may compare two
_PREPARED_BYTES = 256 * KIB  # of a train.json
_graphs: dict[str, Graph] = {}  # by the SHA-256 of their train.json; filled by `prepare_graph` only
_described: list[Manifest] = []  # whose graph is there and was found to be as they say; as many


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


def prepare_graph(directory: Path, manifest: Manifest) -> None:
    """Compile a bundle's `train.json` in this process, for the jobs that it forks to find in memory.

    Only the file that the manifest lists, and only a small one: what the worker holds is paid for by
    every fork. A file that is bad or large is left to the job, which runs within limits and can report.
    """
    listed = manifest.files[GRAPH_FILE]
    if listed.bytes > _PREPARED_BYTES or any(known is manifest for known in _described):
        return
    with contextlib.suppress(OSError, WireError, GraphError, RecursionError, JobError):
        if listed.sha256 not in _graphs:
            data = (directory / GRAPH_FILE).read_bytes()
            if hashlib.sha256(data).hexdigest() != listed.sha256:
                return
            while len(_graphs) >= _PREPARED:
                del _graphs[next(iter(_graphs))]
                _described.clear()
            _graphs[listed.sha256] = _compile(data)
        _check_described(_graphs[listed.sha256], manifest)
        _described[:] = [*_described[1 - _PREPARED :], manifest]


def load_graph(directory: Path, manifest: Manifest) -> Graph:
    """Load `train.json`; the caller has checked the file's hash.

    Raises:
        JobError: With code `graph` when it is not the graph that the manifest describes.
        GraphError: When it is malformed.
        WireError: When it is no JSON.
    """
    graph = _graphs.get(manifest.files[GRAPH_FILE].sha256)
    if graph is not None and any(known is manifest for known in _described):
        return graph
    if graph is None:
        graph = _compile((directory / GRAPH_FILE).read_bytes())
    _check_described(graph, manifest)
    return graph


def _check_described(graph: Graph, manifest: Manifest) -> None:
    program = graph.program
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


def _compile(data: bytes) -> Graph:
    value = parse_bytes(data, limit=LIMITS.json_body_bytes, what=GRAPH_FILE)
    return Graph(Program.from_json(value, max_nodes=LIMITS.graph_nodes))


def load_model(directory: Path, manifest: Manifest) -> LoadedModel:
    """Load graph and weights; see `load_graph`.

    Raises:
        JobError: Also with code `scaling` when the bundle still lacks the scaling that it asks for.
    """
    if manifest.needs_scaling:
        raise JobError("scaling", f"{manifest.model}@{manifest.model_version} has no scaling yet")
    graph = load_graph(directory, manifest)
    return LoadedModel(manifest, graph, read_tensors(directory / WEIGHTS_FILE, manifest.weights_layout()))


def weigh_classes(model: LoadedModel, settings: TrainSettings | None, y: NDArray[np.int64]) -> None:
    """Set the weights of the classes in the model's loss, where the plan asks for any.

    Args:
        model: Its parameters are changed.
        settings: The plan's.
        y: The labels at hand, for weights that balance them.

    Raises:
        JobError: With code `settings`, when the plan's are no weights or the model takes none.
    """
    if settings is None:
        return
    fixed, balanced = settings.class_weights, settings.balance_classes
    try:
        weights = class_weights(y, model.manifest.classes, fixed=fixed, balanced=balanced)
    except GraphError as error:
        raise JobError("settings", str(error)) from error
    if weights is None:
        return
    if not model.manifest.takes_class_weights:
        raise JobError("settings", "the plan has class weights, the model's loss takes none")
    model.parameters[CLASS_WEIGHTS] = weights


def scaling(manifest: Manifest) -> Scaling | None:
    """The manifest's scaling as arrays."""
    values = manifest.preprocessing
    if values is None:
        return None
    return Scaling(np.array(values.mean, np.float32), np.array(values.std, np.float32), values.clip)

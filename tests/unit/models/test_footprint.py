"""The estimate of memory against what a step of training really allocates."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from fedctl.models import Convolutions, build
from fedctl.models.footprint import footprint
from fedctl_graph.interpreter import Graph
from fedctl_graph.program import Program
from fedctl_wire.manifest import BUNDLE_FILES, BundleFile, Manifest
from fedctl_wire.messages import TrainSettings
from fedctl_wire.names import Name

NETWORKS: dict[str, dict[str, Any]] = {
    "logreg": {"input_shape": (66,)},
    "mlp": {"input_shape": (561,), "hidden": (64,)},
    "cnn": {"input_shape": (9, 128), "window": Convolutions(channels=(16, 32)), "hidden": (24,)},
}


@pytest.mark.parametrize("builder", NETWORKS)
def test_the_estimate_is_what_a_step_allocates(builder: str) -> None:
    model = build(builder, classes=6, seed=0, **NETWORKS[builder])
    manifest = Manifest(
        model=Name("m"),
        model_version=1,
        builder=builder,
        input_shape=model.input_shape,
        classes=6,
        tensors=model.tensors,
        files=dict.fromkeys(BUNDLE_FILES, BundleFile("ab" * 32, 1)),
        operators=model.operators,
        defaults=TrainSettings(lr=0.1, momentum=0.9),
    )
    found = footprint(model.graph, manifest, manifest.defaults, batch_size=48)
    graph = Graph(Program.from_json(json.loads(model.graph), max_nodes=1000))
    x = np.random.default_rng(0).standard_normal((48, *model.input_shape), np.float32)
    y = np.arange(48) % 6
    graph.loss_and_gradients(model.weights, x, y)
    tracemalloc.start()
    try:
        kept = graph.loss_and_gradients(model.weights, x, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept
    assert found.values == pytest.approx(peak, rel=0.05, abs=8000)
    assert found.weights == found.optimizer == sum(array.nbytes for array in model.weights.values())
    assert found.batch == x.nbytes + y.nbytes
    assert found.total == found.batch + found.values + found.weights + found.optimizer


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        (TrainSettings(lr=0.1), 0),
        (TrainSettings(lr=0.1, optimizer="adam"), 2),
        (TrainSettings(lr=0.1, weight_decay=0.1), 1),
        (TrainSettings(lr=0.1, momentum=0.5, proximal_mu=0.1), 3),
    ],
)
def test_an_optimizers_memory_is_copies_of_what_it_trains(settings: TrainSettings, copies: int) -> None:
    model = build("logreg", input_shape=(4,), classes=2, seed=0, weighted=True)
    manifest = Manifest(
        model=Name("m"),
        model_version=1,
        builder="logreg",
        input_shape=(4,),
        classes=2,
        tensors=model.tensors,
        files=dict.fromkeys(BUNDLE_FILES, BundleFile("ab" * 32, 1)),
        operators=model.operators,
        defaults=settings,
    )
    assert footprint(model.graph, manifest, settings, batch_size=1).optimizer == copies * 4 * 10

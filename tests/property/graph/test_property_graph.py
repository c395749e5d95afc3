"""The loader on arbitrary damage, AUROC from histograms against counting pairs."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.models import build
from fedctl.models.metrics import auroc
from fedctl_graph.errors import GraphError
from fedctl_graph.interpreter import Graph
from fedctl_graph.metrics import score_histogram
from fedctl_graph.program import Program

VALID = json.loads(build("mlp", input_shape=(3,), hidden=(4,), classes=2, seed=0).graph)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON value."""
    children: Any = value.items() if isinstance(value, dict) else ()
    children = enumerate(value) if isinstance(value, list) else children
    return [path, *(place for key, item in children for place in places(item, (*path, key)))]


PLACES = [place for place in places(VALID) if place]
STRINGS = sorted({p[-1] for p in PLACES if isinstance(p[-1], str)} | {n["out"][0] for n in VALID["nodes"]})


def load_and_run(value: Any) -> None:
    graph = Graph(Program.from_json(value, max_nodes=100))
    rng = np.random.default_rng(0)
    shapes = {"dense0.weight": (3, 4), "dense0.bias": (4,), "dense1.weight": (4, 2), "dense1.bias": (2,)}
    parameters = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    graph.loss_and_gradients(parameters, rng.standard_normal((5, 3), np.float32), np.arange(5) % 2)


@given(VALUES)
def test_any_json_is_a_program_or_a_graph_error(value: Any) -> None:
    try:
        Program.from_json(value, max_nodes=100)
    except GraphError:
        return
    raise AssertionError(value)


@settings(max_examples=300)
@given(st.sampled_from(PLACES), VALUES | st.sampled_from(STRINGS))
def test_a_damaged_program_runs_or_is_a_graph_error(place: tuple[Any, ...], item: Any) -> None:
    value = copy.deepcopy(VALID)
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = item
    try:
        load_and_run(value)
    except GraphError:
        return


@given(st.permutations(VALID["nodes"]))
def test_nodes_run_in_any_order_that_defines_before_use(nodes: list[Any]) -> None:
    defined = {"x", "y", *VALID["parameters"], *VALID["constants"]}
    ordered = True
    for node in nodes:
        ordered = ordered and set(node["in"]) <= defined
        defined |= set(node["out"])
    try:
        load_and_run({**VALID, "nodes": nodes})
    except GraphError:
        assert not ordered
    else:
        assert ordered


@given(st.lists(st.tuples(st.sampled_from(range(-9, 10)), st.integers(0, 1)), min_size=1, max_size=60))
def test_auroc_is_the_chance_that_a_positive_scores_above_a_negative(scored: list[tuple[int, int]]) -> None:
    """Scores one apart never share a bin, so the histogram loses nothing."""
    margin = np.array([score for score, _ in scored], np.float32)
    y = np.array([label for _, label in scored])
    counts = score_histogram(margin, y)
    found = auroc([(place, *counts[:, place].tolist()) for place in range(counts.shape[1])])
    positives, negatives = margin[y == 1], margin[y == 0]
    if not len(positives) or not len(negatives):
        assert found is None
        return
    pairs = positives[:, None] - negatives[None, :]
    assert found == ((pairs > 0).sum() + (pairs == 0).sum() / 2) / pairs.size


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(FINITE, st.integers(0, 1)), min_size=1, max_size=60))
def test_every_finite_score_is_counted_once_and_order_is_kept(scored: list[tuple[float, int]]) -> None:
    scored.sort()
    margin = np.array([score for score, _ in scored], np.float32)
    y = np.array([label for _, label in scored])
    counts = score_histogram(margin, y)
    assert counts.sum(axis=1).tolist() == [int((y == 0).sum()), int((y == 1).sum())]
    bins = [int(score_histogram(margin[i : i + 1], y[i : i + 1]).sum(axis=0).argmax()) for i in range(len(y))]
    assert bins == sorted(bins)

"""Optimisers and what corrects gradients, against their formulas written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedctl_graph import optimisers
from fedctl_graph.errors import GraphError
from fedctl_graph.optimisers import Adam, Corrected


class Recorder:
    """An optimiser that moves nothing and keeps the gradients that it was given."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def step(self, parameters: Any, gradients: Any) -> None:  # noqa: ARG002 - the interface
        self.seen = dict(gradients)


P = {"w": np.array([3.0, -4.0], np.float32), "b": np.array([12.0], np.float32)}
G = {"w": np.array([0.3, 0.4], np.float32), "b": np.array([1.2], np.float32)}  # norm 1.3


def corrected(**settings: Any) -> dict[str, Any]:
    before = {name: array.copy() for name, array in (*P.items(), *G.items())}
    recorder = Recorder()
    Corrected(recorder, **settings).step(P, G)
    assert all((array == before[name]).all() for name, array in G.items())
    assert {array.dtype for array in recorder.seen.values()} == {np.dtype(np.float32)}
    return recorder.seen


def test_adam_follows_algorithm_1_step_by_step() -> None:
    rng = np.random.default_rng(0)
    parameters = {"w": np.zeros(3, np.float64)}
    optimiser = Adam(0.1)
    m, v, expected = np.zeros(3), np.zeros(3), np.zeros(3)
    for t in range(1, 8):
        gradient = rng.standard_normal(3)
        optimiser.step(parameters, {"w": gradient})
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        expected = expected - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(parameters["w"], expected, rtol=1e-12)


def test_adams_first_step_is_the_learning_rate_whatever_the_gradient() -> None:
    w = np.zeros(2, np.float32)
    Adam(0.5).step({"w": w}, {"w": np.array([1e-3, -1e3], np.float32)})
    np.testing.assert_allclose(w, [-0.5, 0.5], rtol=1e-4)
    assert w.dtype == np.float32


def test_the_proximal_term_pulls_to_the_base() -> None:
    base = {"w": np.array([1.0, -4.0], np.float32), "b": np.array([10.0], np.float32)}
    seen = corrected(proximal_mu=0.5, base=base)
    np.testing.assert_allclose(seen["w"], [0.3 + 0.5 * 2, 0.4])
    np.testing.assert_allclose(seen["b"], [1.2 + 0.5 * 2])


def test_weight_decay_adds_a_share_of_each_parameter() -> None:
    seen = corrected(weight_decay=0.1)
    np.testing.assert_allclose(seen["w"], [0.3 + 0.3, 0.4 - 0.4], atol=1e-7)
    np.testing.assert_allclose(seen["b"], [1.2 + 1.2])


def test_gradients_are_shortened_together_and_only_when_they_are_longer() -> None:
    seen = corrected(max_norm=0.65)
    np.testing.assert_allclose(seen["w"], [0.15, 0.2], rtol=1e-6)
    np.testing.assert_allclose(seen["b"], [0.6], rtol=1e-6)
    assert (corrected(max_norm=1.31)["b"] == G["b"]).all()


def test_shortening_is_after_the_proximal_term_and_before_the_decay() -> None:
    base = {name: np.zeros_like(array) for name, array in P.items()}  # gradient 0.1 * p more: norm 2.6
    settings: dict[str, Any] = {"proximal_mu": 0.1, "base": base, "max_norm": 1.3, "weight_decay": 1.0}
    seen = corrected(**settings)
    long = {name: G[name] + 0.1 * P[name] for name in P}
    norm = np.sqrt(sum((array**2).sum() for array in long.values()))
    for name, array in long.items():
        np.testing.assert_allclose(seen[name], array * 1.3 / norm + P[name], rtol=1e-6)


def test_a_gradient_beyond_the_square_root_of_float32_is_shortened_not_lost() -> None:
    recorder = Recorder()
    Corrected(recorder, max_norm=1.0).step({"w": np.zeros(2)}, {"w": np.array([3e30, 4e30], np.float32)})
    np.testing.assert_allclose(recorder.seen["w"], [0.6, 0.8], rtol=1e-6)


def test_a_gradient_of_another_shape_is_refused_before_it_is_corrected() -> None:
    for optimiser in (Corrected(Recorder(), weight_decay=1.0), Adam(0.1)):
        with pytest.raises(GraphError, match=r"gradient of 'w' has shape \[1\]"):
            optimiser.step({"w": np.ones(3)}, {"w": np.ones(1)})


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_decay": -0.1},
        {"weight_decay": float("inf")},
        {"proximal_mu": -1.0, "base": P},
        {"proximal_mu": 1.0},
        {"max_gradient_norm": 0.0},
        {"max_gradient_norm": float("nan")},
    ],
)
def test_corrections_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(GraphError):
        optimisers.make("sgd", lr=0.1, **settings)


def test_without_corrections_there_is_nothing_between() -> None:
    assert isinstance(optimisers.make("adam", lr=0.1), Adam)
    assert isinstance(optimisers.make("adam", lr=0.1, weight_decay=1e-3), Corrected)

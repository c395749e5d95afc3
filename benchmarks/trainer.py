"""The interpreter of training graphs against NumPy written by hand, and the memory of a training job.

    python benchmarks/trainer.py [--epochs 2] [--repeats 7]

Both train the same models on the same made-up data in the same order, on one thread: an MLP 561-64-6 and a
1-D CNN over windows of 9 channels and 128 samples (16 and 32 channels, kernel 5, maximum over 2), batch 32,
SGD. By hand means: no graph, no names, one array operation after the other, in place where that helps, and
for the CNN the layout that is fastest in NumPy, which the graph has too. Both reach the same weights in the
first steps, which is checked. They take turns and the best of their turns counts. Memory is the peak of a
real agent's jobs, read from two rounds. The last line is one JSON object: `mlp_ratio` and `cnn_ratio`
(interpreter's samples a second by those by hand) and `peak_mib`, and beside them the samples a second.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from local_fleet import local_fleet

from fedctl.core.plan import RoundWishes
from fedctl.core.selector import Selector
from fedctl.models import BuiltModel, Convolutions, build
from fedctl.ops import rounds as round_ops
from fedctl.ops.models import NewModel, create
from fedctl.store import Store
from fedctl_graph.interpreter import Graph
from fedctl_graph.optimisers import Sgd
from fedctl_graph.program import Program
from fedctl_graph.training import fit

LR, BATCH, SEED = np.float32(0.05), 32, 7
CHECKED = 4 * BATCH
EXAMPLES = {"mlp": 4096, "cnn": 1024}
CONVOLUTIONS = Convolutions(channels=(16, 32), kernel=5, pool=2)
SHAPES: dict[str, dict[str, Any]] = {
    "mlp": {"input_shape": (561,), "hidden": (64,), "classes": 6},
    "cnn": {"input_shape": (9, 128), "window": CONVOLUTIONS, "classes": 6},
}
SOURCE = 'kind = "npz"\npath = {path}\nfeatures = "x"\nlabel = "y"\ntest_fraction = 0.5\n'

Weights = dict[str, Any]
Trainer = Callable[[Weights, Any, Any, int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description="The interpreter against NumPy written by hand.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    figures: dict[str, float] = {}
    for name, step in (("mlp", mlp_by_hand), ("cnn", cnn_by_hand)):
        ours, by_hand = compare(name, step, options.epochs, options.repeats)
        figures[f"{name}_ratio"] = round(ours / by_hand, 3)
        figures[f"{name}_samples_s"], figures[f"{name}_by_hand_samples_s"] = round(ours), round(by_hand)
    figures["peak_mib"] = round(max(peak_bytes(name) for name in SHAPES) / 2**20, 1)
    print(json.dumps(figures))


def compare(name: str, by_hand: Trainer, epochs: int, repeats: int) -> tuple[float, float]:
    """Samples a second of the interpreter and of the code by hand."""
    model = build(name, seed=0, **SHAPES[name])
    x, y = data(name)
    trainers = (interpreted(model), by_hand)
    check(model, trainers, x[:CHECKED], y[:CHECKED])
    best = [float("inf")] * 2
    for turn in range(repeats + 1):
        for which, train in enumerate(trainers):
            weights = copies(model)
            began = time.perf_counter()
            train(weights, x, y, epochs)
            if turn:  # the first warms up
                best[which] = min(best[which], time.perf_counter() - began)
    ours, hand = (epochs * len(y) / seconds for seconds in best)
    print(f"{name}: {ours:,.0f} samples/s interpreted, {hand:,.0f} by hand")
    return ours, hand


def check(model: BuiltModel, trainers: tuple[Trainer, Trainer], x: Any, y: Any) -> None:
    """After a few steps both have the same weights; later, roundings move a maximum to its neighbour."""
    results = [copies(model) for _ in trainers]
    for weights, train in zip(results, trainers, strict=True):
        train(weights, x, y, 1)
    for key, value in results[0].items():
        np.testing.assert_allclose(value, results[1][key], rtol=1e-3, atol=1e-5, err_msg=key)
        assert (value != model.weights[key]).any(), key


def copies(model: BuiltModel) -> Weights:
    return {key: value.copy() for key, value in model.weights.items()}


def data(name: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    n = EXAMPLES[name]
    x = rng.standard_normal((n, *SHAPES[name]["input_shape"]), np.float32)
    return x, rng.integers(0, 6, n)


def interpreted(model: BuiltModel) -> Trainer:
    graph = Graph(Program.from_json(json.loads(model.graph), max_nodes=10_000))

    def train(weights: Weights, x: Any, y: Any, epochs: int) -> None:
        fit(graph, weights, (x, y), optimiser=Sgd(float(LR)), epochs=epochs, batch_size=BATCH, seed=SEED)

    return train


def batches(n: int, epochs: int) -> Any:
    """The same batches as the interpreter's."""
    shuffle = np.random.Generator(np.random.PCG64(SEED))
    for _ in range(epochs):
        order = shuffle.permutation(n)
        for start in range(0, n, BATCH):
            yield order[start : start + BATCH]


def mlp_by_hand(weights: Weights, x: Any, y: Any, epochs: int) -> None:
    w0, b0, w1, b1 = weights.values()
    for rows in batches(len(y), epochs):
        xs, ys = x[rows], y[rows]
        hidden = xs @ w0
        hidden += b0
        np.maximum(hidden, 0, out=hidden)
        logits = hidden @ w1
        logits += b1
        delta = softmax_delta(logits, ys)
        below = delta @ w1.T
        below *= hidden > 0
        w1 -= LR * (hidden.T @ delta)
        b1 -= LR * delta.sum(axis=0)
        w0 -= LR * (xs.T @ below)
        b0 -= LR * below.sum(axis=0)


def softmax_delta(logits: Any, y: Any) -> Any:
    """The gradient of the mean cross-entropy by the logits, in their place."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    logits[np.arange(len(y)), y] -= 1
    logits /= np.float32(len(y))
    return logits


def cnn_by_hand(weights: Weights, x: Any, y: Any, epochs: int) -> None:
    k0, c0, k1, c1, w, b = weights.values()
    for rows in batches(len(y), epochs):
        ys, n = y[rows], len(rows)
        columns0 = columns(x[rows].transpose(1, 2, 0), 5)
        peak0, groups0 = pooled(k0.reshape(16, -1) @ columns0, c0, (16, 64, n))
        columns1 = columns(peak0, 5)
        peak1, groups1 = pooled(k1.reshape(32, -1) @ columns1, c1, (32, 32, n))
        flat = peak1.reshape(1024, n)
        delta = softmax_delta(flat.T @ w + b, ys)
        d_peak1 = (w @ delta.T).reshape(32, 32, n)
        w -= LR * (flat @ delta)
        b -= LR * delta.sum(axis=0)
        d1 = unpooled(d_peak1, peak1, groups1, c1)
        d_columns1 = (k1.reshape(32, -1).T @ d1).reshape(16, 5, 64, n)
        k1 -= LR * (d1 @ columns1.T).reshape(k1.shape)
        d_padded = np.zeros((16, 68, n), np.float32)
        for shift in range(5):
            d_padded[:, shift : shift + 64] += d_columns1[:, shift]
        d0 = unpooled(d_padded[:, 2:66], peak0, groups0, c0)
        k0 -= LR * (d0 @ columns0.T).reshape(k0.shape)


def columns(signal: Any, kernel: int) -> Any:
    """Each window as a column: (channels, length, n) to (channels * kernel, length * n)."""
    channels, length, n = signal.shape
    padded = np.zeros((channels, length + kernel - 1, n), np.float32)
    padded[:, kernel // 2 : kernel // 2 + length] = signal
    result = np.empty((channels, kernel, length, n), np.float32)
    for shift in range(kernel):
        result[:, shift] = padded[:, shift : shift + length]
    return result.reshape(channels * kernel, length * n)


def pooled(response: Any, bias: Any, shape: tuple[int, int, int]) -> tuple[Any, Any]:
    """The larger of two neighbours, with bias and ReLU; and the pairs."""
    channels, length, n = shape
    groups = response.reshape(channels, length, 2, n)
    peak = np.maximum(groups[:, :, 0], groups[:, :, 1])
    peak += bias[:, None, None]
    np.maximum(peak, 0, out=peak)
    return peak, groups


def unpooled(d_peak: Any, peak: Any, groups: Any, bias: Any) -> Any:
    """The gradient by the responses; the bias is moved on the way. Ties do not occur in noise."""
    d_peak = d_peak * (peak > 0)
    bias -= LR * d_peak.sum(axis=(1, 2))
    first = groups[:, :, 0] >= groups[:, :, 1]
    result = np.empty(groups.shape, np.float32)
    np.multiply(d_peak, first, out=result[:, :, 0])
    np.multiply(d_peak, ~first, out=result[:, :, 1])
    return result.reshape(groups.shape[0], -1)


def peak_bytes(name: str) -> int:
    """Peak resident memory of a real agent's training jobs on a person's worth of data."""
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        x, y = data(name)
        np.savez(directory / "data.npz", x=x[:800], y=y[:800])
        source = SOURCE.format(path=json.dumps(str(directory / "data.npz")))
        model = NewModel(name=name, builder=name, **SHAPES[name])
        with local_fleet(directory, {"watch": source}, {}) as (home, _), Store.open(home) as store:
            create(store, home, model)
            wishes = RoundWishes(seed=0, tolerance=1e3)
            done = round_ops.start(store, home, name, Selector.parse((), ()), wishes=wishes, rounds=2).rounds
            assert [summary.phase for summary in done] == ["published"] * 2
            details = [round_ops.show(store, summary.id) for summary in done]
    return max(device.peak_rss_bytes for detail in details for device in detail.devices)


if __name__ == "__main__":
    main()

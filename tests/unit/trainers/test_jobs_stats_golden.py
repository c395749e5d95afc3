"""The jobs `stats` and `golden`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from fedctl.aggregation.scaling import scaling_from_stats
from fedctl_agent.trainers import JobError, Outcome, run
from fedctl_agent.trainers.tensorfile import read_tensors, write_tensors
from fedctl_wire.manifest import GOLDEN_FILE, GRAPH_FILE, Tolerances
from fedctl_wire.messages import Progress, TaskKind, TaskState
from fedctl_wire.tensors import layout
from tests.unit.trainers.jobs import DTYPES, PLAN_SHA256, ROUND, Bench


def test_stats_sums_the_present_cells_of_the_training_part(bench: Bench) -> None:
    bench.source(test_fraction=0.25)
    x, _ = bench.examples(80)
    x[3, 1] = np.nan
    x[4, 1] = np.inf
    bench.examples(80, x=x)
    context = bench.context(TaskKind.STATS)
    assert run(context) == Outcome(examples=60)
    cells = x[:60].astype(np.float64)
    cells[3:5, 1] = 0
    found = safetensors.numpy.load_file(context.output)
    np.testing.assert_array_equal(found["count"], [60, 58, 60])
    np.testing.assert_allclose(found["sum"], cells.sum(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found["sumsq"], (cells**2).sum(axis=0), rtol=1e-14)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float64)}
    with safetensors.safe_open(context.output, "numpy") as stream:
        assert stream.metadata() == {
            "format": "fedctl-stats-v1",
            "round": ROUND,
            "plan": PLAN_SHA256,
            "examples": "60",
        }
    assert bench.lines == [Progress(seq=1, examples=60)]


def test_stats_over_many_blocks_and_the_workstation_reads_them(bench: Bench) -> None:
    bench.source(test_fraction=0.0)
    x, _ = bench.examples(5000)
    context = bench.context(TaskKind.STATS)
    run(context)
    found = scaling_from_stats({"watch-01": context.output}, 3)
    np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, x.astype(np.float64).std(axis=0), rtol=1e-9)


def test_a_feature_with_too_few_cells_counts_as_absent(bench: Bench) -> None:
    """The sum over one present cell is a reading."""
    bench.source(test_fraction=0.0)
    x, _ = bench.examples(40)
    x[1:, 2] = np.nan
    bench.examples(40, x=x)
    context = bench.context(TaskKind.STATS)
    run(context)
    assert [read_tensors(context.output)[name][2] for name in ("count", "sum", "sumsq")] == [0, 0, 0]
    assert read_tensors(context.output)["count"][1] == 40


def test_stats_below_the_policys_minimum_is_refused(bench: Bench) -> None:
    bench.source(test_fraction=0.25)
    bench.examples(24)
    context = bench.context(TaskKind.STATS)
    with pytest.raises(JobError) as caught:
        run(context)
    assert (caught.value.code, caught.value.state) == ("policy", TaskState.REFUSED)
    assert not context.output.exists()


def test_stats_needs_no_model_file_and_no_scaling(bench: Bench) -> None:
    bench.source()
    bench.examples(40)
    (bench.root / "model" / GRAPH_FILE).unlink()
    draft = dataclasses.replace(bench.manifest, scale="standard")
    assert run(bench.context(TaskKind.STATS, manifest=draft)).examples == 30


def test_golden_passes_without_any_data(bench: Bench) -> None:
    assert run(bench.context(TaskKind.GOLDEN)) == Outcome(examples=8)
    assert bench.lines == [Progress(seq=1, examples=8)]


def change_golden(bench: Bench, **arrays: Any) -> None:
    path = bench.root / "model" / GOLDEN_FILE
    golden = {name: a for name, a in {**bench.built.golden, **arrays}.items() if a is not None}
    tensors = layout([(name, DTYPES[a.dtype], a.shape) for name, a in golden.items()])
    write_tensors(path, tensors, golden, {})


@pytest.mark.parametrize("name", ["loss", "logits", "grad:dense0.weight", "grad:dense1.bias"])
def test_golden_fails_on_what_this_device_computes_otherwise(bench: Bench, name: str) -> None:
    change_golden(bench, **{name: bench.built.golden[name] * np.float32(1.01)})
    with pytest.raises(JobError, match=f"^{name} is off by") as caught:
        run(bench.context(TaskKind.GOLDEN))
    assert (caught.value.code, caught.value.state) == ("golden", TaskState.FAILED)


def test_golden_holds_to_the_manifests_tolerances(bench: Bench) -> None:
    change_golden(bench, loss=bench.built.golden["loss"] * np.float32(1.01))
    loose = dataclasses.replace(bench.manifest, tolerances=Tolerances(loss=0.1))
    run(bench.context(TaskKind.GOLDEN, manifest=loose))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"loss": np.array(np.nan, np.float32)}, "loss is off by nan"),
        ({"y": None}, "no labels y"),
        ({"y": np.zeros(8, np.float32)}, "no labels y"),
        ({"y": np.array([5])}, "labels outside 0 to 1"),
        ({"x": None}, "no 'x'"),
        ({"x": np.zeros((8, 2), np.float32)}, "no 'x'"),
        ({"param:dense0.bias": None}, "no 'param:dense0.bias'"),
        ({"grad:dense0.bias": None}, "no 'grad:dense0.bias'"),
    ],
)
def test_a_bad_golden_file_is_said_so(bench: Bench, arrays: dict[str, Any], message: str) -> None:
    change_golden(bench, **arrays)
    with pytest.raises(JobError, match=message) as caught:
        run(bench.context(TaskKind.GOLDEN))
    assert caught.value.code == "golden"


def test_a_truncated_golden_file_is_a_job_error(bench: Bench) -> None:
    path = bench.root / "model" / GOLDEN_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(JobError, match=GOLDEN_FILE) as caught:
        run(bench.context(TaskKind.GOLDEN))
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["nodes"].pop(), "is not a float value"),
        (lambda v: v["parameters"].append("more"), "its parameters differ"),
        (lambda v: v["inputs"].update(x=["N", 4]), "its input shape differ"),
        (lambda v: v["outputs"]["gradients"].pop("dense0.bias"), "its gradients differ"),
        (lambda v: v["nodes"].append({"op": "Softmax", "in": ["x"], "out": ["s"], "attrs": {}}), "'Softmax'"),
    ],
)
def test_a_graph_that_is_not_its_manifests_is_refused(bench: Bench, change: Any, message: str) -> None:
    value = json.loads(bench.built.graph)
    change(value)
    (bench.root / "model" / GRAPH_FILE).write_text(json.dumps(value))
    with pytest.raises(JobError, match=message) as caught:
        run(bench.context(TaskKind.GOLDEN))
    assert caught.value.code == "graph"


@pytest.mark.parametrize("text", ["", "[", '{"version": NaN}', '{"a": 1, "a": 2}'])
def test_a_graph_that_is_no_json_is_a_job_error(bench: Bench, text: str) -> None:
    (bench.root / "model" / GRAPH_FILE).write_text(text)
    with pytest.raises(JobError, match=r"train\.json is not valid JSON") as caught:
        run(bench.context(TaskKind.GOLDEN))
    assert caught.value.code == "malformed"

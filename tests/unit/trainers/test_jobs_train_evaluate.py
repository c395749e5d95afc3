"""The jobs `train` and `evaluate`, and progress."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from fedctl.models import build, local
from fedctl_agent.trainers import JobError, run
from fedctl_agent.trainers.model import load_graph, prepare_graph
from fedctl_agent.trainers.reporter import Reporter
from fedctl_agent.trainers.tensorfile import read_tensors
from fedctl_wire.manifest import GRAPH_FILE, WEIGHTS_FILE
from fedctl_wire.messages import Progress, TaskKind, TaskState, TrainSettings
from fedctl_wire.tensors import read_file_header
from tests.unit.trainers.jobs import PLAN_SHA256, ROUND, SETTINGS, Bench, write_bundle


@pytest.fixture
def ready(bench: Bench) -> Bench:
    """A bench with data and a scaled model."""
    bench.source(test_fraction=0.25)
    x, _ = bench.examples(80)
    bench.manifest = write_bundle(bench.root / "model", bench.built, scaling=local.scaling_from([x[:60]]))
    return bench


def failing(bench: Bench, kind: TaskKind, **changes: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        run(bench.context(kind, **changes))
    return caught.value


def test_the_update_is_what_the_same_training_in_process_changes(ready: Bench) -> None:
    context = ready.context(TaskKind.TRAIN)
    outcome = run(context)
    data = np.load(ready.data / "a.npz")
    weights = local.fit(
        ready.built,
        (data["x"][:60], data["y"][:60].astype(np.int64)),
        settings=SETTINGS,
        seed=context.seed,
        scaling=ready.manifest.preprocessing,
    )
    update = safetensors.numpy.load_file(context.output)
    assert set(update) == set(weights)
    for name, delta in update.items():
        assert delta.dtype == np.float32
        np.testing.assert_array_equal(delta, weights[name] - ready.built.weights[name])
    assert outcome.examples == 60
    assert outcome.loss is not None
    assert 0 < outcome.loss < 2
    assert (outcome.base, outcome.candidate) == (None, None)


def test_the_updates_header_is_the_manifests_layout_with_its_origin(ready: Bench) -> None:
    context = ready.context(TaskKind.TRAIN)
    run(context)
    header = read_file_header(context.output)
    assert header.tensors == ready.manifest.update_layout()
    assert header.metadata == {
        "format": "fedctl-update-v1",
        "round": ROUND,
        "plan": PLAN_SHA256,
        "base": "cd" * 32,
        "examples": "60",
    }


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(ready: Bench) -> None:
    results = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        context = ready.context(TaskKind.TRAIN, seed=seed, output=ready.root / name)
        run(context)
        results.append(context.output.read_bytes())
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_local_and_fixed_tensors_never_leave(ready: Bench) -> None:
    first, second, *rest = ready.manifest.tensors
    tensors = (first, dataclasses.replace(second, local=True), *rest)
    context = ready.context(TaskKind.TRAIN, manifest=dataclasses.replace(ready.manifest, tensors=tensors))
    run(context)
    assert list(read_tensors(context.output)) == [first.name, *(spec.name for spec in rest)]


def test_the_weight_is_capped_by_the_plan(ready: Bench) -> None:
    for cap, weight in ((10, 10), (1000, 60)):
        context = ready.context(TaskKind.TRAIN, settings=dataclasses.replace(SETTINGS, max_examples=cap))
        assert run(context).examples == weight
        assert read_file_header(context.output).metadata["examples"] == str(weight)


def test_no_local_epochs_give_an_update_of_zeros(ready: Bench) -> None:
    context = ready.context(TaskKind.TRAIN, settings=dataclasses.replace(SETTINGS, local_epochs=0))
    outcome = run(context)
    assert (outcome.examples, outcome.loss) == (60, None)
    assert not any(delta.any() for delta in read_tensors(context.output).values())


def test_progress_has_a_line_an_epoch(ready: Bench) -> None:
    run(ready.context(TaskKind.TRAIN))
    assert [(p.seq, p.epoch, p.epochs, p.examples) for p in ready.lines] == [(1, 1, 2, 60), (2, 2, 2, 60)]
    assert all(p.loss is not None for p in ready.lines)


def test_losses_stay_here_when_the_policy_does_not_share_metrics(ready: Bench) -> None:
    outcome = run(ready.context(TaskKind.TRAIN, share_metrics=False))
    assert outcome.loss is None
    assert [p.loss for p in ready.lines] == [None, None]


def test_reports_between_epochs_are_at_most_two_a_second() -> None:
    now = iter([0.0, 0.1, 0.5, 0.6, 0.7, 1.3])
    lines: list[Progress] = []
    reporter = Reporter(lines.append, epochs=3, clock=lambda: next(now))
    for examples, always in ((1, False), (2, False), (3, False), (4, True), (5, False)):
        reporter.report(epoch=1, examples=examples, always=always)
    assert [(p.seq, p.examples) for p in lines] == [(1, 2), (2, 4), (3, 5)]


@pytest.mark.parametrize(
    "settings",
    [
        dataclasses.replace(SETTINGS, batch_size=0),
        dataclasses.replace(SETTINGS, local_epochs=-1),
        dataclasses.replace(SETTINGS, lr=-1.0),
        dataclasses.replace(SETTINGS, momentum=1.0),
        dataclasses.replace(SETTINGS, optimizer="lion"),
        dataclasses.replace(SETTINGS, max_examples=0),
        None,
    ],
)
def test_settings_out_of_range_fail(ready: Bench, settings: TrainSettings | None) -> None:
    error = failing(ready, TaskKind.TRAIN, settings=settings)
    assert (error.code, error.state) == ("settings", TaskState.FAILED)


def test_training_that_diverges_leaves_no_update(ready: Bench) -> None:
    settings = dataclasses.replace(SETTINGS, lr=1e30, local_epochs=5)
    error = failing(ready, TaskKind.TRAIN, settings=settings)
    assert (error.code, error.state) == ("non_finite", TaskState.FAILED)
    assert not (ready.root / "result.safetensors").exists()


def test_an_update_that_is_not_finite_is_caught_even_where_the_loss_was(ready: Bench) -> None:
    """One step with an absurd rate: its loss was measured before it."""
    settings = dataclasses.replace(SETTINGS, lr=1e38, local_epochs=1, batch_size=100)
    weights = {name: w * np.float32(50) for name, w in ready.built.weights.items()}
    ready.manifest = write_bundle(
        ready.root / "model", ready.built, scaling=ready.manifest.preprocessing, weights=weights
    )
    error = failing(ready, TaskKind.TRAIN, settings=settings)
    assert error.code == "non_finite"
    assert "update of 'dense" in error.message
    assert not (ready.root / "result.safetensors").exists()


def test_training_below_the_policys_minimum_is_refused(ready: Bench) -> None:
    error = failing(ready, TaskKind.TRAIN, policy_min_examples=61)
    assert (error.code, error.state) == ("policy", TaskState.REFUSED)


def test_a_model_that_still_lacks_its_scaling_does_not_train(ready: Bench) -> None:
    draft = dataclasses.replace(ready.manifest, preprocessing=None)
    error = failing(ready, TaskKind.TRAIN, manifest=draft)
    assert (error.code, error.message) == ("scaling", "har@1 has no scaling yet")


def test_missing_cells_are_the_mean(ready: Bench) -> None:
    """Blanking a whole feature gives the same update as setting it to the scaling's mean."""
    assert ready.manifest.preprocessing is not None
    results = []
    for filler in (np.nan, ready.manifest.preprocessing.mean[1]):
        x, _ = ready.examples(80)
        x[:, 1] = filler
        ready.examples(80, x=x)
        context = ready.context(TaskKind.TRAIN)
        run(context)
        results.append(context.output.read_bytes())
    assert results[0] == results[1]


def test_a_model_of_another_number_of_features_is_said_so(ready: Bench) -> None:
    wide = build("mlp", input_shape=(4,), hidden=(2,), classes=2, seed=0)
    manifest = write_bundle(ready.root / "wide", wide)
    error = failing(ready, TaskKind.TRAIN, manifest=manifest, model_dir=ready.root / "wide")
    assert error.message == "source 'recorder' gives 3 features, the model takes 4 features"


def test_truncated_weights_are_a_job_error(ready: Bench) -> None:
    path = ready.root / "model" / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-4])
    assert failing(ready, TaskKind.TRAIN).code == "malformed"


def candidate(bench: Bench, **changes: Any) -> dict[str, Any]:
    """Arguments of an evaluation whose candidate is the built model and whose base is another."""
    other = build("mlp", input_shape=(3,), hidden=(6,), classes=2, seed=99)
    base = write_bundle(bench.root / "base", other, scaling=bench.manifest.preprocessing)
    return {"base_dir": bench.root / "base", "base_manifest": base, **changes}


def test_evaluation_measures_base_and_candidate_on_the_test_part(ready: Bench) -> None:
    outcome = run(ready.context(TaskKind.EVALUATE, **candidate(ready)))
    data = np.load(ready.data / "a.npz")
    part = data["x"][60:], data["y"][60:].astype(np.int64)
    expected = local.evaluate(ready.built, ready.built.weights, part, scaling=ready.manifest.preprocessing)
    assert outcome.candidate == expected
    assert outcome.base is not None
    assert outcome.base != outcome.candidate
    assert outcome.examples == outcome.base.examples == 20
    assert expected.histogram is not None
    assert sum(row[1] + row[2] for row in expected.histogram) == 20
    assert outcome.loss is None
    assert ready.lines == [Progress(seq=1, examples=20)]
    assert not (ready.root / "result.safetensors").exists()


def test_with_holdout_devices_in_the_plan_all_examples_are_used(ready: Bench) -> None:
    outcome = run(ready.context(TaskKind.EVALUATE, holdout=["watch-09"]))
    assert outcome.candidate is not None
    assert (outcome.examples, outcome.candidate.examples, outcome.base) == (80, 80, None)


def test_evaluation_needs_shared_metrics_and_enough_examples(ready: Bench) -> None:
    for changes in ({"share_metrics": False}, {"policy_min_examples": 81}):
        error = failing(ready, TaskKind.EVALUATE, **changes)
        assert (error.code, error.state) == ("policy", TaskState.REFUSED)


def test_evaluation_without_a_test_part_is_no_data(ready: Bench) -> None:
    ready.source(test_fraction=0.0)
    error = failing(ready, TaskKind.EVALUATE)
    assert (error.code, error.state) == ("no_data", TaskState.REFUSED)


def test_a_model_filled_with_nan_is_not_measured(ready: Bench) -> None:
    weights = {name: np.full_like(w, np.nan) for name, w in ready.built.weights.items()}
    ready.manifest = write_bundle(
        ready.root / "model", ready.built, scaling=ready.manifest.preprocessing, weights=weights
    )
    error = failing(ready, TaskKind.EVALUATE)
    assert (error.code, error.state) == ("non_finite", TaskState.FAILED)


def test_a_base_of_other_classes_is_not_compared(ready: Bench) -> None:
    three = build("mlp", input_shape=(3,), hidden=(6,), classes=3, seed=0)
    base = write_bundle(ready.root / "base", three)
    error = failing(ready, TaskKind.EVALUATE, base_dir=ready.root / "base", base_manifest=base)
    assert error.code == "graph"


def test_a_graph_is_compiled_ahead_only_from_the_bytes_that_the_manifest_lists(bench: Bench) -> None:
    path = bench.context(TaskKind.TRAIN).model_dir / GRAPH_FILE
    good = path.read_bytes()
    path.write_bytes(good.replace(b"Relu", b"Exp"))
    prepare_graph(path.parent, bench.manifest)
    path.write_bytes(good)
    prepare_graph(path.parent, bench.manifest)
    graph = load_graph(path.parent, bench.manifest)
    assert load_graph(path.parent, bench.manifest) is graph
    assert graph.program.operators == bench.manifest.operators

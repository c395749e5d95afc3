"""`train`: local epochs over the training part; what leaves is the difference to the base."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedctl_agent.sources import Part, local_data
from fedctl_agent.trainers.contract import JobContext, JobError, Outcome
from fedctl_agent.trainers.model import LoadedModel, load_model, weigh_classes
from fedctl_agent.trainers.reporter import Reporter
from fedctl_agent.trainers.tensorfile import read_tensors, write_difference
from fedctl_graph import optimisers
from fedctl_graph.errors import GraphError
from fedctl_graph.metrics import NonFiniteError
from fedctl_graph.training import BatchDone, fit, prepare
from fedctl_wire.manifest import WEIGHTS_FILE
from fedctl_wire.messages import TrainSettings
from fedctl_wire.update import update_metadata


def run(context: JobContext) -> Outcome:
    """Train and write the update: float32 deltas in the order of `Manifest.update_layout`.

    Raises:
        JobError: `policy` when there are too few examples, `settings` when the plan's are out of
            range, `non_finite` when training diverged; see also `local_data` and `load_model`.
    """
    settings = context.plan.train
    if settings is None:
        raise JobError("settings", "the plan has no training settings")
    model = load_model(context.model_dir, context.manifest)
    part = local_data(context.sources_dir, context.manifest).training(context.policy_min_examples)
    prepare(part.x, model.scaling)
    weigh_classes(model, settings, part.y)
    loss = _train(context, settings, model, part)
    weight = len(part.y) if settings.max_examples is None else min(len(part.y), settings.max_examples)
    _write_update(context, model, weight)
    return Outcome(examples=weight, loss=loss if context.share_metrics else None)


def _train(context: JobContext, settings: TrainSettings, model: LoadedModel, part: Part) -> float | None:
    cap = settings.max_examples
    if settings.local_epochs < 0 or settings.batch_size < 1 or (cap is not None and cap < 1):
        raise JobError("settings", "the plan's epochs, batch size or cap on examples are out of range")
    optimiser = _optimiser(context, settings)
    reporter = Reporter(context.progress, epochs=settings.local_epochs)

    def report(done: BatchDone) -> None:
        reporter.report(
            epoch=done.epoch,
            examples=done.examples,
            # A NaN cannot travel as JSON; it ends the job at the end of its epoch anyway.
            loss=done.loss if context.share_metrics and np.isfinite(done.loss) else None,
            always=done.examples == len(part.y),
        )

    try:
        return fit(
            model.graph,
            model.parameters,
            (part.x, part.y),
            optimiser=optimiser,
            epochs=settings.local_epochs,
            batch_size=settings.batch_size,
            seed=context.seed,
            on_batch=report,
        )
    except NonFiniteError as error:
        raise JobError("non_finite", f"training diverged: {error}") from error


def _optimiser(context: JobContext, settings: TrainSettings) -> optimisers.Optimiser:
    try:
        return optimisers.make(
            settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            proximal_mu=settings.proximal_mu,
            max_gradient_norm=settings.max_gradient_norm,
            base=_base(context) if settings.proximal_mu else None,
        )
    except GraphError as error:
        raise JobError("settings", str(error)) from error


def _base(context: JobContext) -> dict[str, NDArray[np.float32]]:
    """The parameters that training starts from: read again rather than kept beside those that train."""
    return read_tensors(context.model_dir / WEIGHTS_FILE, context.manifest.weights_layout())


def _write_update(context: JobContext, model: LoadedModel, weight: int) -> None:
    """Write the difference to the base of the parameters that may leave the device."""
    plan = context.plan
    metadata = update_metadata(
        round_id=plan.round, plan=context.plan_sha256, base=plan.base.sha256, examples=weight
    )
    tensors = context.manifest.update_layout()
    try:
        write_difference(context.output, tensors, (model.parameters, _base(context)), metadata)
    except FloatingPointError as error:
        context.output.unlink()
        raise JobError(
            "non_finite", f"training diverged: the update of {str(error)!r} is not finite"
        ) from error

"""`evaluate`: loss, hits and scores of a candidate, and of the version it should replace, on local data."""

from __future__ import annotations

from fedctl_agent.sources import Part, local_data
from fedctl_agent.trainers.contract import JobContext, JobError, Outcome, refuse
from fedctl_agent.trainers.model import LoadedModel, load_model, weigh_classes
from fedctl_agent.trainers.reporter import Reporter
from fedctl_graph.metrics import NonFiniteError, Tally
from fedctl_graph.training import Measured, evaluate
from fedctl_wire.messages import Evaluation


def run(context: JobContext) -> Outcome:
    """Measure candidate and, where there is one, base in one pass over the examples.

    All examples where the plan has hold-out devices, for then only they are asked; else the part
    that is never trained on. The loss is the one that the plan trains by: with its class weights.

    Raises:
        JobError: `policy` when metrics are not shared or there are too few examples, `no_data`
            when there is none to test on, `non_finite` when a model gives no finite loss.
    """
    if not context.share_metrics:
        raise refuse("policy", "this device's policy does not share metrics")
    models = _models(context)
    data = local_data(context.sources_dir, context.manifest)
    holdout = context.plan.holdout.size > 0
    part = data.everything(context.policy_min_examples) if holdout else data.test(context.policy_min_examples)
    for model in models:
        weigh_classes(model, context.plan.train, part.y)
    tallies = _measure(context, models, part)
    base = _evaluation(tallies[1]) if len(tallies) > 1 else None
    return Outcome(examples=len(part.y), base=base, candidate=_evaluation(tallies[0]))


def _models(context: JobContext) -> list[LoadedModel]:
    models = [load_model(context.model_dir, context.manifest)]
    if context.base_dir is not None and context.base_manifest is not None:
        models.append(load_model(context.base_dir, context.base_manifest))
        shapes = {(model.manifest.input_shape, model.manifest.classes) for model in models}
        if len(shapes) > 1:
            raise JobError("graph", "base and candidate have different inputs or classes")
    return models


def _measure(context: JobContext, models: list[LoadedModel], part: Part) -> list[Tally]:
    reporter = Reporter(context.progress)
    measured = [Measured(model.graph, model.parameters, model.scaling) for model in models]
    try:
        return evaluate(
            measured,
            (part.x, part.y),
            classes=context.manifest.classes,
            on_batch=lambda seen: reporter.report(examples=seen, always=seen == len(part.y)),
        )
    except NonFiniteError as error:
        raise JobError("non_finite", f"a model gave no finite figures: {error}") from error


def _evaluation(tally: Tally) -> Evaluation:
    return Evaluation(tally.examples, tally.loss_sum, tally.correct, tally.histogram, tally.class_counts)

"""Trainers small enough to see through, in place of the agent's own."""

from __future__ import annotations

import sys

from fedctl_agent.trainers import JobContext, JobError, Outcome
from fedctl_wire.messages import Evaluation, Progress, TaskState
from fedctl_wire.tensors import header_bytes


def train(context: JobContext) -> Outcome:
    """An update whose bytes come from the job's seed and the model's weights."""
    import numpy as np

    context.progress(Progress(epoch=1, epochs=2))
    context.progress(Progress(epoch=2, epochs=2))
    tensors = context.manifest.update_layout()
    delta = np.random.default_rng(context.seed).standard_normal(tensors[0].size).astype("<f4")
    context.output.write_bytes(header_bytes(tensors, {"plan": context.plan_sha256}) + delta.tobytes())
    sys.stdout.write("trained\n")
    sys.stdout.flush()
    return Outcome(examples=40, loss=0.5)


def evaluate(context: JobContext) -> Outcome:
    assert context.base_dir
    assert context.base_manifest
    version = context.base_manifest.model_version
    return Outcome(9, base=Evaluation(9, float(version), 4), candidate=Evaluation(9, 2.0, 5))


def policy(context: JobContext) -> Outcome:
    """Hand the policy that the job is held to back through the outcome."""
    return Outcome(context.policy_min_examples, loss=float(context.share_metrics))


def refuse(context: JobContext) -> Outcome:
    context.output.write_bytes(b"half an upda")
    raise JobError("no_data", "source har has no test part", state=TaskState.REFUSED)


def leak(context: JobContext) -> Outcome:
    raise ValueError("could not convert string to float: '72.5 bpm'")

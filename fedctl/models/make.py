"""From an architecture to a model that is proven: graph, first weights and golden batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedctl.core.errors import UsageError
from fedctl.models import check, cnn, mlp
from fedctl.models.built import Architecture, BuiltModel
from fedctl.models.draft import Draft, class_weights, graph_bytes
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import CLASS_WEIGHTS, TensorSpec

MAX_CLASSES = 1000
GOLDEN_EXAMPLES = 8
GOLDEN_WINDOWS = 4  # each has far more values

Weights = dict[str, NDArray[np.float32]]


def make(architecture: Architecture, *, seed: int) -> BuiltModel:
    """See `fedctl.models.build`.

    Raises:
        UsageError: When the numbers make no model that a device would take.
    """
    builder = cnn if architecture.builder == cnn.NAME else mlp
    if not 2 <= architecture.classes <= MAX_CLASSES:
        raise UsageError(f"a model has 2 to {MAX_CLASSES} classes, not {architecture.classes}")
    tensors = builder.tensors(architecture)
    if architecture.weighted:
        tensors.append(class_weights(architecture.classes))
    _check_size(tensors)
    draft = Draft(architecture.input_shape)
    builder.write(draft, architecture)
    program = draft.program(tensors)
    first, golden = np.random.SeedSequence(seed).spawn(2)
    zeros = architecture.builder == mlp.LOGREG  # its loss has one minimum: any start will do
    return BuiltModel(
        builder=architecture.builder,
        input_shape=architecture.input_shape,
        classes=architecture.classes,
        graph=graph_bytes(program),
        operators=tuple(sorted({node["op"] for node in program["nodes"]})),
        tensors=tuple(tensors),
        weights=_zeros(tensors) if zeros else _he_normal(tensors, np.random.default_rng(first)),
        golden=check.golden_batch(
            program,
            _golden_weights(tensors, np.random.default_rng(golden)),
            classes=architecture.classes,
            examples=GOLDEN_WINDOWS if builder is cnn else GOLDEN_EXAMPLES,
            rng=np.random.default_rng(golden.spawn(1)[0]),
        ),
    )


def _check_size(tensors: Sequence[TensorSpec]) -> None:
    if any(n < 1 for spec in tensors for n in spec.shape):
        raise UsageError("every layer of a model has at least one unit")
    if sum(math.prod(spec.shape) for spec in tensors) > LIMITS.parameters:
        raise UsageError(f"the model would have more than {LIMITS.parameters} parameters")
    if len(tensors) > LIMITS.tensors:
        raise UsageError(f"the model would have more than {LIMITS.tensors} tensors")


def _zeros(tensors: Sequence[TensorSpec]) -> Weights:
    return {
        spec.name: (np.ones if spec.name == CLASS_WEIGHTS else np.zeros)(spec.shape, np.float32)
        for spec in tensors
    }


def _he_normal(tensors: Sequence[TensorSpec], rng: np.random.Generator) -> Weights:
    """Normal weights of variance 2 / inputs (He et al. 2015, arXiv:1502.01852), biases zero."""
    weights = _zeros(tensors)
    for spec in tensors:
        if len(spec.shape) > 1:
            weights[spec.name] = rng.standard_normal(spec.shape, np.float32) * _scale(spec)
    return weights


def _golden_weights(tensors: Sequence[TensorSpec], rng: np.random.Generator) -> Weights:
    """As `_he_normal`, with biases and class weights that show when they are left out."""
    weights: Weights = {}
    for spec in tensors:
        values = rng.standard_normal(spec.shape, np.float32)
        if len(spec.shape) > 1:
            values *= _scale(spec)
        weights[spec.name] = np.abs(values) + np.float32(0.5) if spec.name == CLASS_WEIGHTS else values
    return weights


def _scale(spec: TensorSpec) -> np.float32:
    """A dense weight is (inputs, outputs), that of a convolution (outputs, inputs, kernel)."""
    inputs = spec.shape[0] if len(spec.shape) == 2 else math.prod(spec.shape[1:])
    return np.float32(math.sqrt(2 / inputs))

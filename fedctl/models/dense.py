"""Dense layers with ReLU between them and a softmax's cross-entropy above: forward and backward part.

Written out by hand; `check.py` compares every gradient with a numerical one before a model is handed out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from fedctl.models.draft import Draft
from fedctl_wire.manifest import CLASS_WEIGHTS, TensorSpec


def tensors(widths: Sequence[int]) -> list[TensorSpec]:
    """A weight (inputs, outputs) and a bias for each pair of neighbours."""
    specs: list[TensorSpec] = []
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        specs.append(TensorSpec(f"dense{layer}.weight", (inputs, outputs)))
        specs.append(TensorSpec(f"dense{layer}.bias", (outputs,)))
    return specs


def forward(draft: Draft, layers: int, source: str) -> None:
    """From `source`, (N, inputs), to `logits`."""
    for layer in range(layers):
        last = layer == layers - 1
        below = _below(layer, source)
        product = draft.node("MatMul", (below, f"dense{layer}.weight"), f"product{layer}")
        total = draft.node("Add", (product, f"dense{layer}.bias"), "logits" if last else f"sum{layer}")
        if not last:
            draft.node("Relu", (total,), f"active{layer}")


def loss(draft: Draft, classes: int, *, weighted: bool) -> None:
    """Mean cross-entropy, and `d_logits`, its gradient by the logits: (softmax - one-hot) * share.

    An example's share is 1 / examples, or the weight of its class by the sum of all the batch's.
    """
    draft.node("LogSoftmax", ("logits",), "log_p", axis=-1)
    draft.node("OneHot", ("y", draft.number("classes", classes), "off_on"), "target", axis=-1)
    draft.node("Mul", ("log_p", "target"), "picked")
    draft.node("ReduceSum", ("picked", "columns"), "log_likelihood", keepdims=0)
    draft.node("Exp", ("log_p",), "p")
    draft.node("Sub", ("p", "target"), "excess")
    (_weighted_mean if weighted else _plain_mean)(draft)


def _plain_mean(draft: Draft) -> None:
    draft.node("ReduceMean", ("log_likelihood", "rows"), "mean_log_likelihood", keepdims=0)
    draft.node("Neg", ("mean_log_likelihood",), "loss")
    draft.node("Shape", ("y",), "batch")
    draft.node("Cast", ("batch",), "examples", to=1)
    draft.node("Div", ("excess", "examples"), "d_logits")


def _weighted_mean(draft: Draft) -> None:
    draft.node("MatMul", ("target", CLASS_WEIGHTS), "weight")
    draft.node("ReduceSum", ("weight", "rows"), "total_weight", keepdims=0)
    draft.node("Div", ("weight", "total_weight"), "share")
    draft.node("Mul", ("log_likelihood", "share"), "shared_log_likelihood")
    draft.node("ReduceSum", ("shared_log_likelihood", "rows"), "mean_log_likelihood", keepdims=0)
    draft.node("Neg", ("mean_log_likelihood",), "loss")
    draft.reshape("share", [-1, 1], "share_column")
    draft.node("Mul", ("excess", "share_column"), "d_logits")


def backward(draft: Draft, layers: int, source: str) -> None:
    """From `d_logits` to the gradient of every weight and bias."""
    for layer in reversed(range(layers)):
        below = _below(layer, source)
        delta = delta_of(layer, layers)
        draft.node("Transpose", (below,), f"{below}_t", perm=[1, 0])
        draft.node("MatMul", (f"{below}_t", delta), f"grad:dense{layer}.weight")
        draft.node("ReduceSum", (delta, "rows"), f"grad:dense{layer}.bias", keepdims=0)
        if layer:
            draft.node("Transpose", (f"dense{layer}.weight",), f"weight{layer}_t", perm=[1, 0])
            draft.node("MatMul", (delta, f"weight{layer}_t"), f"d_active{layer - 1}")
            through_relu(draft, layer - 1)


def through_relu(draft: Draft, layer: int | str) -> None:
    """`d_sum` of a layer from its `d_active`: what its ReLU let through."""
    draft.node("Greater", (f"sum{layer}", "zero"), f"on{layer}")
    draft.node("Cast", (f"on{layer}",), f"slope{layer}", to=1)
    draft.node("Mul", (f"d_active{layer}", f"slope{layer}"), f"d_sum{layer}")


def delta_of(layer: int, layers: int) -> str:
    """The value that is the gradient of the loss by a layer's sums, before its ReLU."""
    return "d_logits" if layer == layers - 1 else f"d_sum{layer}"


def _below(layer: int, source: str) -> str:
    return f"active{layer - 1}" if layer else source

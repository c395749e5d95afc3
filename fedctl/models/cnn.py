"""The builder `cnn`: 1-D convolutions over windows (channels, length), then dense layers.

Each convolution keeps the length (zeros at both ends), is followed by a maximum over `pool` neighbours
and a ReLU. Inside, values are (channels, length, N): then every shifted copy of a window is one block of
memory, and a convolution is one product of matrices, whose left side is the weight as it is stored. The
columns of that product are kept for the gradient of the weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedctl.core.errors import UsageError
from fedctl.models import dense
from fedctl.models.built import Architecture, Convolutions
from fedctl.models.draft import Draft
from fedctl_wire.manifest import TensorSpec

NAME = "cnn"
MAX_KERNEL = 255
MAX_POOL = 255


@dataclass(frozen=True, slots=True)
class _Layer:
    number: int
    inputs: int  # channels
    outputs: int  # channels
    length: int
    kernel: int
    pool: int

    @property
    def pooled(self) -> int:
        """Length after the pool; what does not fill a last one is left out."""
        return self.length // self.pool

    @property
    def pads(self) -> tuple[int, int]:
        """Zeros before and after, so that the length stays."""
        return (self.kernel - 1) // 2, self.kernel // 2


def tensors(architecture: Architecture) -> list[TensorSpec]:
    """A weight (outputs, inputs, kernel) and a bias for each convolution, then those of the dense layers.

    Raises:
        UsageError: When the numbers make no network.
    """
    _check(architecture)
    specs: list[TensorSpec] = []
    for layer in _layers(architecture):
        specs.append(TensorSpec(f"conv{layer.number}.weight", (layer.outputs, layer.inputs, layer.kernel)))
        specs.append(TensorSpec(f"conv{layer.number}.bias", (layer.outputs,)))
    return specs + dense.tensors(_widths(architecture))


def write(draft: Draft, architecture: Architecture) -> None:
    """Add the whole program."""
    layers = list(_layers(architecture))
    dense_layers = len(architecture.hidden) + 1
    source = draft.node("Transpose", ("x",), "window", perm=[1, 2, 0])
    for layer in layers:
        source = _forward(draft, layer, source)
    last = layers[-1]
    flat_t = draft.reshape(source, [last.outputs * last.pooled, -1], "flat_turned")
    flat = draft.node("Transpose", (flat_t,), "flat", perm=[1, 0])
    dense.forward(draft, dense_layers, flat)
    dense.loss(draft, architecture.classes, weighted=architecture.weighted)
    dense.backward(draft, dense_layers, flat)
    delta = draft.node("Transpose", (dense.delta_of(0, dense_layers),), "delta_turned", perm=[1, 0])
    d_flat = draft.node("MatMul", ("dense0.weight", delta), "d_flat")
    draft.reshape(d_flat, [last.outputs, -1], _d_active(last))
    for layer in reversed(layers):
        _backward(draft, layer)


def _check(architecture: Architecture) -> None:
    if len(architecture.input_shape) != 2:
        raise UsageError(
            f"a cnn takes windows of channels and samples, not shape {list(architecture.input_shape)}",
            hint="for example --input 9x128",
        )
    window = _window(architecture)
    if not 1 <= window.kernel <= MAX_KERNEL:
        raise UsageError(f"a kernel has 1 to {MAX_KERNEL} samples, not {window.kernel}")
    if not 1 <= window.pool <= MAX_POOL:
        raise UsageError(f"a pool has 1 to {MAX_POOL} samples, not {window.pool}")
    if min(*architecture.input_shape, *window.channels) < 1:
        raise UsageError("every layer of a cnn has at least one channel, and a window at least one sample")
    length = architecture.input_shape[1]
    if length // window.pool ** len(window.channels) < 1:
        raise UsageError(
            f"nothing is left of {length} samples after {len(window.channels)} pools of {window.pool}",
            hint="fewer --channels, or a smaller --pool",
        )


def _window(architecture: Architecture) -> Convolutions:
    if architecture.window is None or not architecture.window.channels:
        raise UsageError("a cnn needs at least one convolution", hint="for example --channels 16,32")
    return architecture.window


def _layers(architecture: Architecture) -> Iterator[_Layer]:
    window = _window(architecture)
    channels, length = architecture.input_shape
    for number, (inputs, outputs) in enumerate(itertools.pairwise((channels, *window.channels))):
        layer = _Layer(number, inputs, outputs, length, window.kernel, window.pool)
        yield layer
        length = layer.pooled


def _widths(architecture: Architecture) -> Sequence[int]:
    *_, last = _layers(architecture)
    return (last.outputs * last.pooled, *architecture.hidden, architecture.classes)


def _forward(draft: Draft, layer: _Layer, source: str) -> str:
    """From (inputs, length, N) to (outputs, pooled, N), the values that the next layer takes."""
    i, outputs = layer.number, layer.outputs
    columns = _columns(draft, source, layer, (layer.inputs, layer.pads), f"columns_c{i}")
    matrix = draft.reshape(f"conv{i}.weight", [outputs, layer.inputs * layer.kernel], f"matrix_c{i}")
    response = draft.node("MatMul", (matrix, columns), f"response_c{i}")
    peak = _pool(draft, layer, response)
    bias = draft.reshape(f"conv{i}.bias", [outputs, 1], f"bias_c{i}")
    # The maximum of sums with the same bias is the sum of the maximum: added to fewer values.
    total = draft.node("Add", (peak, bias), f"sum_c{i}")
    active = draft.node("Relu", (total,), f"active_c{i}")
    return draft.reshape(active, [outputs, layer.pooled, -1], f"layer_c{i}")


def _columns(draft: Draft, source: str, layer: _Layer, form: tuple[int, tuple[int, int]], output: str) -> str:
    """Every window of `kernel` samples as a column: (channels, length, N) to (channels * kernel, length * N).

    `form` is the number of channels and how many zeros go before and after.
    """
    channels, (before, after) = form
    kernel, length = layer.kernel, layer.length
    if kernel > 1:
        pads = draft.integers([0, before, 0, 0, after, 0])
        padded = draft.node("Pad", (source, pads), f"{output}_padded")
        lifted = draft.reshape(padded, [channels, 1, length + kernel - 1, -1], f"{output}_lifted")
        shifted = [draft.cut(lifted, 2, (k, k + length), f"{output}_{k}") for k in range(kernel)]
        source = draft.node("Concat", shifted, f"{output}_apart", axis=1)
    return draft.reshape(source, [channels * kernel, -1], output)


def _pool(draft: Draft, layer: _Layer, response: str) -> str:
    """The largest of each `pool` neighbours: (outputs, length * N) to (outputs, pooled * N)."""
    i, outputs, pool, pooled = layer.number, layer.outputs, layer.pool, layer.pooled
    if pool == 1:
        return response
    if layer.length % pool:
        whole = draft.reshape(response, [outputs, layer.length, -1], f"whole_c{i}")
        response = draft.cut(whole, 1, (0, pooled * pool), f"cut_c{i}")
    draft.reshape(response, [outputs, pooled, pool, -1], f"groups_c{i}")
    draft.node("Max", _members(draft, f"groups_c{i}", pool), f"peaks_c{i}")
    return draft.reshape(f"peaks_c{i}", [outputs, -1], f"peak_c{i}")


def _members(draft: Draft, groups: str, pool: int) -> list[str]:
    return [draft.cut(groups, 2, (j, j + 1), f"{groups}_{j}") for j in range(pool)]


def _backward(draft: Draft, layer: _Layer) -> None:
    """From `d_active` of this layer to its gradients, and to `d_active` of the one below."""
    i, outputs, inputs, kernel = layer.number, layer.outputs, layer.inputs, layer.kernel
    dense.through_relu(draft, f"_c{i}")
    draft.node("ReduceSum", (f"d_sum_c{i}", "columns"), f"grad:conv{i}.bias", keepdims=0)
    d_response = _unpool(draft, layer)
    turned = draft.node("Transpose", (f"columns_c{i}",), f"columns_c{i}_turned", perm=[1, 0])
    d_matrix = draft.node("MatMul", (d_response, turned), f"d_matrix_c{i}")
    draft.reshape(d_matrix, [outputs, inputs, kernel], f"grad:conv{i}.weight")
    if i:
        _down(draft, layer, d_response)


def _unpool(draft: Draft, layer: _Layer) -> str:
    """The gradient by the responses: that of a maximum goes to the neighbour that was it.

    Equal ones share it, as in a constant signal: to give each the whole would count it several times.
    """
    i, outputs, pool, pooled = layer.number, layer.outputs, layer.pool, layer.pooled
    if pool == 1:
        return f"d_sum_c{i}"
    draft.node("Equal", (f"groups_c{i}", f"peaks_c{i}"), f"is_peak_c{i}")
    mask = draft.node("Cast", (f"is_peak_c{i}",), f"mask_c{i}", to=1)
    ties = draft.node("Sum", _members(draft, mask, pool), f"ties_c{i}")
    d_peaks = draft.reshape(f"d_sum_c{i}", [outputs, pooled, 1, -1], f"d_peaks_c{i}")
    each = draft.node("Div", (d_peaks, ties), f"d_each_c{i}")
    d_groups = draft.node("Mul", (mask, each), f"d_groups_c{i}")
    rest = layer.length % pool
    if rest:
        cut = draft.reshape(d_groups, [outputs, pooled * pool, -1], f"d_cut_c{i}")
        d_groups = draft.node("Pad", (cut, draft.integers([0, 0, 0, 0, rest, 0])), f"d_whole_c{i}")
    return draft.reshape(d_groups, [outputs, -1], f"d_response_c{i}")


def _down(draft: Draft, layer: _Layer, d_response: str) -> None:
    """The gradient by the layer's input: a convolution of that by its output, with the kernel reversed."""
    i, kernel = layer.number, layer.kernel
    before, after = layer.pads
    source = draft.reshape(d_response, [layer.outputs, layer.length, -1], f"d_signal_c{i}")
    columns = _columns(draft, source, layer, (layer.outputs, (after, before)), f"d_columns_c{i}")
    backwards = (draft.integers([n]) for n in (-1, -kernel - 1, 2, -1))  # starts, ends, axes, steps
    flipped = draft.node("Slice", (f"conv{i}.weight", *backwards), f"flipped_c{i}")
    turned = draft.node("Transpose", (flipped,), f"turned_c{i}", perm=[1, 0, 2])
    matrix = draft.reshape(turned, [layer.inputs, layer.outputs * kernel], f"back_matrix_c{i}")
    draft.node("MatMul", (matrix, columns), f"d_active_c{i - 1}")


def _d_active(layer: _Layer) -> str:
    return f"d_active_c{layer.number}"

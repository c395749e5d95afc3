"""From the spooled updates of a round to the weights of a candidate, block by block in device order.

Memory is a few blocks whatever the model's size and the number of updates. The output has the same
bits whatever the order in which updates arrived or are given.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl.aggregation.reduce import weighted_mean
from fedctl.core.durable import PartFile
from fedctl.core.errors import ConfigError, NotMetError, unreadable
from fedctl_wire.errors import WireError
from fedctl_wire.manifest import Manifest
from fedctl_wire.tensors import TensorInfo, header_bytes, read_file_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK_VALUES = 16 * 1024  # at most, of one update: 50 of them nearly fit in a core's cache
_BUFFERS = 2  # one is read while the other is reduced
_BUFFER_BYTES = 16 * 1024 * 1024  # at most, of all updates and both buffers together
_OPEN_FILES = 128  # more updates than that are opened for each block: the usual limit is 1024, or 256
_ITEM = 4  # bytes of a float32


@dataclass(frozen=True, slots=True)
class Update:
    """A client update that is complete on disk, checked when it was received."""

    device: str
    path: Path
    weight: float  # its examples, capped by the plan; positive


@dataclass(frozen=True, slots=True)
class _Span:
    """Consecutive weights that are consecutive in the updates too, or in none of them. In values."""

    weights: int  # offset in the weights' data
    update: int | None  # offset in the updates' data; None: the base's values stay
    size: int


def aggregate(base: Path, updates: Sequence[Update], out: Path, manifest: Manifest) -> None:
    """Write `base` plus the weighted mean of the updates as a new weights file.

    Tensors that are not trainable, or local, are those of `base`. `out` is durable on return; before
    that it does not exist.

    Args:
        base: `weights.safetensors` of the version the updates start from.
        updates: At least one; their order means nothing, device names are distinct.
        out: The candidate's `weights.safetensors`.
        manifest: Of the base; the candidate has the same tensors.

    Raises:
        NotMetError: `non_finite`, when the candidate would hold a NaN or infinity.
        ConfigError: When a file is missing, damaged or not of this model, or the disk fails.
    """
    import numpy as np

    ordered = sorted(updates, key=lambda update: update.device)
    weights = np.array([update.weight for update in ordered], dtype=np.float64)
    if len({u.device for u in ordered}) != len(ordered) or not len(weights) or not weights.min() > 0:
        raise ValueError("aggregation needs updates of distinct devices with positive weights")
    with ExitStack() as stack:
        part = stack.enter_context(PartFile(out))
        source = _Source(base, ordered, manifest, stack)
        part.write(header_bytes(manifest.weights_layout()))
        for block in stack.enter_context(closing(source.blocks())):
            if block.updates is not None:
                block.base[:] = _moved(block.base, weighted_mean(block.updates, weights), manifest)
            part.write(block.base.data)
        part.commit()


def _moved(old: NDArray[np.float32], step: NDArray[np.float64], manifest: Manifest) -> NDArray[np.float32]:
    import numpy as np

    step += old
    with np.errstate(over="ignore"):
        new = step.astype("<f4")
    if not np.isfinite(new).all():
        raise NotMetError(
            f"the mean of the updates of {manifest.model}@{manifest.model_version} is not finite",
            hint="look for a diverging device, or train with a lower --lr",
            subject=manifest.model,
            code="non_finite",
        )
    return new


@dataclass(frozen=True, slots=True)
class _Block:
    """The same consecutive values of the base (k,) and of every update (n, k); None where they stay."""

    base: NDArray[np.float32]
    updates: NDArray[np.float32] | None


class _Source:
    """Reads the base and the updates block by block, one block ahead of whoever reduces them."""

    def __init__(self, base: Path, updates: Sequence[Update], manifest: Manifest, stack: ExitStack) -> None:
        self._base = _DataFile(base, manifest.weights_layout())
        self._updates = [_DataFile(update.path, manifest.update_layout()) for update in updates]
        self._spans = _spans(manifest)
        for file in [self._base, *self._updates][:_OPEN_FILES]:
            file.keep_open(stack)

    def blocks(self) -> Generator[_Block, None, None]:
        """Every block in the order of the file; it is overwritten when the next one is asked for."""
        import numpy as np

        count = len(self._updates)
        size = max(1, min(_BLOCK_VALUES, _BUFFER_BYTES // (_BUFFERS * _ITEM * (count + 1))))  # values
        buffers = itertools.cycle([np.empty((count + 1, size), dtype="<f4") for _ in range(_BUFFERS)])
        # Reading is half of the work and needs no interpreter lock, so it goes on during the reduction.
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead: Future[_Block] | None = None
            for span in _pieces(self._spans, size):
                current, ahead = ahead, reader.submit(self._read, span, next(buffers))
                if current is not None:
                    yield current.result()
            if ahead is not None:
                yield ahead.result()

    def _read(self, span: _Span, buffer: NDArray[np.float32]) -> _Block:
        base, updates = buffer[0, : span.size], buffer[1:, : span.size]
        self._base.read(span.weights, base)
        if span.update is None:
            return _Block(base, None)
        for row, file in zip(updates, self._updates, strict=True):
            file.read(span.update, row)
        return _Block(base, updates)


class _DataFile:
    """The data of a tensor file whose header is as it must be."""

    def __init__(self, path: Path, layout: tuple[TensorInfo, ...]) -> None:
        self._path = path
        self._descriptor: int | None = None
        try:
            header = read_file_header(path)
        except OSError as error:
            raise unreadable(path, error) from error
        except WireError as error:
            raise self._damaged(str(error)) from error
        if header.tensors != layout:
            raise self._damaged("its tensors are not those of the model")
        self._start = header.data_start

    def keep_open(self, stack: ExitStack) -> None:
        """Open the file until the stack ends, instead of for each block."""
        self._descriptor = stack.enter_context(self._opened())

    def read(self, offset: int, into: NDArray[np.float32]) -> None:
        """Fill `into` with the values from `offset` (in values) on."""
        position = self._start + offset * _ITEM
        try:
            if self._descriptor is None:
                with self._opened() as descriptor:
                    count = os.preadv(descriptor, (into.data,), position)
            else:
                count = os.preadv(self._descriptor, (into.data,), position)
        except OSError as error:
            raise unreadable(self._path, error) from error
        if count != into.nbytes:
            raise self._damaged("it was cut short")

    @contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise unreadable(self._path, error) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _damaged(self, why: str) -> ConfigError:
        return ConfigError(
            f"{self._path} is damaged: {why}",
            hint="check the disk; fetch the file again or restore it from a backup",
            subject=str(self._path),
        )


def _spans(manifest: Manifest) -> Iterator[_Span]:
    """The weights in file order, neighbours joined where they are neighbours in the updates too."""
    sent = {info.name: info.begin // _ITEM for info in manifest.update_layout()}
    current = _Span(0, None, 0)
    for info in manifest.weights_layout():
        update = sent.get(info.name)
        after = None if current.update is None else current.update + current.size
        if update == after:
            current = _Span(current.weights, current.update, current.size + info.size)
            continue
        yield current
        current = _Span(info.begin // _ITEM, update, info.size)
    yield current


def _pieces(spans: Iterator[_Span], size: int) -> Iterator[_Span]:
    """Cut spans into pieces of at most `size` values; empty ones vanish."""
    for span in spans:
        for start in range(0, span.size, size):
            update = None if span.update is None else span.update + start
            yield _Span(span.weights + start, update, min(size, span.size - start))

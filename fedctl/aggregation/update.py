"""Receiving what a device computed: checked block by block while it comes in, never whole in memory.

Nothing here trusts the sender: sizes are capped before a byte is kept, the header must name exactly
the tensors of the model, and a value that is not finite is found before anything is averaged.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedctl.core.durable import PartFile
from fedctl.core.errors import DeviceError
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.tensors import ITEM_BYTES, TensorHeader, TensorInfo, read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PREFIX_BYTES = 8  # of a safetensors file: the length of its header
_BLOCK_BYTES = 256 * 1024  # 64 Ki float32 values are checked at a time


@dataclass(frozen=True, slots=True)
class ExpectedFile:
    """What a device's signed result promises about the file to come, and what the model demands of it."""

    device: str
    layout: tuple[TensorInfo, ...]  # all of one dtype, F32 or F64
    sha256: str
    total_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)  # further keys in the file are ignored


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """What was learnt about a file that is good and durable."""

    path: Path
    sha256: str
    total_bytes: int
    norm: float  # L2 norm of all values


class UpdateSink:
    """Takes a client update (or the sums of a `stats` task) in blocks and keeps it only when it is good.

    A context manager; give blocks of any size to `write`, then `commit`. After a lost connection go on
    at `received`. What is wrong with the file is a `DeviceError` whose code says what: `truncated`,
    `too_large`, `shape`, `metadata`, `non_finite`, `hash`, or `malformed`.
    """

    def __init__(self, path: Path, expected: ExpectedFile) -> None:
        """Start receiving into `path`, which appears on `commit`.

        Raises:
            DeviceError: `too_large`, when the promised size is more than the model allows.
            ConfigError: When the file cannot be made.
        """
        self._expected = expected
        self._check_promised_size()
        self._path = path
        self._hash = hashlib.sha256()
        self._received = 0
        self._start = bytearray()  # the bytes of the header, until it is complete
        self._values: _ValueCheck | None = None
        self._part = PartFile(path)

    @property
    def received(self) -> int:
        """Bytes taken so far: the offset at which the transfer goes on."""
        return self._received

    def write(self, block: bytes) -> None:
        """Take the next bytes of the file.

        Raises:
            DeviceError: As soon as the bytes show that the file is bad.
            ConfigError: When they cannot be written down.
        """
        if self._received + len(block) > self._expected.total_bytes:
            raise self._bad(f"has more than the {self._expected.total_bytes} bytes promised", "too_large")
        self._received += len(block)
        self._hash.update(block)
        if self._values is None:
            self._start += block
            block = self._take_header()
        self._part.write(block)
        if self._values is not None:
            self._values.feed(block)
            self._refuse_non_finite(self._values)

    def commit(self) -> ReceivedFile:
        """Check the file as a whole and make it durable.

        Raises:
            DeviceError: When bytes are missing, or they are not the ones whose hash was signed.
            ConfigError: When the disk is full or fails.
        """
        expected = self._expected
        if self._values is None or self._received < expected.total_bytes:
            message = f"is truncated: {self._received} of {expected.total_bytes} bytes"
            raise self._bad(message, "truncated")
        self._values.finish()
        self._refuse_non_finite(self._values)
        if self._hash.hexdigest() != expected.sha256:
            raise self._bad("is not the file whose hash the device signed", "hash")
        self._part.commit()
        norm = math.sqrt(self._values.sum_of_squares)
        return ReceivedFile(self._path, expected.sha256, self._received, norm)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._part.discard()

    def _check_promised_size(self) -> None:
        data = self._expected.layout[-1].end
        most = _PREFIX_BYTES + LIMITS.tensor_header_bytes + data
        promised = self._expected.total_bytes
        if promised > most:
            raise self._bad(f"is said to have {promised} bytes; the model allows {most}", "too_large")

    def _take_header(self) -> bytes:
        """Check the header once it is complete; returns what is to be written down now."""
        length = int.from_bytes(self._start[:_PREFIX_BYTES], "little")
        if len(self._start) >= _PREFIX_BYTES and length > LIMITS.tensor_header_bytes:
            raise self._bad(f"has a header of {length} bytes", "too_large")
        end = _PREFIX_BYTES + length
        if len(self._start) < max(end, _PREFIX_BYTES + 1):
            return b""
        what = f"file of {self._expected.device}"
        try:
            header = read_header(io.BytesIO(self._start), total_bytes=self._expected.total_bytes, what=what)
        except WireError as error:
            raise self._bad(f"cannot be read: {error}", error.code) from error
        self._check_layout(header)
        self._check_metadata(header.metadata)
        self._part.write(self._start[:end])
        self._values = _ValueCheck(self._expected.layout)
        return bytes(self._start[end:])

    def _check_layout(self, header: TensorHeader) -> None:
        expected = self._expected.layout
        if header.tensors == expected:
            return
        for found, wanted in zip(header.tensors, expected, strict=False):
            if found != wanted:
                raise self._bad(f"holds {_describe(found)} in place of {_describe(wanted)}", "shape")
        raise self._bad(f"holds {len(header.tensors)} tensors, not {len(expected)}", "shape")

    def _check_metadata(self, metadata: Mapping[str, str]) -> None:
        for key, wanted in self._expected.metadata.items():
            found = metadata.get(key)
            if found != wanted:
                raise self._bad(f"says {key} = {found!r:.80}, expected {wanted!r}", "metadata")

    def _refuse_non_finite(self, values: _ValueCheck) -> None:
        if values.bad_tensor is not None:
            raise self._bad(f"holds a value that is not finite in {values.bad_tensor!r}", "non_finite")

    def _bad(self, what: str, code: str) -> DeviceError:
        return DeviceError(
            f"the result of {self._expected.device} {what}", subject=self._expected.device, code=code
        )


class _ValueCheck:
    """Finiteness and sum of squares of little-endian values that come in pieces of any size.

    They are added in blocks of a fixed size in file order, so that the sum has the same bits however the
    network cut the pieces.
    """

    def __init__(self, layout: Sequence[TensorInfo]) -> None:
        import numpy as np

        self._layout = layout
        self._item = ITEM_BYTES[layout[0].dtype]
        self._block = bytearray(_BLOCK_BYTES)
        self._values: NDArray[np.floating] = np.frombuffer(self._block, dtype=f"<f{self._item}")
        self._squares = np.empty(len(self._values), dtype=np.float64)
        self._filled = 0  # bytes of the block
        self._checked = 0  # bytes of the data before the block
        self.sum_of_squares = 0.0
        self.bad_tensor: str | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the data."""
        rest = memoryview(data)
        while rest:
            count = min(len(rest), _BLOCK_BYTES - self._filled)
            self._block[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == _BLOCK_BYTES:
                self.finish()

    def finish(self) -> None:
        """Check what is in the block; the last one may be part-filled."""
        import numpy as np

        count = self._filled // self._item
        values, squares = self._values[:count], self._squares[:count]
        # Not a dot product: BLAS may split it among threads, and then the bits depend on the machine.
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(values, values, out=squares, dtype=np.float64)
            self.sum_of_squares += float(squares.sum())
        if not math.isfinite(self.sum_of_squares) and self.bad_tensor is None:
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):  # none: float64 values whose squares overflow
                self.bad_tensor = self._tensor_at(self._checked + int(bad[0]) * self._item)
        self._checked += self._filled
        self._filled = 0

    def _tensor_at(self, offset: int) -> str:
        return next(info.name for info in self._layout if info.begin <= offset < info.end)


def _describe(info: TensorInfo) -> str:
    return f"tensor {info.name[:80]!r} {info.dtype}{list(info.shape)}"

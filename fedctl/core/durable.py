"""Files that survive a power cut once the call returned: temporary name, fsync, rename, fsync directory.

A reader sees the old bytes or the new ones, never a part. Every failure of the disk is a `ConfigError`
(10) that names the file.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedctl.core.errors import ConfigError, reason_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NOT_WRITTEN = "disk"  # code of the error when this machine's disk refuses


class PartFile:
    """A file written block by block under a temporary name beside its own, which `commit` gives it.

    A context manager: leaving the block without `commit` removes what was written.
    """

    def __init__(self, path: Path, *, mode: int = 0o644) -> None:
        """Start the file in a directory that exists.

        Raises:
            ConfigError: When the disk refuses.
        """
        self._path = path
        self._mode = mode
        with _named(path):
            descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            self._part = Path(part)
            # Unbuffered: blocks are large, and nothing is left to be written when it is closed.
            self._stream = os.fdopen(descriptor, "wb", buffering=0)

    def write(self, block: ReadableBuffer) -> None:
        """Append a block.

        Raises:
            ConfigError: When the disk is full or fails.
        """
        rest = memoryview(block).cast("B")
        with _named(self._path):
            while rest:  # a signal or a filling disk may cut a write short
                rest = rest[self._stream.write(rest) :]

    def commit(self) -> None:
        """Make the file durable under its name.

        Raises:
            ConfigError: When the disk is full or fails.
        """
        with _named(self._path):
            os.fchmod(self._stream.fileno(), self._mode)
            os.fsync(self._stream.fileno())
            self._part.replace(self._path)
            self._stream.close()
            _sync(self._path.parent)

    def discard(self) -> None:
        """Remove what was written, unless it is committed."""
        if not self._stream.closed:
            self._stream.close()
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `path` durably and at once.

    Raises:
        ConfigError: When the disk refuses, naming the path.
    """
    with PartFile(path, mode=mode) as part:
        part.write(data)
        part.commit()


def make_directory(path: Path, *, mode: int = 0o755) -> None:
    """Create `path` and its parents where they are missing.

    Raises:
        ConfigError: When the disk refuses, naming the path.
    """
    with _named(path):
        path.mkdir(mode=mode, parents=True, exist_ok=True)


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `target`, files synced, when the block ends well.

    A `target` that exists is replaced: the caller knows that nothing refers to it. When the block
    raises, nothing is left.

    Raises:
        ConfigError: When the disk refuses, naming the path.
    """
    with _named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            yield staging
            staging.chmod(0o755)
            for path in sorted(staging.iterdir()):
                _sync(path)
            _sync(staging)
            if target.exists():
                shutil.rmtree(target)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {reason_of(error)}",
            hint="check that the directory is writable and the disk has free space",
            subject=str(path),
            code=_NOT_WRITTEN,
        ) from error

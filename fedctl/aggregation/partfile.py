"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedctl.core.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class PartFile:
    """A file written as `NAME.part`, which takes its name only when it is whole and durable.

    A context manager: leaving the block without `commit` removes the part. Every failure of the disk is
    a `ConfigError` (10) that names the file.
    """

    def __init__(self, path: Path) -> None:
        """Start the part, in place of one that a killed run left."""
        self._path = path
        self._part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: blocks are large, and nothing is left to be written when it is closed.
            self._stream = self._part.open("wb", buffering=0)
        except OSError as error:
            raise unusable(path, error) from error

    def write(self, block: ReadableBuffer) -> None:
        """Append a block.

        Raises:
            ConfigError: When the disk is full or fails.
        """
        rest = memoryview(block).cast("B")
        try:
            while rest:  # a signal or a filling disk may cut a write short
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            raise unusable(self._path, error) from error

    def commit(self) -> None:
        """Make the file durable under its name.

        Raises:
            ConfigError: When the disk is full or fails.
        """
        try:
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._part.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise unusable(self._path, error) from error

    def discard(self) -> None:
        """Remove what was written, unless it is committed."""
        if not self._stream.closed:
            self._stream.close()
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()


def unusable(path: Path, error: OSError) -> ConfigError:
    """The error for a file that the disk does not let us read or write."""
    return ConfigError(
        f"{path} cannot be read or written: {error.strerror or error}",
        hint="check the free space and the permissions there, then run the command again",
        subject=str(path),
    )

"""Files that survive a power cut once the call returned: temporary name, fsync, rename, fsync directory."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedctl.core.errors import ConfigError

_BLOCK_BYTES = 1024 * 1024


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `path` durably and at once: a reader sees the old bytes or the new ones.

    Raises:
        ConfigError: When the disk refuses, naming the path.
    """
    with _named(path):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                os.fchmod(stream.fileno(), mode)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


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
            _sync_directory(staging)
            if target.exists():
                shutil.rmtree(target)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        _sync_directory(target.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Give `target` the bytes of `source`: a hard link on one file system, a copy across two."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    _sync(path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror or error}",
            hint="check that the directory is writable and the disk has room",
            subject=str(path),
        ) from error

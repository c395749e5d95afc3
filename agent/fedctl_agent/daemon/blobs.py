"""Resumable uploads, named by their SHA-256 and hashed while they are received.

`blobs/SHA256.part` grows; when it has all its bytes and they hash to its name it is made durable and
renamed to `blobs/SHA256`. An upload that was cut goes on where the file ends. Two uploads of the same
blob at once are one that was cut and does not know it yet: the newer one wins.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.state import PRIVATE_DIRECTORY, PRIVATE_FILE, TEMPORARY_SUFFIX, write_all
from fedctl_wire.limits import LIMITS, MIB

if TYPE_CHECKING:
    from hashlib import _Hash

_ENTRIES = 32  # uploads kept, finished or not, that no bundle has taken yet
_READ_BYTES = MIB
_SETTLE_S = 0.5  # for an upload whose caller has gone, to take in what had already arrived


@dataclass(slots=True)
class _Upload:
    """An unfinished upload: how much is in its file, and the hash of that much."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    owner: object = None
    hashed: int = 0  # bytes
    digest: _Hash = field(default_factory=hashlib.sha256)
    idle: threading.Event = field(default_factory=threading.Event)  # nobody is sending it


class Blobs:
    """The uploads of one agent. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._uploads: dict[str, _Upload] = {}

    def path(self, sha256: str) -> Path:
        """Where the finished blob is, if it is here."""
        return self._directory / sha256

    def offset(self, sha256: str) -> tuple[int, bool]:
        """How many bytes are here, and whether they are all of it.

        Whoever asks goes on from there. Is the blob's last upload still being received, as a rule by a
        connection that was cut, its end is waited for: what is under way would be sent twice.
        """
        upload = self._uploads.get(sha256)
        if upload is not None:
            upload.idle.wait(_SETTLE_S)
        return self._here(sha256)

    def _here(self, sha256: str) -> tuple[int, bool]:
        finished = self.path(sha256)
        if finished.exists():
            return finished.stat().st_size, True
        try:
            return self._partial(sha256).stat().st_size, False
        except FileNotFoundError:
            return 0, False

    def append(self, sha256: str, *, offset: int, total: int, blocks: Iterable[bytes | bytearray]) -> int:
        """Take bytes from `offset` on; return how many are here now.

        Args:
            sha256: The blob's name.
            offset: Where the caller goes on; must be where the file ends.
            total: Bytes of the whole blob.
            blocks: The bytes; may end early or raise, then what came is kept.

        Raises:
            ApiError: 409 `offset`, 413 `too_large`, 422 `hash` (the upload is deleted),
                409 `superseded` when a newer upload of the same blob took over.
            OSError: From the disk; the upload is deleted.
        """
        if total > LIMITS.blob_bytes:
            raise ApiError(413, "too_large", f"a blob may have {LIMITS.blob_bytes} bytes", subject=sha256)
        here, finished = self._here(sha256)
        if offset != here or (finished and total != here):
            raise _wrong_offset(sha256, here)
        if finished:
            return here
        upload, owner = self._begin(sha256)
        try:
            here = self._receive(sha256, upload, owner, offset=offset, total=total, blocks=blocks)
            if here == total:
                self._finish(sha256, upload, owner)
        except OSError as error:
            if not isinstance(error, ConnectionError):
                self.discard([sha256])
            raise
        finally:
            with upload.lock:
                if upload.owner is owner:
                    upload.idle.set()
        return here

    def discard(self, names: Iterable[str]) -> None:
        """Delete uploads, finished or not; those that are not here are none the less gone."""
        try:
            here = {path.name for path in self._directory.iterdir()}  # as a rule nothing, or what is named
        except FileNotFoundError:  # somebody removed it
            here = set()
        for sha256 in names:
            with self._lock:
                self._uploads.pop(sha256, None)
            for path in (self.path(sha256), self._partial(sha256)):
                if path.name in here:
                    path.unlink(missing_ok=True)

    def _partial(self, sha256: str) -> Path:
        return self._directory / (sha256 + TEMPORARY_SUFFIX)

    def _begin(self, sha256: str) -> tuple[_Upload, object]:
        owner = object()
        with self._lock:
            self._directory.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)  # whoever removed it meanwhile
            if sha256 not in self._uploads:
                self._make_room()
            upload = self._uploads.setdefault(sha256, _Upload())
        with upload.lock:
            upload.owner = owner
            upload.idle.clear()
        return upload, owner

    def _make_room(self) -> None:
        """Forget the oldest uploads beyond the cap: what nobody came back for must not fill the disk."""
        entries = sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in entries[: max(0, len(entries) - _ENTRIES + 1)]:
            self._uploads.pop(path.name.removesuffix(TEMPORARY_SUFFIX), None)
            path.unlink(missing_ok=True)

    def _receive(
        self,
        sha256: str,
        upload: _Upload,
        owner: object,
        *,
        offset: int,
        total: int,
        blocks: Iterable[bytes | bytearray],
    ) -> int:
        path = self._partial(sha256)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            with upload.lock:
                _check_owner(upload, owner, sha256)
                if offset != file.seek(0, os.SEEK_END):
                    raise _wrong_offset(sha256, file.tell())
                _catch_up(upload, path, offset)
                if total > offset:
                    _require_space(file.fileno(), total - offset)
            for block in blocks:
                if offset + len(block) > total:
                    raise ApiError(413, "too_large", f"more than the {total} bytes announced", subject=sha256)
                with upload.lock:
                    _check_owner(upload, owner, sha256)
                    write_all(file.fileno(), block)
                    upload.digest.update(block)
                    upload.hashed += len(block)
                offset += len(block)
        return offset

    def _finish(self, sha256: str, upload: _Upload, owner: object) -> None:
        partial = self._partial(sha256)
        with upload.lock:
            _check_owner(upload, owner, sha256)
            if upload.digest.hexdigest() != sha256:
                self.discard([sha256])
                raise ApiError(
                    422,
                    "hash",
                    "the bytes received do not hash to the blob's name",
                    hint="upload it again from the start",
                    subject=sha256,
                )
            descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            # The name need not be durable: a bundle's slot links to the content, and an upload that
            # a power cut shows unfinished again is finished by an empty continuation.
            partial.replace(self.path(sha256))
            with self._lock:
                self._uploads.pop(sha256, None)


def _catch_up(upload: _Upload, path: Path, size: int) -> None:
    """Hash what is in the file already: once after a restart, and after a write that failed."""
    if upload.hashed == size:
        return
    upload.digest, upload.hashed = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            upload.digest.update(block)
            upload.hashed += len(block)


def _check_owner(upload: _Upload, owner: object, sha256: str) -> None:
    if upload.owner is not owner:
        raise ApiError(409, "superseded", "another upload of the same blob goes on", subject=sha256)


def _require_space(descriptor: int, needed: int) -> None:
    """Say at once that the disk is too small, not after an hour of upload."""
    disk = os.fstatvfs(descriptor)
    if disk.f_bavail * disk.f_frsize < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _wrong_offset(sha256: str, here: int) -> ApiError:
    return ApiError(
        409,
        "offset",
        f"the upload goes on at byte {here}",
        subject=sha256,
        headers={"Upload-Offset": str(here)},
    )

"""Sending the files of a bundle: in blocks, from wherever the device says it already is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from fedctl.core.errors import ConfigError, unreadable
from fedctl.transport.answers import Answered, bad_answer, error_of
from fedctl.transport.base import transfer_timeout_s
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import MANIFEST_FILE, Manifest
from fedctl_wire.signing import Envelope

_BLOCK_BYTES = 128 * 1024
_CONFLICT = 409
_MOVES = 3  # how often a device may correct the offset of one blob before it is not believed


class Exchange(Protocol):
    """One call of the agent."""

    def __call__(
        self,
        method: str,
        path: str,
        *,
        body: Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Answered:
        """Send the call and return the whole answer, whatever its status."""


@dataclass(frozen=True, slots=True)
class BlobFile:
    """A local file that becomes a blob."""

    path: Path
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class BundleSource:
    """A bundle's directory, its envelope read but not verified: the device does that."""

    directory: Path
    envelope: Envelope
    manifest: Manifest

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Read `manifest.dsse`.

        Raises:
            ConfigError: When it is missing or no manifest.
        """
        path = directory / MANIFEST_FILE
        try:
            envelope = Envelope.from_bytes(path.read_bytes(), what=MANIFEST_FILE)
            return cls(directory, envelope, Manifest.from_bytes(envelope.payload))
        except (OSError, WireError) as error:
            raise ConfigError(f"bundle {path} cannot be read: {error}", subject=str(path)) from error

    def file_of(self, sha256: str, device: str) -> BlobFile:
        """The file with that hash.

        Raises:
            DeviceError: `bad_answer`: the device asks for what is no part of the bundle.
        """
        for name, file in self.manifest.files.items():
            if file.sha256 == sha256:
                return BlobFile(self.directory / name, sha256, file.bytes)
        raise bad_answer(device, f"it asks for the file {sha256[:16]}, which is not in the bundle")


def send_blob(
    exchange: Exchange,
    device: str,
    file: BlobFile,
    offset: int,
    timeout_s: float,
    on_bytes: Callable[[int], None] | None,
) -> None:
    """Upload the rest of a file, following the device when it says that it is elsewhere.

    Raises:
        ConfigError: The file cannot be read or has not the size the manifest says.
    """
    for _ in range(_MOVES):
        rest = _rest(file, offset, device)
        answer = exchange(
            "PATCH",
            f"/blobs/{file.sha256}?bytes={file.bytes}",
            body=_blocks(file, offset, on_bytes),
            headers={"Upload-Offset": str(offset), "Content-Length": str(rest)},
            timeout_s=transfer_timeout_s(timeout_s, rest),
        )
        if answer.status < 300:  # the device has verified the hash of the whole
            return
        moved = answer.headers.get("upload-offset", "")
        if answer.status != _CONFLICT or not (moved.isascii() and moved.isdigit()):
            raise error_of(answer, device)
        offset = int(moved)
    raise bad_answer(device, f"it corrected the offset of one upload {_MOVES} times")


def _rest(file: BlobFile, offset: int, device: str) -> int:
    if not 0 <= offset <= file.bytes <= LIMITS.blob_bytes:
        raise bad_answer(device, f"it says it has {offset} of the {file.bytes} bytes of {file.path.name}")
    try:
        size = file.path.stat().st_size
    except OSError as error:
        raise unreadable(file.path, error) from error
    if size != file.bytes:
        raise ConfigError(
            f"{file.path} has {size} bytes, its manifest says {file.bytes}", subject=str(file.path)
        )
    return file.bytes - offset


def _blocks(file: BlobFile, offset: int, on_bytes: Callable[[int], None] | None) -> Iterator[bytes]:
    try:
        with file.path.open("rb") as stream:
            stream.seek(offset)
            while block := stream.read(_BLOCK_BYTES):
                yield block
                if on_bytes is not None:
                    on_bytes(len(block))
    except OSError as error:
        raise unreadable(file.path, error) from error

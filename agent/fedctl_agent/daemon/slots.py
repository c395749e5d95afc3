"""Model bundles on the device: two slots a model, one of them active, installed by hard links.

`models/NAME/{A,B}/` hold a bundle's files each, `models/NAME/active` names one of them. A bundle is
put together beside the slots from uploaded blobs and from files that the model's slots already hold,
so that only what changed travels; it then replaces the slot that is not active. What a crash leaves
behind is never a slot and is removed at the next start.

A slot whose files are not what its manifest says is emptied, so that the next push sends them again:
sizes are looked at whenever a bundle is asked for, hashes once when a file is to be shared with another
slot, and all hashes when a job has found damage (`heal`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedctl_agent.daemon.blobs import Blobs
from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.state import (
    PRIVATE_DIRECTORY,
    TEMPORARY_SUFFIX,
    remove_directory,
    sync_directory,
    write_durably,
    write_synced,
)
from fedctl_wire.codec import Json
from fedctl_wire.errors import WireError
from fedctl_wire.limits import KIB
from fedctl_wire.manifest import MANIFEST_FILE, BundleFile, Manifest
from fedctl_wire.messages import MissingBlob, ModelInstalled
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope

_SLOTS = ("A", "B")
_ACTIVE = "active"
_BLOCK_BYTES = 256 * KIB
_CHECKED = 64  # files remembered as having had their hash

_Stamp = tuple[int, int, int]  # of a file: inode, size, time of the last change of its content


@dataclass(frozen=True, slots=True)
class Slot:
    """A bundle in its slot."""

    model: str
    slot: str  # "A" or "B"
    version: int
    bundle: str  # manifest sha256
    files: dict[str, BundleFile]
    path: Path


class Slots:
    """All models of one agent. Thread-safe."""

    def __init__(self, directory: Path, blobs: Blobs) -> None:
        self._directory = directory
        self._blobs = blobs
        self._lock = threading.RLock()
        self._actives: dict[str, str | None] = {}  # the contents of the `active` files, as far as read
        self._checked: dict[str, _Stamp] = {}  # by hash: a file that had it when it looked like this
        self._remove_leftovers()
        self._slots = {(slot.model, slot.slot): slot for slot in self._read_slots()}

    def install(self, envelope: Envelope, *, activate: bool) -> ModelInstalled:
        """Install a verified bundle, or say which blobs are missing for that.

        Installing what is in a slot already changes nothing but, with `activate`, the active slot.

        Raises:
            WireError: When the envelope holds no manifest.
            OSError: From the disk; nothing is left behind.
        """
        manifest = manifest_of(envelope)
        with self._lock:
            self._drop_incomplete(manifest.model)
            slot = self._holding(manifest.model, envelope.sha256)
            if slot is None:
                self._drop_unshareable(manifest)
                missing = tuple(self._missing(manifest))
                if missing:
                    return ModelInstalled(
                        manifest.model, manifest.model_version, envelope.sha256, missing=missing
                    )
                slot = self._build(manifest, envelope)
            self._blobs.discard(file.sha256 for file in manifest.files.values())
            if activate:
                self._set_active(slot)
            return self._describe(slot)

    def activate(self, model: str, version: int) -> ModelInstalled:
        """Make an installed version the active one.

        Raises:
            ApiError: 404 when no slot holds it.
        """
        with self._lock:
            self._drop_incomplete(model)
            slot = self._version(model, version)
            if slot is None:
                raise ApiError(
                    404, "no_model", f"no slot holds {model}@{version}", hint="push it first", subject=model
                )
            self._set_active(slot)
            return self._describe(slot)

    def delete(self, model: str, version: int) -> None:
        """Empty the slot of a version; one that is not installed is none the less gone."""
        with self._lock:
            slot = self._version(model, version)
            if slot is None:
                return
            self._drop(slot)
            if not any(key[0] == model for key in self._slots):
                shutil.rmtree(slot.path.parent, ignore_errors=True)

    def heal(self, model: str) -> list[Slot]:
        """Empty the slots of a model that are damaged, by all their bytes, and return what they held."""
        with self._lock:
            self._checked.clear()
            damaged = [slot for slot in self._of(model) if not self._intact(slot)]
            for slot in damaged:
                self._drop(slot)
            return damaged

    @contextlib.contextmanager
    def holding(self, model: str, bundle: str) -> Iterator[Slot]:
        """The slot that holds a model's bundle, kept as it is while the block runs.

        Raises:
            ApiError: 409 `no_model` when none does.
        """
        with self._lock:
            slot = self._holding(model, bundle)
            if slot is None:
                raise ApiError(
                    409,
                    "no_model",
                    f"no slot holds the bundle {bundle[:12]} of {model}",
                    hint="push it first",
                    subject=bundle,
                )
            yield slot

    def listing(self) -> list[Json]:
        """Every slot, for `/status`."""
        with self._lock:
            return [
                {
                    "model": slot.model,
                    "slot": slot.slot,
                    "version": slot.version,
                    "bundle": slot.bundle,
                    "active": self._active(slot.model) == slot.slot,
                }
                for _, slot in sorted(self._slots.items())
            ]

    # ------------------------------------------------------------------ damage

    def _of(self, model: str) -> list[Slot]:
        return [slot for slot in self._slots.values() if slot.model == model]

    def _drop_incomplete(self, model: str) -> None:
        """Empty the slots of a model whose files are not all there in their size: cheap, so always."""
        for slot in self._of(model):
            if any(_stamp(f"{slot.path}/{name}", file) is None for name, file in slot.files.items()):
                self._drop(slot)

    def _drop_unshareable(self, manifest: Manifest) -> None:
        """Empty the slots that hold a damaged file of this bundle: links would spread the damage."""
        wanted = {file.sha256 for file in manifest.files.values()}
        for slot in self._of(manifest.model):
            shared = {name: file for name, file in slot.files.items() if file.sha256 in wanted}
            if not all(self._has_its_hash(f"{slot.path}/{name}", file) for name, file in shared.items()):
                self._drop(slot)

    def _intact(self, slot: Slot) -> bool:
        try:
            held = Envelope.from_bytes((slot.path / MANIFEST_FILE).read_bytes()).sha256
        except (OSError, WireError):
            return False
        return held == slot.bundle and all(
            self._has_its_hash(f"{slot.path}/{name}", file) for name, file in slot.files.items()
        )

    def _has_its_hash(self, path: str, file: BundleFile) -> bool:
        """Whether a file is what a manifest says; read only when it changed since it last was."""
        stamp = _stamp(path, file)
        if stamp is None:
            return False
        if self._checked.get(file.sha256) != stamp:
            try:
                found = _digest(path)
            except OSError:
                return False
            if found != file.sha256:
                return False
            self._remember(file.sha256, stamp)
        return True

    def _remember(self, sha256: str, stamp: _Stamp) -> None:
        self._checked.pop(sha256, None)
        while len(self._checked) >= _CHECKED:
            del self._checked[next(iter(self._checked))]
        self._checked[sha256] = stamp

    def _drop(self, slot: Slot) -> None:
        """Empty a slot; an active one is none any more."""
        if self._active(slot.model) == slot.slot:
            slot.path.with_name(_ACTIVE).unlink(missing_ok=True)
            self._actives.pop(slot.model, None)
        self._clear(slot.path)
        with contextlib.suppress(FileNotFoundError):  # somebody removed the whole model
            sync_directory(slot.path.parent)

    # ------------------------------------------------------------------ reading

    def _read_slots(self) -> Iterator[Slot]:
        for directory in sorted(self._directory.iterdir()):
            for name in _SLOTS:
                with contextlib.suppress(FileNotFoundError, WireError):
                    data = (directory / name / MANIFEST_FILE).read_bytes()
                    yield _slot_of(Envelope.from_bytes(data), directory / name)

    def _holding(self, model: str, bundle: str) -> Slot | None:
        return next((s for s in self._slots.values() if s.model == model and s.bundle == bundle), None)

    def _version(self, model: str, version: int) -> Slot | None:
        """The slot of a version; of two with different bytes the one installed last, never the active one."""
        found = [s for s in self._slots.values() if s.model == model and s.version == version]
        found.sort(key=lambda slot: self._active(model) == slot.slot)
        return found[0] if found else None

    def _active(self, model: str) -> str | None:
        if model not in self._actives:
            try:
                self._actives[model] = (self._directory / model / _ACTIVE).read_text().strip()
            except FileNotFoundError:
                self._actives[model] = None
        return self._actives[model]

    def _missing(self, manifest: Manifest) -> Iterator[MissingBlob]:
        for file in manifest.files.values():
            if self._in_slots(manifest.model, file.sha256) is None:
                offset, finished = self._blobs.offset(file.sha256)
                if not finished:
                    yield MissingBlob(file.sha256, file.bytes, offset)

    def _in_slots(self, model: str, sha256: str) -> Path | None:
        for slot in self._slots.values():
            for name, file in slot.files.items():
                if slot.model == model and file.sha256 == sha256:
                    return slot.path / name
        return None

    def _describe(self, slot: Slot) -> ModelInstalled:
        active = self._active(slot.model) == slot.slot
        return ModelInstalled(slot.model, slot.version, slot.bundle, slot.slot, active)

    # ------------------------------------------------------------------ writing

    def _build(self, manifest: Manifest, envelope: Envelope) -> Slot:
        home = self._directory / manifest.model
        new = not home.exists()
        if new:
            self._directory.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
            home.mkdir(mode=PRIVATE_DIRECTORY)
            self._actives.pop(manifest.model, None)
        target = home / self._free_slot(manifest)
        staging = f"{target}{TEMPORARY_SUFFIX}"
        os.mkdir(staging, PRIVATE_DIRECTORY)
        try:
            for name, file in manifest.files.items():
                held = self._in_slots(manifest.model, file.sha256)
                os.link(held or self._blobs.path(file.sha256), f"{staging}/{name}")
                if held is None and (stamp := _stamp(f"{staging}/{name}", file)):  # hashed as it came
                    self._remember(file.sha256, stamp)
            write_synced(f"{staging}/{MANIFEST_FILE}", envelope.to_bytes())
            sync_directory(staging)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        self._clear(target)
        os.rename(staging, target)
        sync_directory(home)
        if new:
            sync_directory(self._directory)
        slot = _slot_of(envelope, target)
        self._slots[slot.model, slot.slot] = slot
        return slot

    def _free_slot(self, manifest: Manifest) -> str:
        """The slot to replace: never the active one; an empty one first, then the older version."""
        active = self._active(manifest.model)

        def preference(name: str) -> tuple[bool, int]:
            held = self._slots.get((manifest.model, name))
            return name == active, held.version if held else 0

        return min(_SLOTS, key=preference)

    def _set_active(self, slot: Slot) -> None:
        if self._active(slot.model) == slot.slot:
            return
        path = slot.path.with_name(_ACTIVE)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            write_durably(path, slot.slot.encode())
        else:
            try:
                os.write(descriptor, slot.slot.encode())  # one letter in place: the old one or the new
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._actives[slot.model] = slot.slot

    def _clear(self, path: Path) -> None:
        """Empty a slot at one stroke: after a crash it is there or it is not. It may be unreadable."""
        self._slots.pop((path.parent.name, path.name), None)
        doomed = path.with_name(f"{path.name}.old{TEMPORARY_SUFFIX}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(doomed)
            remove_directory(str(doomed))

    def _remove_leftovers(self) -> None:
        for leftover in self._directory.glob(f"*/*{TEMPORARY_SUFFIX}"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def link_bundle(slot: Slot, target: str) -> None:
    """Put hard links of a slot's files into the directory `target`, whose caller syncs it."""
    for name in (MANIFEST_FILE, *slot.files):
        os.link(f"{slot.path}/{name}", f"{target}/{name}")


def _stamp(path: str, file: BundleFile) -> _Stamp | None:
    """What tells this content of a file from another one; None when it is not even of the right size."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_size != file.bytes:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _digest(path: str) -> str:
    with open(path, "rb", buffering=0) as stream:
        digest, block = hashlib.sha256(), bytearray(_BLOCK_BYTES)
        view = memoryview(block)
        while count := stream.readinto(block):
            digest.update(view[:count])
    return digest.hexdigest()


def manifest_of(envelope: Envelope) -> Manifest:
    """The manifest in a bundle's envelope; a push asks for the same one a few times in a row.

    Raises:
        WireError: When there is none.
    """
    return _manifest(envelope.payload)


@functools.lru_cache(maxsize=1)
def _manifest(payload: bytes) -> Manifest:
    return Manifest.from_bytes(payload)


def _slot_of(envelope: Envelope, path: Path) -> Slot:
    manifest = manifest_of(envelope)
    return Slot(
        Name(path.parent.name), path.name, manifest.model_version, envelope.sha256, manifest.files, path
    )

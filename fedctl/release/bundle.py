"""Model bundles on the workstation's disk: written durably, deterministic, signed by the operator.

A bundle directory holds `manifest.dsse` and the files it lists. The same model, weights and key give
the same bytes. Nothing here builds or evaluates a model.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fedctl.core.durable import staged_directory
from fedctl.core.errors import ConfigError, TrustError, unreadable
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import (
    BUNDLE_FILES,
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    BundleFile,
    Manifest,
    Preprocessing,
    TensorSpec,
)
from fedctl_wire.messages import TrainSettings
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope, PayloadType, sign, verify
from fedctl_wire.tensors import header_bytes, layout, read_file_header

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from numpy.typing import NDArray

_BLOCK_BYTES = 1024 * 1024
_DTYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "U8": "|u1"}


class Built(Protocol):
    """What a builder hands over: `fedctl.models.BuiltModel` is one."""

    @property
    def graph(self) -> bytes:
        """Bytes of `train.json`."""

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The parameters, in file order."""

    @property
    def weights(self) -> Mapping[str, NDArray[Any]]:
        """Initial float32 parameters by name."""

    @property
    def golden(self) -> Mapping[str, NDArray[Any]]:
        """The golden batch: own weights, inputs and expected outputs, by tensor name."""

    @property
    def operators(self) -> tuple[str, ...]:
        """ONNX operators that the graph uses."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a new model is, apart from what its builder made."""

    model: Name
    version: int
    builder: str
    input_shape: tuple[int, ...]  # one example's, without batch
    classes: int
    defaults: TrainSettings
    scale: Literal["standard", "none"] = "standard"
    columns: tuple[str, ...] = ()  # see Manifest


@dataclass(frozen=True, slots=True)
class Bundle:
    """One model version on disk."""

    directory: Path
    manifest: Manifest
    envelope: Envelope  # manifest.dsse

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the manifest bytes: the version's name on the wire."""
        return self.envelope.sha256

    @property
    def weights(self) -> Path:
        """The file with the parameters."""
        return self.directory / WEIGHTS_FILE


def write_bundle(
    directory: Path, description: Description, built: Built, operator_key: Ed25519PrivateKey
) -> Bundle:
    """Write a model's first version into `directory`, replacing an unfinished one.

    Raises:
        ConfigError: When the disk refuses, or the builder's parts do not fit together.
    """
    order = [spec.name for spec in built.tensors]
    if set(order) != set(built.weights):
        raise ConfigError(f"the builder {description.builder!r} made weights that its tensors do not list")
    with staged_directory(directory) as staging:
        _write_tensors(staging / WEIGHTS_FILE, {name: built.weights[name] for name in order})
        (staging / GRAPH_FILE).write_bytes(built.graph)
        _write_tensors(staging / GOLDEN_FILE, dict(sorted(built.golden.items())))
        manifest = Manifest(
            model=description.model,
            model_version=description.version,
            builder=description.builder,
            input_shape=description.input_shape,
            classes=description.classes,
            tensors=built.tensors,
            files=_measure(staging),
            operators=tuple(sorted(built.operators)),
            defaults=description.defaults,
            scale=description.scale,
            columns=description.columns,
        )
        envelope = _finish(staging, manifest, operator_key)
    return Bundle(directory, manifest, envelope)


def next_version(
    parent: Bundle,
    directory: Path,
    *,
    version: int,
    weights: Path | None = None,
    preprocessing: Preprocessing | None = None,
    operator_key: Ed25519PrivateKey,
) -> Bundle:
    """Write the version that follows `parent`: new weights, new scaling, or both.

    Graph and golden batch are the parent's, hard-linked. What is not given is inherited.

    Args:
        parent: The version it comes from, which the new manifest names.
        directory: Where it goes; an unfinished one is replaced.
        version: The new number; more than the parent's.
        weights: A safetensors file with the parent's tensors.
        preprocessing: The scaling to fill in.
        operator_key: Signs the manifest.

    Raises:
        ConfigError: When the disk refuses.
        TrustError: When `weights` has other tensors than the parent.
    """
    with staged_directory(directory) as staging:
        _link_or_copy(parent.directory / GRAPH_FILE, staging / GRAPH_FILE)
        _link_or_copy(parent.directory / GOLDEN_FILE, staging / GOLDEN_FILE)
        _link_or_copy(weights or parent.weights, staging / WEIGHTS_FILE)
        manifest = replace(
            parent.manifest,
            model_version=version,
            files=_measure(staging),
            parent=parent.sha256,
            preprocessing=preprocessing or parent.manifest.preprocessing,
        )
        envelope = _finish(staging, manifest, operator_key)
    return Bundle(directory, manifest, envelope)


def read_bundle(directory: Path, operator_key: str, *, check_files: bool = True) -> Bundle:
    """Read a bundle and hold it against its signature and hashes.

    Args:
        directory: The bundle's directory.
        operator_key: The operator's public key, hex.
        check_files: Whether to hash the files too; without it only their sizes are compared.

    Raises:
        ConfigError: When a file is missing or unreadable.
        TrustError: When the signature or a hash differs.
    """
    try:
        envelope = Envelope.from_bytes(_read_manifest(directory), what=f"{directory / MANIFEST_FILE}")
        payload = verify(envelope, PayloadType.BUNDLE, [operator_key], what=f"bundle {directory}")
        manifest = Manifest.from_bytes(payload)
    except WireError as error:
        raise TrustError(str(error), subject=str(directory), code=error.code) from error
    for name in BUNDLE_FILES:
        _check_file(directory / name, manifest.files[name], hashed=check_files)
    return Bundle(directory, manifest, envelope)


def _finish(staging: Path, manifest: Manifest, operator_key: Ed25519PrivateKey) -> Envelope:
    try:
        manifest.check()
        header = read_file_header(staging / WEIGHTS_FILE)
        manifest.check_header(header, manifest.weights_layout(), what=WEIGHTS_FILE)
    except WireError as error:
        raise TrustError(
            f"{manifest.model}@{manifest.model_version}: {error}",
            subject=str(manifest.model),
            code=error.code,
        ) from error
    envelope = sign(manifest.to_bytes(), PayloadType.BUNDLE, operator_key)
    (staging / MANIFEST_FILE).write_bytes(envelope.to_bytes())
    return envelope


def _measure(directory: Path) -> dict[str, BundleFile]:
    return {
        name: BundleFile(_sha256_of(directory / name), (directory / name).stat().st_size)
        for name in BUNDLE_FILES
    }


def _read_manifest(directory: Path) -> bytes:
    path = directory / MANIFEST_FILE
    try:
        with path.open("rb") as stream:
            return stream.read(LIMITS.json_body_bytes + 1)
    except OSError as error:
        raise unreadable(path, error) from error


def _check_file(path: Path, expected: BundleFile, *, hashed: bool) -> None:
    try:
        size = path.stat().st_size
        found = _sha256_of(path) if hashed else expected.sha256
    except OSError as error:
        raise unreadable(path, error) from error
    if size != expected.bytes or found != expected.sha256:
        raise TrustError(f"{path} is not the file that its manifest lists", subject=str(path), code="hash")


def _link_or_copy(source: Path, target: Path) -> None:
    """Give `target` the bytes of `source`: a hard link on one file system, a copy across two."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    import numpy as np

    kinds = {np.dtype(text).newbyteorder("="): name for name, text in _DTYPES.items()}
    specs = [(name, kinds[array.dtype], array.shape) for name, array in tensors.items()]
    with path.open("wb") as stream:
        stream.write(header_bytes(layout(specs)))
        for (_, kind, _), array in zip(specs, tensors.values(), strict=True):
            stream.write(np.ascontiguousarray(array, dtype=_DTYPES[kind]).tobytes())

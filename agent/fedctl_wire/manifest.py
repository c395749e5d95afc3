"""The manifest of a model bundle: one version's files, tensors and rules, signed by the operator.

A bundle is a directory: `manifest.dsse` (the signed envelope; its payload is the manifest),
`weights.safetensors`, `train.json`, `golden.safetensors`. Its name is the SHA-256 of the manifest
bytes. It is data, never code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedctl_wire.codec import decode, encode
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import TrainSettings
from fedctl_wire.names import Name, check_sha256
from fedctl_wire.tensors import METADATA, TensorHeader, TensorInfo, layout

MANIFEST_FILE = "manifest.dsse"
WEIGHTS_FILE = "weights.safetensors"
GRAPH_FILE = "train.json"
GOLDEN_FILE = "golden.safetensors"
CLASS_WEIGHTS = "class_weights"  # a tensor (classes,) of the loss's weights: local, set by the plan
BUNDLE_FILES = (WEIGHTS_FILE, GRAPH_FILE, GOLDEN_FILE)


@dataclass(frozen=True, slots=True)
class BundleFile:
    """Size and hash of one file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One float32 parameter of the model, in the order in which files hold them."""

    name: str
    shape: tuple[int, ...]
    trainable: bool = True
    local: bool = False  # never leaves the device


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Scaling applied on the device: `clip((x - mean) / std, -clip, clip)`, per feature.

    A feature is an entry of a flat example, or a channel of a window (channels, length).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    clip: float = 8.0


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far a device's golden run may be from the workstation's, relative."""

    loss: float = 1e-3
    gradients: float = 1e-4


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of a model. Only `float32` parameters; `input_shape` is one example's, without batch."""

    model: Name
    model_version: int
    builder: str  # what made the graph, e.g. "mlp"
    input_shape: tuple[int, ...]
    classes: int
    tensors: tuple[TensorSpec, ...]
    files: dict[str, BundleFile]  # keys: BUNDLE_FILES
    operators: tuple[str, ...]  # that the graph uses, sorted
    defaults: TrainSettings
    parent: str | None = None  # manifest sha256 of the version this one came from
    scale: Literal["standard", "none"] = "standard"
    preprocessing: Preprocessing | None = None  # None: not scaled, or not yet
    loss: str = "cross-entropy"
    tolerances: Tolerances = Tolerances()
    columns: tuple[str, ...] = ()  # of the device's data, in the model's order; (): any so many
    version: int = 1

    @property
    def parameters(self) -> int:
        """Number of float32 parameters."""
        return sum(math.prod(spec.shape) for spec in self.tensors)

    @property
    def features(self) -> int:
        """How many values each have a scaling of their own: see `Preprocessing`."""
        return self.input_shape[0]

    @property
    def needs_scaling(self) -> bool:
        """Whether the `stats` task must fill in the scaling before the model can train."""
        return self.scale == "standard" and self.preprocessing is None

    @property
    def takes_class_weights(self) -> bool:
        """Whether the loss takes a weight for each class, which a plan may set."""
        return TensorSpec(CLASS_WEIGHTS, (self.classes,), trainable=False, local=True) in self.tensors

    def update_layout(self) -> tuple[TensorInfo, ...]:
        """The tensors of a client update: trainable, not local, float32, in manifest order."""
        return layout([(s.name, "F32", s.shape) for s in self.tensors if s.trainable and not s.local])

    def weights_layout(self) -> tuple[TensorInfo, ...]:
        """The tensors of `weights.safetensors`, in manifest order."""
        return layout([(s.name, "F32", s.shape) for s in self.tensors])

    def check_header(self, header: TensorHeader, expected: tuple[TensorInfo, ...], *, what: str) -> None:
        """Refuse a tensor file whose names, dtypes, shapes or order differ from `expected`.

        Raises:
            WireError: With code `shape`, naming the first tensor that differs.
        """
        if header.tensors == expected:
            return
        for found, wanted in zip(header.tensors, expected, strict=False):
            if found != wanted:
                raise WireError(
                    f"{what}: found tensor {found.name!r} {found.dtype}{list(found.shape)}, "
                    f"expected {wanted.name!r} {wanted.dtype}{list(wanted.shape)}",
                    code="shape",
                    subject=found.name,
                )
        raise WireError(
            f"{what} has {len(header.tensors)} tensors, expected {len(expected)}", code="shape", subject=what
        )

    def to_bytes(self) -> bytes:
        """The canonical bytes that are hashed and signed."""
        return encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read and check a manifest.

        Raises:
            WireError: When a field is missing, unknown, out of range or inconsistent with another.
        """
        manifest = decode(cls, data, limit=LIMITS.json_body_bytes, what="manifest")
        manifest.check()
        return manifest

    def check(self) -> None:
        """Refuse what no builder makes.

        Raises:
            WireError: Naming the field that is out of range or inconsistent with another.
        """
        if self.version != 1:
            raise WireError(f"manifest has version {self.version}; this side reads 1", subject="version")
        if set(self.files) != set(BUNDLE_FILES):
            raise WireError(f"manifest lists the files {sorted(self.files)}", subject="files")
        for name, file in self.files.items():
            check_sha256(file.sha256, what=f"hash of {name}")
            if not 0 <= file.bytes <= LIMITS.blob_bytes:
                raise WireError(f"{name} is said to have {file.bytes} bytes", code="too_large", subject=name)
        if self.model_version < 1 or self.classes < 2 or not self.tensors or not self.input_shape:
            raise WireError("manifest describes no usable model", subject=str(self.model))
        self._check_tensors()
        self._check_preprocessing()
        check_columns(self.columns, self.features)

    def _check_tensors(self) -> None:
        shapes = (self.input_shape, *(spec.shape for spec in self.tensors))
        if any(n < 1 for shape in shapes for n in shape) or any(len(s) > LIMITS.tensor_rank for s in shapes):
            raise WireError("manifest has an impossible shape", code="too_large", subject=str(self.model))
        largest = max(self.parameters, math.prod(self.input_shape))
        if largest > LIMITS.parameters or len(self.tensors) > LIMITS.tensors:
            raise WireError("manifest has too many parameters", code="too_large", subject=str(self.model))
        names = {spec.name for spec in self.tensors}
        if len(names) != len(self.tensors) or names & {METADATA, ""}:
            raise WireError("manifest names a tensor twice, or by a reserved name", subject="tensors")

    def _check_preprocessing(self) -> None:
        scaling = self.preprocessing
        if scaling is None:
            return
        features = self.features
        if len(scaling.mean) != features or len(scaling.std) != features:
            raise WireError(f"scaling does not have {features} features", subject="preprocessing")
        if min(scaling.std) <= 0 or scaling.clip <= 0:
            raise WireError(
                "scaling has a standard deviation or clip that is not positive", subject="preprocessing"
            )


def check_columns(columns: tuple[str, ...], features: int) -> None:
    """Refuse names that do not say, each once, where a model's features come from; no names are fine.

    Raises:
        WireError: With the subject `columns`.
    """
    if not columns:
        return
    if len(columns) != features:
        raise _bad_columns(f"{len(columns)} columns are named for {features} features")
    if len(columns) > LIMITS.columns:
        raise _bad_columns(f"{len(columns)} columns are named, more than {LIMITS.columns}")
    seen: set[str] = set()
    for name in columns:
        if not name or "\0" in name or len(name.encode()) > LIMITS.column_bytes:
            most = LIMITS.column_bytes
            raise _bad_columns(f"the name of a column is empty, has a zero byte, or more than {most} bytes")
        if name in seen:
            raise _bad_columns(f"the column {name!r} is named twice")
        seen.add(name)


def _bad_columns(message: str) -> WireError:
    return WireError(message, subject="columns")

"""Models: create, list, show, push to devices, export.

A version's bundle is a directory below the home; the database has a row for it once the files are
durable. What is read back is held against the operator's signature and the manifest's hashes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedctl.core.clock import SYSTEM_CLOCK, rfc3339
from fedctl.core.durable import PartFile
from fedctl.core.errors import ConfigError, FedctlError, LockedError, NotFoundError, UsageError
from fedctl.core.home import Home
from fedctl.core.model_records import Deployment, ModelVersion, VersionState
from fedctl.core.progress import DeviceProgress, Observer, silent
from fedctl.core.records import Device
from fedctl.core.selector import without_maintenance
from fedctl.core.training import TrainWishes, asks_for_weights, check_training, train_settings
from fedctl.models import Convolutions
from fedctl.ops.fleet import actor
from fedctl.store import ReadStore, Store
from fedctl.store.lock import hold_lock
from fedctl_wire.errors import WireError
from fedctl_wire.manifest import Manifest, check_columns
from fedctl_wire.messages import ModelInstalled, TrainSettings
from fedctl_wire.names import Name
from fedctl_wire.tensors import header_bytes, layout, read_file_header

if TYPE_CHECKING:
    from fedctl.ops.session import FleetSession
    from fedctl.release.bundle import Bundle

# What the plan of a round takes where nobody says otherwise.
_DEFAULTS = TrainSettings(lr=0.05, momentum=0.0, local_epochs=2, batch_size=32)
_NO_WISHES = TrainWishes()
_BLOCK_BYTES = 1024 * 1024
_DIGITS = 18  # of a number that SQLite can look for


@dataclass(frozen=True, slots=True, kw_only=True)
class NewModel:
    """What `create` is asked for."""

    name: str
    builder: str
    input_shape: tuple[int, ...]  # one example's
    columns: tuple[str, ...] = ()  # of the devices' data, in the model's order; (): any so many
    classes: int
    hidden: tuple[int, ...] = ()
    window: Convolutions | None = None
    scale: Literal["standard", "none"] = "standard"
    seed: int = 0
    settings: TrainSettings = _DEFAULTS
    training: TrainWishes = _NO_WISHES  # what differs from `settings`


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDetail:
    """One version with its manifest, the other versions of its model and where it is deployed."""

    version: ModelVersion
    published_version: int | None
    manifest: Manifest
    directory: Path
    versions: tuple[ModelVersion, ...]
    deployments: tuple[Deployment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOutcome:
    """What became of one device in a push."""

    device: str
    installed: ModelInstalled | None = None
    bytes_down: int = 0  # sent to the device
    error: FedctlError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """A version and every device's outcome, by name."""

    model: str
    version: int
    sha256: str
    outcomes: tuple[PushOutcome, ...]
    left_out: tuple[str, ...] = ()  # in maintenance


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """The file that `export` wrote."""

    model: str
    version: int
    path: Path
    bytes: int
    scaled: bool  # whether it holds the scaling


def create(store: Store, home: Home, wanted: NewModel) -> ModelDetail:
    """Build a model, sign its first version and keep it as a draft.

    Raises:
        UsageError: The name is taken or not allowed, or the numbers make no model.
        LockedError: Another command makes a model of that name.
        ConfigError: The disk refuses, or the operator key is missing.
    """
    from fedctl import models
    from fedctl.release.bundle import Description, write_bundle
    from fedctl.release.keys import load_operator

    name = Name(wanted.name, what="model name")
    _check_columns(wanted)
    check_training(wanted.training)
    weighted = asks_for_weights(wanted.training)
    settings = train_settings(wanted.settings, wanted.training, classes=wanted.classes, weighted=weighted)
    _check_free(store, name)
    key = load_operator(home, expected=store.fleet().operator_key)
    built = models.build(
        wanted.builder,
        input_shape=wanted.input_shape,
        hidden=wanted.hidden,
        window=wanted.window,
        classes=wanted.classes,
        weighted=weighted,
        seed=wanted.seed,
    )
    description = Description(
        model=name,
        version=1,
        builder=wanted.builder,
        input_shape=wanted.input_shape,
        classes=wanted.classes,
        defaults=settings,
        scale=wanted.scale,
        columns=wanted.columns,
    )
    with _alone(home, name):
        _check_free(store, name)  # before its files, if it was made meanwhile, are replaced
        bundle = write_bundle(home.bundle(name, 1), description, built, key)
        with store.transaction():
            store.add_model(name)
            store.add_version(version_row(bundle, VersionState.DRAFT))
            detail = {"sha256": bundle.sha256}
            store.add_event(actor=actor(), verb="model.create", subject=f"{name}@1", detail=detail)
    return show(store, home, f"{name}@1")


def _check_columns(wanted: NewModel) -> None:
    try:
        check_columns(wanted.columns, next(iter(wanted.input_shape), 0))
    except WireError as error:
        hint = "name each feature's column once, in any order: it becomes the model's"
        raise UsageError(str(error), hint=hint, subject="--columns") from error


@contextmanager
def _alone(home: Home, name: Name) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(home, model=name))
        except LockedError as error:
            hint = "wait for that command to end, then see: fedctl model list"
            raise LockedError(error.message, hint=hint, subject=error.subject) from error
        yield


def version_row(bundle: Bundle, state: VersionState, *, round_id: int | None = None) -> ModelVersion:
    """What the database keeps of a version whose bundle was just written."""
    return ModelVersion(
        model=bundle.manifest.model,
        version=bundle.manifest.model_version,
        sha256=bundle.sha256,
        parent=bundle.manifest.parent,
        round_id=round_id,
        state=state,
        created_at=rfc3339(SYSTEM_CLOCK.now()),
    )


def resolve(store: ReadStore, reference: str) -> ModelVersion:
    """The version that `health`, `health@3` or `health@published` means.

    A bare name is the published version, or the latest draft while nothing is published: a candidate
    that was rejected is nobody's starting point.

    Raises:
        UsageError: The words after `@` are neither a number nor `published`.
        NotFoundError: There is no such model or version, or nothing is published.
    """
    name, at, wanted = reference.partition("@")
    model = store.model(name)
    if at and wanted != "published":
        if not (wanted.isascii() and wanted.isdecimal()):
            raise UsageError(
                f"{reference!r} is no model version: after @ comes a number or 'published'", subject=reference
            )
        number = int(wanted) if len(wanted) <= _DIGITS else 10**_DIGITS
        return store.version(name, number)
    if model.published_version is not None:
        return store.version(name, model.published_version)
    if at:
        raise NotFoundError(
            f"no version of {name} is published", hint=f"see: fedctl model show {name}", subject=reference
        )
    return [version for version in store.versions(name) if version.state is VersionState.DRAFT][-1]


def show(store: ReadStore, home: Home, reference: str) -> ModelDetail:
    """Everything about one version; its files are compared by size, its manifest by signature.

    Raises:
        ConfigError: A file of the bundle cannot be read.
        TrustError: The bundle is not what the operator signed.
    """
    version = resolve(store, reference)
    bundle = _bundle(store, home, version, check_files=False)
    deployments = tuple(
        d for d in store.deployments() if (d.model, d.version) == (version.model, version.version)
    )
    return ModelDetail(
        version=version,
        published_version=store.model(version.model).published_version,
        manifest=bundle.manifest,
        directory=bundle.directory,
        versions=store.versions(version.model),
        deployments=deployments,
    )


def push(
    store: Store,
    home: Home,
    reference: str,
    devices: Sequence[Device],
    *,
    parallel: int = 64,
    observer: Observer = silent,
) -> PushResult:
    """Install a version on devices, concurrently, and make it their active one.

    A device that fails is an outcome, not an exception; an upload that was cut goes on at its next push.
    Devices in maintenance are left out.

    Raises:
        NotFoundError: All of the devices are in maintenance.
        ConfigError: A file of the bundle cannot be read.
        TrustError: The bundle is not what the operator signed.
    """
    from fedctl.ops.session import FleetSession
    from fedctl.transport import sweep

    version = resolve(store, reference)
    bundle = _bundle(store, home, version, check_files=True)
    devices, left_out = without_maintenance(devices)

    def install(device: Device) -> PushOutcome:
        return _install(session, device, bundle, observer)

    outcomes = []
    with FleetSession(store, home) as session:
        for device, outcome in sweep(devices, install, parallel=parallel):
            if isinstance(outcome, FedctlError):
                observer(DeviceProgress(device.name, "failed", outcome.message))
                outcomes.append(PushOutcome(device=device.name, error=outcome))
            else:
                outcomes.append(outcome)
    result = PushResult(
        model=version.model,
        version=version.version,
        sha256=bundle.sha256,
        outcomes=tuple(sorted(outcomes, key=lambda o: o.device)),
        left_out=tuple(device.name for device in left_out),
    )
    _record_push(store, result)
    return result


def export(store: ReadStore, home: Home, reference: str, path: Path, *, force: bool = False) -> ExportResult:
    """Write one plain safetensors file: the weights, and the scaling as tensors of its own.

    The scaling is `preprocessing.mean` and `preprocessing.std` (float64, one value a feature); its clip
    stands in the file's metadata, beside model, version and manifest hash.

    Args:
        store: The state database.
        home: The fleet's home.
        reference: The version, as for `resolve`.
        path: Where to; replaced in one step, or not at all.
        force: Whether a file that is there may be replaced.

    Raises:
        UsageError: There is a file and `force` was not said, or `path` is a directory.
        ConfigError: The disk refuses, or a file of the bundle cannot be read.
        TrustError: The bundle is not what the operator signed.
    """
    version = resolve(store, reference)
    bundle = _bundle(store, home, version, check_files=True)
    if path.is_dir():
        raise UsageError(
            f"{path} is a directory", hint="name a file, e.g. model.safetensors", subject=str(path)
        )
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="replace it with --force", subject=str(path), code="exists")
    size = _write_plain(bundle, path)
    scaled = bundle.manifest.preprocessing is not None
    return ExportResult(model=version.model, version=version.version, path=path, bytes=size, scaled=scaled)


def _check_free(store: ReadStore, name: str) -> None:
    if any(model.name == name for model in store.models()):
        raise UsageError(
            f"there is a model {name} already",
            hint=f"choose another name, or see: fedctl model show {name}",
            subject=name,
            code="exists",
        )


def _bundle(store: ReadStore, home: Home, version: ModelVersion, *, check_files: bool) -> Bundle:
    """The version's bundle, refused when it is not the one the database names."""
    from fedctl.release.bundle import read_bundle

    directory = home.bundle(version.model, version.version)
    bundle = read_bundle(directory, store.fleet().operator_key, check_files=check_files)
    if bundle.sha256 != version.sha256:
        raise ConfigError(
            f"{directory} holds another bundle than {version.model}@{version.version}",
            hint="restore it from a backup of the home directory",
            subject=str(directory),
            code="hash",
        )
    return bundle


def _install(session: FleetSession, device: Device, bundle: Bundle, observer: Observer) -> PushOutcome:
    total = sum(file.bytes for file in bundle.manifest.files.values())
    sent = 0

    def count(block: int) -> None:
        nonlocal sent
        sent += block
        fraction = min(1.0, sent / total)
        observer(DeviceProgress(device.name, "sending", fraction=fraction, bytes_down=sent))

    installed = session.install(session.client(device), bundle, activate=True, on_bytes=count)
    observer(DeviceProgress(device.name, "installed", fraction=1.0, bytes_down=sent))
    return PushOutcome(device=device.name, installed=installed, bytes_down=sent)


def _record_push(store: Store, result: PushResult) -> None:
    failed = [o.device for o in result.outcomes if o.error is not None]
    store.add_event(
        actor=actor(),
        verb="model.push",
        subject=f"{result.model}@{result.version}",
        result="partial" if failed else "ok",
        detail={"devices": [o.device for o in result.outcomes], "failed": failed},
    )


def _write_plain(bundle: Bundle, path: Path) -> int:
    """Copy the weights block by block behind a header that also lists the scaling; returns the size."""
    scaling = bundle.manifest.preprocessing
    weights = read_file_header(bundle.weights)
    features = () if scaling is None else (len(scaling.mean),)
    specs: list[tuple[str, str, tuple[int, ...]]] = (
        [] if scaling is None else [(f"preprocessing.{part}", "F64", features) for part in ("mean", "std")]
    )
    specs += [(info.name, info.dtype, info.shape) for info in weights.tensors]  # after what is aligned to 8
    with PartFile(path) as target, bundle.weights.open("rb") as source:
        target.write(header_bytes(layout(specs), _metadata(bundle)))
        if scaling is not None:
            target.write(_float64(scaling.mean) + _float64(scaling.std))
        source.seek(weights.data_start)
        while block := source.read(_BLOCK_BYTES):
            target.write(block)
        target.commit()
    return path.stat().st_size


def _metadata(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    facts = {
        "format": "fedctl-export-v1",
        "model": str(manifest.model),
        "version": str(manifest.model_version),
        "manifest_sha256": bundle.sha256,
        "builder": manifest.builder,
        "input_shape": json.dumps(list(manifest.input_shape)),
        "classes": str(manifest.classes),
    }
    if manifest.preprocessing is not None:
        facts["preprocessing.clip"] = repr(manifest.preprocessing.clip)
    return facts


def _float64(values: Sequence[float]) -> bytes:
    import struct

    return struct.pack(f"<{len(values)}d", *values)

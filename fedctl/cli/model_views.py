"""How the results of `fedctl model` look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedctl.cli.device_views import error_json, exit_of, left_out, reasons, seconds, short
from fedctl.cli.output import Column, Table, View, facts
from fedctl.cli.units import byte_count
from fedctl_wire.codec import Json, to_json

if TYPE_CHECKING:
    from fedctl.core.model_records import Model
    from fedctl.ops.models import ExportResult, ModelDetail, PushOutcome, PushResult
    from fedctl_wire.manifest import Manifest
    from fedctl_wire.messages import TrainSettings

_NO_MODELS = "no models yet: fedctl model create NAME --input N --hidden N --classes N"


def created(detail: ModelDetail) -> View:
    """The draft that `create` made."""
    name = f"{detail.version.model}@{detail.version.version}"
    manifest = detail.manifest
    sentence = f"{name} created: {manifest.builder}, {_size(manifest)}"
    lines = [f"{sentence}; its scaling comes with the first round" if manifest.needs_scaling else sentence]
    return View(_detail_json(detail), [lines], names=[name], action=True)


def listed(models: Sequence[Model]) -> View:
    """Models, one a row."""
    rows: list[Json] = [to_json(model) for model in models]
    columns = (
        Column("name"),
        Column("latest", right=True),
        Column("published", right=True),
        Column("created", drop=1),
    )
    cells = [
        (
            m.name,
            str(m.latest_version),
            None if m.published_version is None else str(m.published_version),
            seconds(m.created_at),
        )
        for m in models
    ]
    names = [model.name for model in models]
    return View({"models": rows}, [Table(columns, cells)], rows, names, nothing=_NO_MODELS)


def shown(detail: ModelDetail) -> View:
    """One version, the versions of its model, and where it is."""
    version, manifest = detail.version, detail.manifest
    name = f"{version.model}@{version.version}"
    pairs = (
        ("version", name),
        ("state", version.state),
        ("builder", manifest.builder),
        ("size", _size(manifest)),
        ("input", "x".join(map(str, manifest.input_shape))),
        ("columns", ", ".join(manifest.columns) or "any, in each device's order"),
        ("classes", str(manifest.classes)),
        ("scaling", _scaling(manifest)),
        ("training", _training(manifest.defaults)),
        ("created", seconds(version.created_at)),
        ("sha256", version.sha256),
        ("parent", version.parent),
        ("files", str(detail.directory)),
    )
    versions = Table(
        (Column("versions"), Column("state"), Column("round", right=True), Column("created", drop=1)),
        [
            (
                f"{v.model}@{v.version}",
                v.state,
                None if v.round_id is None else str(v.round_id),
                seconds(v.created_at),
            )
            for v in detail.versions
        ],
    )
    deployments = Table(
        (Column("on device"), Column("slot"), Column("active"), Column("since", drop=1)),
        [(d.device, d.slot, "✓" if d.active else None, seconds(d.at)) for d in detail.deployments],
    )
    body = _detail_json(detail)
    return View(body, [facts(pairs), versions, deployments], [body], [name])


def pushed(result: PushResult) -> View:
    """What became of each device; names are those that hold the version now."""
    rows: list[Json] = [_outcome_json(outcome) for outcome in result.outcomes]
    columns = (
        Column("name"),
        Column(""),
        Column("slot"),
        Column("sent", right=True),
        Column("error"),
    )
    cells = [
        (
            o.device,
            "✗" if o.error else "✓",
            o.installed.slot if o.installed else None,
            byte_count(o.bytes_down),
            short(o.error),
        )
        for o in result.outcomes
    ]
    installed = [o.device for o in result.outcomes if o.error is None]
    return View(
        {
            "model": result.model,
            "version": result.version,
            "sha256": result.sha256,
            "devices": rows,
            "left_out": list(result.left_out),
        },
        [
            Table(columns, cells),
            reasons([(o.device, o.error) for o in result.outcomes]),
            left_out(result.left_out),
        ],
        rows,
        installed,
        action=len(installed) == len(result.outcomes),
        exit_code=exit_of([o.error for o in result.outcomes]),
    )


def exported(result: ExportResult) -> View:
    """The file that was written."""
    scaling = "with its scaling" if result.scaled else "without scaling"
    name = f"{result.model}@{result.version}"
    lines = [f"{name} written to {result.path}: {byte_count(result.bytes)}, {scaling}"]
    return View(_export_json(result), [lines], names=[str(result.path)], action=True)


def _export_json(result: ExportResult) -> dict[str, Json]:
    return {
        "model": result.model,
        "version": result.version,
        "path": str(result.path),
        "bytes": result.bytes,
        "scaled": result.scaled,
    }


def _size(manifest: Manifest) -> str:
    return f"{manifest.parameters:,} parameters, {byte_count(4 * manifest.parameters)}"  # float32


def _training(settings: TrainSettings) -> str:
    weights = settings.class_weights
    parts = (
        settings.optimizer,
        f"learning rate {settings.lr:g}",
        f"momentum {settings.momentum:g}" if settings.optimizer == "sgd" else "",
        f"batch {settings.batch_size}",
        f"local epochs {settings.local_epochs}",
        f"weight decay {settings.weight_decay:g}" if settings.weight_decay else "",
        f"proximal mu {settings.proximal_mu:g}" if settings.proximal_mu else "",
        f"gradients up to {settings.max_gradient_norm:g}" if settings.max_gradient_norm else "",
        "balanced classes" if settings.balance_classes else "",
        f"class weights {', '.join(f'{weight:g}' for weight in weights)}" if weights else "",
    )
    return ", ".join(filter(None, parts))


def _scaling(manifest: Manifest) -> str:
    if manifest.scale == "none":
        return "none"
    return "standard, filled in by the first round" if manifest.needs_scaling else "standard, filled in"


def _detail_json(detail: ModelDetail) -> dict[str, Json]:
    return {
        **to_json(detail.version),
        "published_version": detail.published_version,
        "directory": str(detail.directory),
        "parameters": detail.manifest.parameters,
        "manifest": to_json(detail.manifest),
        "versions": to_json(detail.versions),
        "deployments": to_json(detail.deployments),
    }


def _outcome_json(outcome: PushOutcome) -> Json:
    installed = outcome.installed
    return {
        "name": outcome.device,
        "installed": outcome.error is None,
        "slot": installed.slot if installed else None,
        "active": installed.active if installed else None,
        "bytes_down": outcome.bytes_down,
        "error": error_json(outcome.error),
    }

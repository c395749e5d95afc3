"""How `fedctl model inspect` looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedctl.cli.output import Column, Details, Table, View, facts
from fedctl.cli.units import byte_count
from fedctl_wire.codec import Json
from fedctl_wire.manifest import CLASS_WEIGHTS

if TYPE_CHECKING:
    from fedctl.models.footprint import Footprint
    from fedctl.ops.inspection import Inspection
    from fedctl_wire.manifest import Manifest, TensorSpec

_BAR = 10  # cells
_FLOAT = 4  # bytes


def inspected(found: Inspection) -> View:
    """Tensors with their shares, operators with their number, files and memory."""
    version, manifest = found.version, found.manifest
    name = f"{version.model}@{version.version}"
    window = "x".join(map(str, manifest.input_shape))
    summary = facts(
        (
            ("version", name),
            ("builder", f"{manifest.builder}, {window} to {manifest.classes} classes"),
            ("columns", ", ".join(manifest.columns) or "any, in each device's order"),
            ("parameters", f"{manifest.parameters:,}"),
            ("files", ", ".join(f"{key} {byte_count(f.bytes)}" for key, f in sorted(manifest.files.items()))),
        )
    )
    counts = ", ".join(f"{operator} {count}" for operator, count in found.operators.items())
    operators = Details([("operators", (counts,))])
    body = _json(found)
    return View(body, [summary, _tensors(manifest), operators, _memory(found.footprint)], [body], [name])


def _tensors(manifest: Manifest) -> Table:
    columns = (
        Column("tensor"),
        Column("shape"),
        Column("parameters", right=True),
        Column("bytes", right=True),
        Column("share", drop=1),
        Column("on the device", drop=2),
    )
    most = max(math.prod(spec.shape) for spec in manifest.tensors)
    return Table(columns, [_tensor(spec, most) for spec in manifest.tensors])


def _tensor(spec: TensorSpec, most: int) -> Sequence[str | None]:
    size = math.prod(spec.shape)
    note = "set by the plan" if spec.name == CLASS_WEIGHTS else None if spec.trainable else "not trained"
    return (
        spec.name,
        "x".join(map(str, spec.shape)),
        f"{size:,}",
        byte_count(_FLOAT * size),
        "█" * max(1, round(_BAR * size / most)),
        note,
    )


def _memory(footprint: Footprint) -> list[str]:
    pairs = (
        (f"training, batch {footprint.batch_size}", f"about {byte_count(footprint.total)}, of which"),
        ("  batch", byte_count(footprint.batch)),
        ("  values and gradients", byte_count(footprint.values)),
        ("  weights", byte_count(footprint.weights)),
        ("  optimizer", byte_count(footprint.optimizer)),
        ("device's data", f"{byte_count(footprint.example)} an example"),
    )
    return facts(pairs)


def _json(found: Inspection) -> dict[str, Json]:
    version, manifest, footprint = found.version, found.manifest, found.footprint
    return {
        "model": version.model,
        "version": version.version,
        "sha256": version.sha256,
        "builder": manifest.builder,
        "input_shape": list(manifest.input_shape),
        "columns": list(manifest.columns),
        "classes": manifest.classes,
        "parameters": manifest.parameters,
        "tensors": [
            {
                "name": spec.name,
                "shape": list(spec.shape),
                "parameters": math.prod(spec.shape),
                "bytes": _FLOAT * math.prod(spec.shape),
                "trainable": spec.trainable,
                "local": spec.local,
            }
            for spec in manifest.tensors
        ],
        "operators": [{"name": name, "nodes": count} for name, count in found.operators.items()],
        "files": [{"name": name, "bytes": file.bytes} for name, file in sorted(manifest.files.items())],
        "training_memory": {
            "batch_size": footprint.batch_size,
            "batch_bytes": footprint.batch,
            "values_bytes": footprint.values,
            "weights_bytes": footprint.weights,
            "optimizer_bytes": footprint.optimizer,
            "total_bytes": footprint.total,
            "example_bytes": footprint.example,
        },
    }

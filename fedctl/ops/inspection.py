"""What a model version is made of, and what training it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedctl.core.errors import UsageError, unreadable
from fedctl.core.home import Home
from fedctl.core.model_records import ModelVersion
from fedctl.ops.models import show
from fedctl.store import ReadStore
from fedctl_wire.codec import parse_bytes
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.manifest import GRAPH_FILE, Manifest

if TYPE_CHECKING:
    from fedctl.models.footprint import Footprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """One version, its graph's operators with their number, and the memory of training."""

    version: ModelVersion
    manifest: Manifest
    operators: dict[str, int]
    footprint: Footprint


def inspect(store: ReadStore, home: Home, reference: str, *, batch_size: int | None = None) -> Inspection:
    """Look into a version's bundle, whose manifest is checked against its signature.

    Args:
        store: The state database.
        home: The fleet's home.
        reference: `NAME`, `NAME@VERSION` or `NAME@published`.
        batch_size: For the memory; None: the model's own.

    Raises:
        NotFoundError: There is no such version.
        ConfigError: A file of the bundle cannot be read.
        TrustError: The bundle is not what the operator signed.
        UsageError: The batch size is below one.
    """
    from fedctl.models.footprint import footprint

    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}; it must be at least 1", subject="--batch-size")
    detail = show(store, home, reference)
    manifest, path = detail.manifest, detail.directory / GRAPH_FILE
    try:
        graph = path.read_bytes()
        program = parse_bytes(graph, limit=LIMITS.json_body_bytes, what=GRAPH_FILE)
    except OSError as error:
        raise unreadable(path, error) from error
    except WireError as error:
        raise unreadable(path, OSError(str(error))) from error
    operators: dict[str, int] = {}
    for node in program["nodes"]:
        operators[node["op"]] = operators.get(node["op"], 0) + 1
    return Inspection(
        version=detail.version,
        manifest=manifest,
        operators=dict(sorted(operators.items())),
        footprint=footprint(
            graph, manifest, manifest.defaults, batch_size=batch_size or manifest.defaults.batch_size
        ),
    )

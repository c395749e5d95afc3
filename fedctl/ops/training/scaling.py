"""Scaling across the fleet: the `stats` task on the training devices, summed into a model's next version."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedctl.aggregation.scaling import scaling_from_stats, stats_layout
from fedctl.aggregation.update import ExpectedFile, UpdateSink
from fedctl.core.errors import DeviceError, FedctlError, NotMetError
from fedctl.core.model_records import VersionState
from fedctl.core.progress import DeviceProgress, Note, Observer
from fedctl.core.records import Device
from fedctl.core.round_records import Task
from fedctl.ops.fleet import actor
from fedctl.ops.models import version_row
from fedctl.ops.session import RELEASED, FleetSession
from fedctl.ops.training.errand import errand_plan
from fedctl.ops.training.exchange import Assignment, carry_out, offer, verified_result
from fedctl.release.bundle import Bundle, next_version
from fedctl.transport import retrying, sweep
from fedctl_wire.manifest import Manifest
from fedctl_wire.messages import TaskKind
from fedctl_wire.signing import Envelope


@dataclass(frozen=True, slots=True)
class _Errand:
    """What every device is asked for, and where the answers go."""

    session: FleetSession
    base: Bundle
    round: str  # uuid
    plan: Envelope
    directory: Path
    deadline: float  # instant of `time.monotonic`


def scaled_version(
    session: FleetSession,
    draft: Bundle,
    devices: Sequence[Device],
    *,
    quorum: int,
    deadline_s: float,
    observer: Observer,
) -> Bundle:
    """Fill in a draft's scaling from what the training devices know of their features.

    Args:
        session: The command's connections.
        draft: A version that still needs its scaling.
        devices: The training devices; hold-out devices are never asked.
        quorum: How many must answer.
        deadline_s: How long they may take.
        observer: Told about each device.

    Raises:
        NotMetError: Fewer answered; the message says who and why.
    """
    round_uuid, envelope = errand_plan(session, draft, TaskKind.STATS, [device.name for device in devices])
    directory = session.home.path / "rounds" / f"stats-{draft.manifest.model}"
    directory.mkdir(parents=True, exist_ok=True)
    session.store.add_plan(envelope)
    errand = _Errand(session, draft, round_uuid, envelope, directory, time.monotonic() + deadline_s)
    observer(Note(f"scaling: asking {len(devices)} devices for the sums of their features"))
    results = _gather(errand, devices, quorum, observer)
    bundle = _next_version(session, draft, results)
    shutil.rmtree(directory, ignore_errors=True)
    return bundle


def _gather(errand: _Errand, devices: Sequence[Device], quorum: int, observer: Observer) -> dict[str, Path]:
    results: dict[str, Path] = {}
    failures: dict[str, FedctlError] = {}
    for device, outcome in sweep(devices, lambda device: _ask(errand, device)):
        if isinstance(outcome, FedctlError):
            failures[device.name] = outcome
            observer(DeviceProgress(device.name, "dropped", outcome.message))
        else:
            results[device.name] = outcome
            observer(DeviceProgress(device.name, "summed"))
    if len(results) < quorum:
        reasons = "".join(f"\n  {name}  {error.message}" for name, error in sorted(failures.items()))
        raise NotMetError(
            f"scaling of {errand.base.manifest.model} failed: quorum {quorum} not met, "
            f"{len(results)} of {len(devices)} devices delivered their sums{reasons}",
            hint=_way_out(errand.base.manifest, failures.values()),
            subject=str(errand.base.manifest.model),
        )
    return results


def _way_out(manifest: Manifest, failures: Iterable[FedctlError]) -> str:
    """What to do about devices that delivered nothing; a misfit is the model's to mend."""
    if not any(error.code == "schema" for error in failures):
        return "mend the devices above, or lower --quorum"
    if manifest.columns:
        return (
            f"{manifest.model} takes the columns {','.join(manifest.columns)}; what devices have: "
            "fedctl data check; make a model that fits: fedctl model create NAME --columns …"
        )
    size = "x".join(map(str, manifest.input_shape))
    return (
        f"{manifest.model} takes --input {size} and --classes {manifest.classes}; what devices have: "
        "fedctl data check; make a model that fits: fedctl model create NAME --input N …"
    )


def _ask(errand: _Errand, device: Device) -> Path:
    return retrying(lambda: _ask_once(errand, device), deadline=errand.deadline)


def _ask_once(errand: _Errand, device: Device) -> Path:
    session = errand.session
    try:
        client = session.client(device)
        assignment = Assignment(device, TaskKind.STATS, errand.round, 1, errand.plan, errand.base.sha256)
        session.install(client, errand.base, activate=True, offer=lambda: offer(client, assignment))
        task = Task(assignment.task_id, None, device.name, TaskKind.STATS.value, 1, "sent")
        session.errands.add(task.task_id)
        session.store.put_task(task)
        status = carry_out(
            client, assignment, stop=threading.Event(), deadline=errand.deadline, on_status=lambda _: None
        )
        result = verified_result(assignment, status)
        if result.result_sha256 is None or result.result_bytes is None:
            raise DeviceError("the result names no sums", subject=device.name, code="result")
        features = errand.base.manifest.features
        expected = ExpectedFile(
            device.name, stats_layout(features), result.result_sha256, result.result_bytes
        )
        path = errand.directory / f"{device.name}.safetensors"
        with UpdateSink(path, expected) as sink:
            client.fetch_result(assignment.task_id, sink.write, limit=result.result_bytes)
            sink.commit()
        client.ack(assignment.task_id)
    except FedctlError:
        session.forget(device.name)
        raise
    session.store.put_task(replace(task, state=RELEASED))
    return path


def _next_version(session: FleetSession, draft: Bundle, results: dict[str, Path]) -> Bundle:
    manifest = draft.manifest
    scaling = scaling_from_stats(results, manifest.features)
    version = session.store.model(manifest.model).latest_version + 1
    bundle = next_version(
        draft,
        session.home.bundle(manifest.model, version),
        version=version,
        preprocessing=scaling,
        operator_key=session.operator_key,
    )
    with session.store.transaction():
        session.store.add_version(version_row(bundle, VersionState.DRAFT))
        session.store.add_event(
            actor=actor(),
            verb="model.scale",
            subject=f"{manifest.model}@{version}",
            detail={"devices": sorted(results)},
        )
    return bundle

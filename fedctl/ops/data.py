"""What the devices' data are good for: asked of them, held against a model, judged.

No row is asked for: a device answers counts, names and times, as far as its policy lets them out.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedctl.core.data_verdicts import Finding, Mark, Wanted, judge
from fedctl.core.errors import ConfigError, FedctlError, UnreachableError
from fedctl.core.home import Home
from fedctl.core.plan import needs_of
from fedctl.core.progress import DeviceProgress, Note, Observer, silent
from fedctl.core.records import Device, Role
from fedctl.ops import models
from fedctl.ops.contact import greet, reach
from fedctl.ops.enrolment.source import read_source
from fedctl.store import ReadStore, Store
from fedctl.transport import Endpoint, sweep
from fedctl.transport.pool import PARALLEL
from fedctl_wire.codec import decode
from fedctl_wire.errors import WireError
from fedctl_wire.limits import LIMITS
from fedctl_wire.messages import DataReport, SourceReport

TIMEOUT_S = 75.0  # a device gives its own counting 60 s
_HERE = "this machine"
_DEADLINE_S = 60.0  # to read the data, as on a device


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """One source of a device and what there is to say about it."""

    report: SourceReport
    model: str | None  # what it was held against, e.g. "health@1"
    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        """Whether nothing speaks against training on it."""
        return all(finding.mark is not Mark.BAD for finding in self.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCheck:
    """One device's answer, or why there was none."""

    device: str
    report: DataReport | None = None
    sources: tuple[SourceCheck, ...] = ()
    error: FedctlError | None = None
    scheme: str = ""  # of the device's URL; empty for this machine

    @property
    def usable(self) -> bool:
        """Whether the device can take part with its data."""
        return self.error is None and bool(self.sources) and all(s.usable for s in self.sources)


def check(
    store: Store,
    home: Home,
    devices: Sequence[Device],
    *,
    model: str | None = None,
    timeout_s: float = TIMEOUT_S,
    parallel: int = PARALLEL,
    observer: Observer = silent,
) -> tuple[DataCheck, ...]:
    """Ask devices what their data are like, concurrently, and judge it; in the devices' order.

    Args:
        store: The fleet's database.
        home: Its keys and models.
        devices: Which.
        model: NAME or NAME@VERSION that should learn from them; None: the fleet's only one, if there is one.
        timeout_s: For each device.
        parallel: How many at the same time.
        observer: Told each answer.

    Raises:
        NotFoundError: There is no such model.
    """
    wanted, serial = wanted_model(store, home, model), store.fleet().roster_serial
    names = [known.name for known in store.models()]
    if wanted is None and len(names) > 1:
        observer(
            Note(f"fit is not checked, there are several models ({', '.join(names)}): name one by --model")
        )

    def ask(device: Device) -> tuple[str, DataReport]:
        with reach(home, device) as client:
            contact = greet(client, device, home, roster_serial=serial)
            return contact.health.version, client.data(timeout_s=timeout_s)

    found: dict[str, DataCheck] = {}
    versions: dict[str, str] = {}
    for device, answer in sweep(devices, ask, parallel=parallel):
        if isinstance(answer, FedctlError):
            found[device.name] = DataCheck(device=device.name, error=answer)
        else:
            versions[device.name], report = answer
            found[device.name] = judged(device.name, report, wanted, trains=device.role is not Role.HOLDOUT)
        observer(DeviceProgress(device.name, "no answer" if isinstance(answer, FedctlError) else "answered"))
    with store.transaction():
        for name, version in versions.items():
            store.set_device_seen(name, agent_version=version)
    return tuple(replace(found[d.name], scheme=Endpoint.parse(d.url).scheme) for d in devices)


def check_here(source: Path, wanted: Wanted | None = None) -> DataCheck:
    """Judge the data that a source file on this machine names, before it goes to a device.

    Raises:
        UsageError: The file is no source file.
        ConfigError: This machine cannot read the data.
    """
    read_source(source)
    command = [sys.executable, "-P", "-m", "fedctl_agent.sources.describe", "--source", str(source)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"the data of {source} could not be read in {_DEADLINE_S:g} s",
            hint="a device allows no more either: name fewer rows, e.g. a view of the last months",
            subject=str(source),
        ) from error
    try:
        report = decode(DataReport, done.stdout, limit=LIMITS.json_body_bytes, what="report")
    except WireError as error:
        detail = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConfigError(
            f"cannot look at the data of {source}: {detail or error}", subject=str(source)
        ) from error
    return judged(_HERE, report, wanted)


def judged(device: str, report: DataReport, wanted: Wanted | None, *, trains: bool = True) -> DataCheck:
    """A device's answer with verdicts; a model is held against the source that the device would choose."""
    chosen = _chosen(report, wanted)
    try:
        sources = tuple(
            SourceCheck(
                source,
                wanted.model if wanted and source in chosen else None,
                judge(report, source, wanted if source in chosen else None, trains=trains),
            )
            for source in report.sources
        )
    except ValueError as error:  # a time that is none
        problem = UnreachableError(
            f"device {device} sent a report that is not valid: {error}", subject=device
        )
        return DataCheck(device=device, error=problem)
    return DataCheck(device=device, report=report, sources=sources)


def wanted_model(store: ReadStore, home: Home, reference: str | None) -> Wanted | None:
    """The model that data are to be held against: the one named, else the fleet's only one.

    Raises:
        NotFoundError: There is no such model or version.
    """
    if reference is None:
        known = store.models()
        if len(known) != 1:
            return None
        reference = known[0].name
    detail = models.show(store, home, reference)
    manifest = detail.manifest
    return Wanted(f"{manifest.model}@{manifest.model_version}", needs_of(manifest))


def _chosen(report: DataReport, wanted: Wanted | None) -> tuple[SourceReport, ...]:
    """The source that a device takes for the model: the one of its name, else the only one."""
    if wanted is None:
        return ()
    name = wanted.model.partition("@")[0]
    named = tuple(source for source in report.sources if source.source == name)
    return named or (report.sources if len(report.sources) == 1 else ())

"""`devices add -f`: the devices of a fleet file at the same time, made members with one new roster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fedctl
from fedctl.core.errors import FedctlError, UnreachableError, UsageError, reason_of
from fedctl.core.home import Home
from fedctl.core.progress import DeviceProgress, Observer, silent
from fedctl.core.records import Device
from fedctl.ops import devices as single
from fedctl.ops.authority import fleet_root
from fedctl.ops.contact import greet, reach
from fedctl.ops.devices import AddResult, AdminLogin
from fedctl.ops.enrolment.enrol import Candidate, NewDevice, enrol_each, enrolled_as
from fedctl.ops.enrolment.gathering import Gathering
from fedctl.ops.enrolment.survey import Placement
from fedctl.ops.fleet_file import FileRow, FleetFile
from fedctl.store import ReadStore, Store
from fedctl.transport import Endpoint, sweep
from fedctl.transport.pool import PARALLEL
from fedctl_wire.codec import Json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_OWN_LOGIN = AdminLogin()


class RowState(StrEnum):
    """What became of a row; after a dry run, what would."""

    ADDED = "added"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutcome:
    """One row of the file and its device."""

    line: int
    device: str
    url: str
    state: RowState
    result: AddResult | None = None
    error: FedctlError | None = None


def add_many(  # noqa: PLR0913 - one parameter an option
    store: Store,
    home: Home,
    file: FleetFile,
    *,
    admin: AdminLogin = _OWN_LOGIN,
    root_key: Path | None = None,
    wheels: Path | None = None,
    placement: Placement = "auto",
    dry_run: bool = False,
    parallel: int = PARALLEL,
    observer: Observer = silent,
) -> tuple[RowOutcome, ...]:
    """Add the devices of a file, as `devices.add` adds one; a failure is the outcome of its row alone.

    A device that is a member and answers as it should is left alone after one look at its agent, so that
    a second run takes next to no time.

    Args:
        store: The fleet's database.
        home: Its keys and caches.
        file: The checked rows.
        admin: How to log in over SSH; asked from several threads, one question at a time is its business.
        root_key: Where the root key was moved to.
        wheels: A directory of wheels to use instead of the internet.
        placement: Where agents are placed over SSH, for rows that do not say it.
        dry_run: Look and say what would be done; change nothing.
        parallel: Devices at the same time; so many share a roster.
        observer: Told each step, from several threads.

    Returns:
        The outcomes in the order of the file.

    Raises:
        UsageError: A row contradicts the fleet; nothing is done then.
        ConfigError: The root key cannot be read.
        TrustError: It is another fleet's.
    """
    known = {device.name: device for device in store.devices()}
    _check_against(store, file)
    root = fleet_root(home, store.fleet(), root_key)
    common = {"root_key": root_key, "wheels": wheels, "dry_run": dry_run, "observer": observer}
    adding = _Adding(store, home, known, admin, root, placement, dry_run, observer, common)
    return adding.run(file.rows, parallel)


@dataclass(frozen=True)
class _Adding:
    store: Store
    home: Home
    known: Mapping[str, Device]
    admin: AdminLogin
    root: Ed25519PrivateKey
    placement: Placement
    dry_run: bool
    observer: Observer
    common: Mapping[str, Any]  # arguments of `devices.add`

    def run(self, rows: Sequence[FileRow], parallel: int) -> tuple[RowOutcome, ...]:
        """All rows at the same time."""
        gathering = Gathering(len(rows), parallel, self._enrol)

        def work(row: FileRow) -> RowOutcome:
            try:
                outcome = self._one(row, gathering)
            except FedctlError as error:
                outcome = self._outcome(row, RowState.FAILED, error=error)
            finally:
                gathering.leave()
            self.observer(DeviceProgress(row.device.name, outcome.state))
            return outcome

        found = {}
        for row, outcome in sweep(rows, work, parallel=parallel):
            if isinstance(outcome, FedctlError):
                raise outcome  # `work` lets none out
            found[row.line] = outcome
        return tuple(found[row.line] for row in rows)

    def _one(self, row: FileRow, gathering: Gathering) -> RowOutcome:
        device = self.known.get(row.device.name)
        if device is not None and self._stands(device, row):
            changes = self._change(device, row.device)
            return self._outcome(row, RowState.CHANGED if changes else RowState.UNCHANGED, result=changes)
        result = single.add(
            self.store,
            self.home,
            row.device,
            admin=replace(self.admin, accept_host_key=row.host_key),
            placement=row.placement or (self.placement if row.device.url.startswith("ssh:") else "auto"),
            token=None if row.token_file is None else _token(row.token_file),
            enroller=gathering.join,
            **self.common,
        )
        if device is None:
            return self._outcome(row, RowState.ADDED, result=result)
        changed = result.changed or (result.dry_run and bool(result.steps))
        return self._outcome(row, RowState.CHANGED if changed else RowState.UNCHANGED, result=result)

    def _enrol(self, candidates: Sequence[Candidate]) -> Mapping[str, Device | FedctlError]:
        return enrol_each(self.store, self.home, candidates, self.root)

    def _stands(self, device: Device, row: FileRow) -> bool:
        """Whether the device is what the row asks for, as far as the agent and the last installation say.

        Raises:
            UnreachableError: Nobody answers at its address, so that there is no use in going on.
        """
        self.observer(DeviceProgress(device.name, "looking"))
        if Endpoint.parse(row.device.url).url not in {device.url, device.facts.get("admin_url")}:
            return False
        ssh = Endpoint.parse(device.url).scheme == "ssh"
        given = {**self._payload, **single.source_fact(row.device)}
        if ssh and not given.items() <= device.facts.items():
            return False
        serial = self.store.fleet().roster_serial
        try:
            with reach(self.home, device) as client:
                identity = client.identity()
                contact = greet(client, device, self.home, roster_serial=serial)
        except UnreachableError as error:
            if error.code == "agent_down":
                return False
            raise
        except FedctlError:
            return False  # the long way says why, or mends it
        return enrolled_as(device, identity) and (not ssh or contact.health.version == fedctl.__version__)

    @cached_property
    def _payload(self) -> Mapping[str, Json]:
        return single.payload_fact()

    def _change(self, device: Device, wanted: NewDevice) -> AddResult | None:
        """Set the labels and the note that differ; None when none does."""
        steps = []
        if not wanted.labels.items() <= device.labels.items():
            steps.append("set its labels")
        if wanted.note is not None and wanted.note != device.notes:
            steps.append("set its note")
        if not steps:
            return None
        if not self.dry_run:
            single.label(self.store, [device], {**wanted.labels})
            single.note(self.store, device.name, device.notes if wanted.note is None else wanted.note)
        return AddResult(
            name=device.name,
            url=device.url,
            device=self.store.device(device.name),
            changed=not self.dry_run,
            steps=tuple(steps),
            dry_run=self.dry_run,
        )

    def _outcome(
        self,
        row: FileRow,
        state: RowState,
        *,
        result: AddResult | None = None,
        error: FedctlError | None = None,
    ) -> RowOutcome:
        return RowOutcome(
            line=row.line, device=row.device.name, url=row.device.url, state=state, result=result, error=error
        )


def _token(path: Path) -> str:
    """What `fedctl-agent enrol` printed.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(
            f"cannot read the token file {path}: {reason_of(error)}",
            hint="check that you may read it",
            subject=str(path),
        ) from error


def _check_against(store: ReadStore, file: FleetFile) -> None:
    """Refuse rows whose name or address another device of the fleet has.

    An SSH address may be an alias, which only a connection resolves: those are compared as they are typed.

    Raises:
        UsageError: With every such row.
    """
    problems = []
    for row in file.rows:
        where, url = f"{file.path}:{row.line}", Endpoint.parse(row.device.url)
        for device in store.devices():
            addresses = {device.url, device.facts.get("admin_url")}
            both_ssh = url.scheme == "ssh" and device.url.startswith("ssh:")
            if device.name == row.device.name and url.url not in addresses and not both_ssh:
                problems.append(f"  {where}: {device.name} is enrolled already, at {device.url}")
            if device.name != row.device.name and url.url in addresses:
                problems.append(f"  {where}: {url.url} is already device {device.name}")
    if problems:
        raise UsageError(
            "\n".join([f"{file.path} contradicts the fleet; nothing was done", *problems]),
            hint="change the name or the address there, or first: fedctl devices remove NAME",
            subject=str(file.path),
            code="fleet_file",
        )

"""`devices remove`: the agent off the device, the device out of the roster and the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedctl.core.errors import FedctlError, TrustError, UnreachableError
from fedctl.core.home import Home
from fedctl.core.progress import DeviceProgress, Observer
from fedctl.core.records import Device
from fedctl.ops.enrolment.install import uninstall
from fedctl.ops.enrolment.shell import DeviceShell
from fedctl.ops.enrolment.survey import placement_of
from fedctl.ops.enrolment.visit import AdminLogin, admin_endpoint, ssh_config_for, visit
from fedctl.ops.fleet import actor
from fedctl.ops.roster import issue_roster, keep_roster, roster_turn
from fedctl.store import Store
from fedctl.transport import Endpoint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveOutcome:
    """What became of one device to remove."""

    device: str
    steps: tuple[str, ...] = ()
    error: FedctlError | None = None  # set: it is still enrolled


@dataclass(frozen=True, slots=True)
class Removal:
    """One `devices remove`."""

    store: Store
    home: Home
    admin: AdminLogin
    purge: bool
    forget: bool
    observer: Observer

    def run(self, devices: Sequence[Device], root_key: Ed25519PrivateKey) -> tuple[RemoveOutcome, ...]:
        """Remove the devices; those whose agent could not be deleted stay enrolled, unless forgotten."""
        outcomes = tuple(self._withdraw(device) for device in devices)
        gone = [outcome for outcome in outcomes if outcome.error is None]
        if gone:
            self._strike(gone, root_key)
        return outcomes

    def _withdraw(self, device: Device) -> RemoveOutcome:
        self.observer(DeviceProgress(device.name, "removing"))
        try:
            return RemoveOutcome(device=device.name, steps=self._delete_agent(device))
        except FedctlError as error:
            if not self.forget:
                if isinstance(error, UnreachableError | TrustError):
                    ways_out = [error.hint, self._alias_hint(device)]
                    ways_out.append(f"fedctl devices remove {device.name} --forget leaves its agent as it is")
                    error.hint = "; ".join(filter(None, ways_out))
                return RemoveOutcome(device=device.name, error=error)
            why = error.message.removeprefix(f"device {device.name} ")
            return RemoveOutcome(device=device.name, steps=(f"left its agent as it is: {why}",))

    def _alias_hint(self, device: Device) -> str:
        """A device may have been added by a name that only another SSH configuration knows."""
        typed = admin_endpoint(device).host
        if ssh_config_for(device, self.admin) is not None or typed == Endpoint.parse(device.url).host:
            return ""
        return f"{typed} was a name in an SSH configuration when it was added: say which by -F FILE"

    def _delete_agent(self, device: Device) -> tuple[str, ...]:
        endpoint = admin_endpoint(device)
        if endpoint.scheme != "ssh":
            where = endpoint.path if endpoint.scheme == "unix" else endpoint.url
            return (f"left the agent at {where} as it is: it was not installed from here",)
        with visit(self.home, device, self.admin) as session:
            shell = DeviceShell(session, device.name)
            return uninstall(shell, self.home, purge=self.purge, placement=placement_of(device))

    def _strike(self, gone: Sequence[RemoveOutcome], root_key: Ed25519PrivateKey) -> None:
        """One new roster without the devices, then their rows, in one transaction."""
        with roster_turn(self.home):
            serial, roster = issue_roster(self.store, root_key, drop=[outcome.device for outcome in gone])
            keep_roster(self.home, roster)
            with self.store.transaction():
                self.store.set_roster_serial(serial)
                for outcome in gone:
                    self.store.remove_device(outcome.device)
                    self.store.add_event(
                        actor=actor(),
                        verb="device.remove",
                        subject=outcome.device,
                        detail={"purge": self.purge, "steps": list(outcome.steps)},
                    )

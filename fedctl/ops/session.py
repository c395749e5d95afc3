"""The connections and keys of one command: a client a device, made on first use, closed together.

At first contact a device gets what it missed: a newer roster, and an end to tasks of rounds that are
over, so that their results do not fill its spool.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedctl.core.clock import SYSTEM_CLOCK, rfc3339
from fedctl.core.errors import DeviceError, UnreachableError
from fedctl.core.home import Home
from fedctl.core.model_records import Deployment
from fedctl.core.records import Device
from fedctl.ops.contact import greet, reach
from fedctl.release.bundle import Bundle
from fedctl.release.keys import load_operator
from fedctl.store import Store
from fedctl.transport import AgentClient
from fedctl_wire.messages import Health, ModelInstalled

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

RELEASED = "released"  # state of a task whose device keeps nothing of it any more


@dataclass(frozen=True, slots=True)
class _Held:
    """What a slot of a device holds."""

    bundle: Bundle
    installed: ModelInstalled


class FleetSession:
    """What every device-facing operation of a command shares. Thread-safe; a context manager.

    One client is used by one thread at a time: whoever works on a device owns its client meanwhile.

    Attributes:
        store: The state database.
        home: Where bundles, rounds and keys are.
        fleet: The fleet's facts.
    """

    def __init__(self, store: Store, home: Home) -> None:
        self.store = store
        self.home = home
        self.fleet = store.fleet()
        self.operator_key: Ed25519PrivateKey = load_operator(home, expected=self.fleet.operator_key)
        self._clients: dict[str, AgentClient] = {}
        self._abandoned: dict[str, list[AgentClient]] = {}
        self._deployments: list[Deployment] = []
        self._health: dict[str, Health] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._held: dict[str, dict[str, _Held]] = {}  # by device and slot: what this command installed
        self.passed_golden: set[tuple[str, str]] = set()  # (device, graph's sha256) in this command
        self.errands: set[str] = set()  # this command's tasks outside rounds: a lost connection ends none

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def client(self, device: Device) -> AgentClient:
        """The client of a device that has said who it is and knows the current roster.

        Raises:
            UnreachableError: It does not answer.
            TrustError: Another device answers at its address.
        """
        with self._lock:
            known = self._clients.get(device.name)
        if known is not None:
            return known
        client = reach(self.home, device)
        try:
            contact = greet(client, device, self.home, roster_serial=self.fleet.roster_serial)
        except BaseException:
            client.close()
            raise
        with self._lock:
            if self._closed:  # a thread that nobody waits for came too late
                client.close()
                raise UnreachableError(f"{device.name}: the command has ended", subject=device.name)
            self._clients[device.name] = client
            self._health[device.name] = contact.health
        self.store.set_device_seen(device.name, agent_version=contact.health.version)
        self.release(device)
        return client

    def install(
        self,
        client: AgentClient,
        bundle: Bundle,
        *,
        activate: bool,
        newborn: bool = False,
        offer: Callable[[], object] | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> ModelInstalled:
        """Bring a bundle into one of the device's slots, to be recorded by `record_deployments`.

        What this command installed on the connection that it still has is not asked for again.

        Args:
            client: Of the device.
            bundle: What to install.
            activate: Make it the active version of the model.
            newborn: It was made by this command, so the device has none of the files that are new in it.
            offer: Called before files are sent; what it raises keeps them from being.
            on_bytes: Told the size of each block that was sent.
        """
        held = self._held.get(client.device, {})
        for known in held.values():
            if known.bundle.sha256 == bundle.sha256 and known.installed.active >= activate:
                return known.installed
        unseen: set[str] = set()
        if newborn and held:
            unseen = _files(bundle).difference(*(_files(known.bundle) for known in held.values()))
        installed = client.push_bundle(
            bundle.directory,
            activate=activate,
            unseen=sorted(unseen),
            before_upload=offer,
            on_bytes=on_bytes,
        )
        self._hold(client.device, bundle, installed)
        if installed.slot is not None:
            deployment = Deployment(
                device=client.device,
                model=installed.model,
                version=installed.version,
                slot=installed.slot,
                active=installed.active,
                at=rfc3339(SYSTEM_CLOCK.now()),
            )
            with self._lock:
                self._deployments.append(deployment)
        return installed

    def _hold(self, device: str, bundle: Bundle, installed: ModelInstalled) -> None:
        held = self._held.setdefault(device, {})
        for slot, other in held.items():
            if installed.active and other.installed.model == installed.model:
                held[slot] = replace(other, installed=replace(other.installed, active=False))
        held[f"{installed.model}/{installed.slot}"] = _Held(bundle, installed)

    def mistrust(self, device: str) -> bool:
        """Ask again what the device holds: it said otherwise; whether anything was taken for granted."""
        return bool(self._held.pop(device, None))

    def record_deployments(self) -> None:
        """Record what `install` did since the last call; part of the transaction that it is called in."""
        with self._lock:
            taken, self._deployments = self._deployments, []
        for deployment in taken:
            self.store.put_deployment(deployment)

    def health(self, device: Device) -> Health:
        """What the device said of itself at first contact; `client` must have succeeded before."""
        return self._health[device.name]

    def forget(self, device: str) -> None:
        """Close the device's client; the next `client` connects anew."""
        self.mistrust(device)
        with self._lock:
            client = self._clients.pop(device, None)
        if client is not None:
            client.close()

    def abandon(self, device: str) -> None:
        """Leave the device's client to the thread that still waits on it, which calls `reap` at its end."""
        self.mistrust(device)
        with self._lock:
            client = self._clients.pop(device, None)
            if client is not None:
                self._abandoned.setdefault(device, []).append(client)

    def reap(self, device: str) -> None:
        """Close what was abandoned of the device; called by the thread that used it."""
        with self._lock:
            clients = self._abandoned.pop(device, [])
        for client in clients:
            client.close()

    def close(self) -> None:
        """Close every client; none is made any more."""
        with self._lock:
            self._closed = True
        for name in list(self._clients):
            self.forget(name)
        with self.store.transaction():
            self.record_deployments()

    def release(self, device: Device) -> None:
        """End what the device still does or keeps for rounds that are over; see `client`."""
        client = self.client(device)
        for task in self.store.lingering_tasks(device.name):
            if task.task_id in self.errands:
                continue
            with contextlib.suppress(DeviceError):  # long gone there: nothing to release
                client.cancel(task.task_id)
                client.ack(task.task_id)
            self.store.put_task(replace(task, state=RELEASED))

    def is_stale(self, task_id: str) -> bool:
        """Whether the task that holds a device's slot belongs to work of this fleet that is over."""
        task = self.store.task(task_id)
        if task is None:
            return False
        return task.round_id is None or self.store.round(task.round_id).phase.final


def _files(bundle: Bundle) -> set[str]:
    return {file.sha256 for file in bundle.manifest.files.values()}

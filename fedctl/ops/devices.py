"""Devices of the fleet: add, select, label, ping, remove.

Each function is one thing an admin asks for. Adding and removing make one new roster a command; a
device that is not reached now gets it at its next contact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedctl.core.errors import FedctlError
from fedctl.core.home import Home
from fedctl.core.records import Device
from fedctl.store import ReadStore, Store
from fedctl_wire.messages import Health

Observer = Callable[[str, str], None]  # (device, sentence)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDevice:
    """A device to add; the name is checked by `add`."""

    name: str
    url: str  # unix://PATH or ssh://[user@]host[:port]
    labels: Mapping[str, str] = field(default_factory=dict)
    source: Path | None = None  # a source TOML, copied to the device on first add; ssh only


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminLogin:
    """How the admin, not fedctl, logs in at a device over SSH."""

    ssh_config: Path | None = None
    accept_host_key: str | None = None  # "SHA256:…"
    ask: Callable[[str], bool] | None = None  # None: never asked, an unknown host key is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class AddResult:
    """What `add` found and did, or would do with `dry_run`."""

    name: str
    url: str
    device: Device | None  # None after a dry run of a new device
    changed: bool  # False: everything was there already
    steps: tuple[str, ...]  # sentences: done, or with dry_run what would be done
    verdict: str = ""  # how the agent comes back after a reboot; "" for unix://
    round_trip_ms: float | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PingOutcome:
    """One device's answer, or why there was none."""

    device: str
    round_trip_ms: float | None = None
    health: Health | None = None
    roster_pushed: bool = False
    error: FedctlError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveOutcome:
    """What became of one device to remove."""

    device: str
    steps: tuple[str, ...] = ()
    error: FedctlError | None = None  # set: it is still enrolled


def add(  # noqa: PLR0913 - the options of one command
    store: Store,
    home: Home,
    device: NewDevice,
    *,
    admin: AdminLogin = AdminLogin(),
    root_key: Path | None = None,
    wheels: Path | None = None,
    dry_run: bool = False,
    observer: Observer | None = None,
) -> AddResult:
    """Install the agent where it is missing (ssh), enrol it and store the device."""
    raise NotImplementedError


def add_local(
    store: Store, home: Home, devices: Sequence[NewDevice], *, root_key: Path | None = None
) -> tuple[Device, ...]:
    """Enrol agents that already listen on Unix sockets, all with one new roster."""
    raise NotImplementedError


def show(store: ReadStore, name: str) -> Device:
    """The device of that name (NotFoundError when there is none)."""
    raise NotImplementedError


def label(store: Store, devices: Sequence[Device], changes: Mapping[str, str | None]) -> tuple[Device, ...]:
    """Set labels, or remove those whose new value is None; returns the devices as they are now."""
    raise NotImplementedError


def ping(
    store: Store,
    home: Home,
    devices: Sequence[Device],
    *,
    root_key: Path | None = None,
    timeout_s: float = 10.0,
    parallel: int = 64,
    observer: Observer | None = None,
) -> tuple[PingOutcome, ...]:
    """Ask every device for its health, concurrently; a failure is a value in its outcome."""
    raise NotImplementedError


def remove(  # noqa: PLR0913 - the options of one command
    store: Store,
    home: Home,
    devices: Sequence[Device],
    *,
    admin: AdminLogin = AdminLogin(),
    root_key: Path | None = None,
    purge: bool = False,
    forget: bool = False,
    observer: Observer | None = None,
) -> tuple[RemoveOutcome, ...]:
    """Stop and delete the agents and take the devices out of the roster."""
    raise NotImplementedError

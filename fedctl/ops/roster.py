"""The fleet's roster on the workstation: issued by the root at add and remove, kept signed in the home.

Whoever meets a device that holds an older one passes the kept envelope on, without the root key.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl.core.clock import SYSTEM_CLOCK, rfc3339
from fedctl.core.durable import write_file
from fedctl.core.errors import ConfigError, LockedError
from fedctl.core.home import Home
from fedctl.core.records import Device
from fedctl.release.trust import sign_roster
from fedctl.store import Store
from fedctl.store.lock import hold_lock
from fedctl_wire.errors import WireError
from fedctl_wire.messages import RosterDevice
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ROSTER_FILE = "roster.dsse"
_TURN_DEADLINE_S = 60.0
_TURN_PAUSE_S = 0.05


def roster_path(home: Home) -> Path:
    """Where the last issued roster is kept."""
    return home.path / ROSTER_FILE


def stored_roster(home: Home) -> Envelope | None:
    """The last issued roster, or None before the first one.

    Raises:
        ConfigError: When the file cannot be read.
    """
    path = roster_path(home)
    try:
        return Envelope.from_bytes(path.read_bytes(), what=str(path))
    except FileNotFoundError:
        return None
    except (OSError, WireError) as error:
        raise ConfigError(f"cannot read {path}: {error}", subject=str(path)) from error


@contextmanager
def roster_turn(home: Home) -> Iterator[None]:
    """Hold the fleet's lock from reading the members to storing the next roster, after waiting for it.

    Two commands at once would otherwise each sign a roster that lacks the other's device.

    Raises:
        LockedError: When another command held the lock for a minute.
    """
    deadline = time.monotonic() + _TURN_DEADLINE_S
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(hold_lock(home))
                break
            except LockedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_TURN_PAUSE_S)
        yield


def issue_roster(
    store: Store,
    root_key: Ed25519PrivateKey,
    *,
    add: Iterable[RosterDevice] = (),
    drop: Iterable[str] = (),
) -> tuple[int, Envelope]:
    """Sign the next roster: the enrolled devices, with `add` and without `drop`; call it in a turn.

    Returns:
        Its serial and the envelope; nothing is stored yet.
    """
    fleet = store.fleet()
    members = {device.name: _entry(device) for device in store.devices()}
    members.update((entry.name, entry) for entry in add)
    for name in drop:
        members.pop(name, None)
    serial = store.next_serial()
    envelope = sign_roster(
        fleet=fleet.uuid,
        serial=serial,
        issued_at=rfc3339(SYSTEM_CLOCK.now()),
        operator_key=fleet.operator_key,
        devices=members.values(),
        root_key=root_key,
    )
    return serial, envelope


def keep_roster(home: Home, envelope: Envelope) -> None:
    """Store the roster durably; its serial is recorded in the transaction that follows.

    Raises:
        ConfigError: When the disk refuses.
    """
    write_file(roster_path(home), envelope.to_bytes())


def _entry(device: Device) -> RosterDevice:
    return RosterDevice(
        name=Name(device.name), key=device.identity_key, serial=device.serial, enrolled_at=device.enrolled_at
    )

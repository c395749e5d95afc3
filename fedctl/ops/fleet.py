"""The fleet itself: made once by `init`, which may be run again at any time."""

from __future__ import annotations

import fcntl
import os
import pwd
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedctl.core.errors import ConfigError, reason_of
from fedctl.core.home import Home
from fedctl.core.records import Fleet
from fedctl.ops.authority import fleet_root
from fedctl.release.keys import (
    ROOT_FILE,
    create_keys,
    load_operator,
    load_root,
    operator_certificate_path,
)
from fedctl.store import Store
from fedctl_wire.signing import public_key

_LOCK_FILE = "init"


@dataclass(frozen=True, slots=True, kw_only=True)
class InitResult:
    """The fleet of a home directory, and whether this call made it."""

    fleet: Fleet
    home: Path
    root_key: Path | None  # file of the root key; None: it was moved away and not named
    created: bool


def init(home: Home, *, root_key: Path | None = None, demo: bool = False) -> InitResult:
    """Make the fleet: home directory (0700), keys, state database. A second call changes nothing.

    It only makes the operator's certificate where that is missing and the root key is at hand. An `init`
    that was killed half-way is completed. Two at once are one after the other.

    Args:
        home: Where the fleet lives.
        root_key: File that gets, or after a first `init` holds, the root key outside the home.
        demo: Mark the fleet as the demo's.

    Raises:
        ConfigError: The home cannot be written, holds a demo, or has another root key than `root_key`.
        TrustError: The operator key on disk is not the fleet's.
    """
    root_key = root_key.expanduser().absolute() if root_key else None
    with _locked(home):
        if home.demo_mark.exists() and not demo:
            raise _held_by_demo(home)
        if _holds_fleet(home):
            return _confirm(home, root_key, demo=demo)
        for leftover in home.keys.glob(".*"):  # private keys half-written by an `init` that was killed
            leftover.unlink()
        keys = create_keys(home, root_key)
        fleet = Fleet(str(uuid.uuid4()), keys.root, keys.operator, roster_serial=0, demo=demo)
        fleet_root(home, fleet, root_key)
        with Store.create(home, fleet) as store:
            _record(store, fleet)
        return InitResult(
            fleet=fleet, home=home.path, root_key=root_key or home.keys / ROOT_FILE, created=True
        )


def actor() -> str:
    """Who runs this command, for the audit log: `user@host`."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    return f"{user}@{os.uname().nodename}"


def both_wheels_installed() -> bool:
    """Whether `fedctl` and `fedctl-agent`, which own the same files, are installed side by side."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution("fedctl")
        distribution("fedctl-agent")
    except PackageNotFoundError:
        return False
    return True


def _confirm(home: Home, root_key: Path | None, *, demo: bool) -> InitResult:
    """Check that an `init` with these arguments would have made the fleet that is there."""
    with Store.open(home) as store:
        fleet = store.fleet()
        if fleet.demo and not demo:
            raise _held_by_demo(home)
        load_operator(home, expected=fleet.operator_key)
        path = root_key or home.keys / ROOT_FILE
        if root_key is not None:
            _check_root(home, root_key, fleet)
        if path.exists() and not operator_certificate_path(home).exists():
            fleet_root(home, fleet, path)
        if not store.events(limit=1):
            _record(store, fleet)
    return InitResult(
        fleet=fleet, home=home.path, root_key=path if root_key or path.exists() else None, created=False
    )


def _held_by_demo(home: Home) -> ConfigError:
    return ConfigError(
        f"{home.path} holds the demo's fleet",
        hint="end and remove it with: fedctl demo --stop",
        subject=str(home.path),
        code="demo",
    )


def _check_root(home: Home, root_key: Path, fleet: Fleet) -> None:
    if root_key.exists() and public_key(load_root(home, root_key)) == fleet.root_key:
        return
    raise ConfigError(
        f"{home.path} already holds fleet {fleet.uuid}, whose root key is not {root_key}",
        hint="name the file that holds its root key, or set FEDCTL_HOME to another directory for a new fleet",
        subject=str(root_key),
        code="exists",
    )


def _record(store: Store, fleet: Fleet) -> None:
    store.add_event(actor=actor(), verb="fleet.init", subject=fleet.uuid, detail={"demo": fleet.demo})


def _holds_fleet(home: Home) -> bool:
    """Whether the database has its fleet; one that a killed `init` left empty has none."""
    if not home.database.exists():
        return False
    try:
        Store.open(home).close()
    except ConfigError as error:
        if error.code == "no_fleet":
            return False
        raise
    return True


@contextmanager
def _locked(home: Home) -> Iterator[None]:
    """Make the home and hold its `init` lock.

    Raises:
        ConfigError: When the directory cannot be made or written.
    """
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.locks.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(home.locks / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot make the fleet's home {home.path}: {reason_of(error)}",
            hint="make its parent directory writable, or set FEDCTL_HOME to another",
            subject=str(home.path),
            code="home",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

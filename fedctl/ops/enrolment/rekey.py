"""`devices rekey`: fedctl's one line in a device's authorized_keys, put back or made anew.

After a re-flash the line is missing: it is put back, by the admin's own login. After a theft the login key
must go: with `new_key` the fleet gets another one, each device that is reached knows only that afterwards,
and the key before is kept for the rest until they were reached too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedctl.core.errors import FedctlError, UsageError
from fedctl.core.home import Home
from fedctl.core.progress import DeviceProgress, Observer, silent
from fedctl.core.records import Device
from fedctl.ops.contact import greet, reach
from fedctl.ops.enrolment.ondevice import keyline
from fedctl.ops.enrolment.shell import DeviceShell
from fedctl.ops.enrolment.survey import Places, placement_of, probe_device
from fedctl.ops.enrolment.visit import LOGIN_FACT, AdminLogin, admin_endpoint, check_via, no_agent, visit
from fedctl.ops.fleet import actor
from fedctl.release.keys import login_key_line
from fedctl.release.login_key import forget_previous, login_id, replace_login, replacement_unfinished
from fedctl.store import ReadStore, Store
from fedctl.transport import AdminSession, sweep
from fedctl_wire.codec import Json

PARALLEL = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RekeyOutcome:
    """What became of one device's line."""

    device: str
    changed: bool = False
    steps: tuple[str, ...] = ()  # what was done, or with a dry run would be; else why nothing was to do
    error: FedctlError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RekeyResult:
    """What `rekey` did, and what is left."""

    outcomes: tuple[RekeyOutcome, ...]
    new_key: str | None  # names the key that was made
    waiting: tuple[str, ...]  # devices that still know only the key before
    dry_run: bool


@dataclass(frozen=True, slots=True)
class _Rekeyed:
    """What a device's row gets to know."""

    outcome: RekeyOutcome
    host_key: str
    facts: dict[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rekeying:
    """One `devices rekey`."""

    home: Home
    login: str  # names the current login key; "" before the new one of a dry run
    roster_serial: int
    admin: AdminLogin
    dry_run: bool
    observer: Observer

    def of(self, device: Device) -> _Rekeyed:
        """Make the current login key the only one that opens the device's agent.

        Raises:
            TrustError: Its host key is another one, it refuses the admin, or another device answers.
            UnreachableError: It does not answer.
            DeviceError: There is no agent, or a step failed there.
        """
        if admin_endpoint(device).scheme != "ssh":
            outcome = RekeyOutcome(
                device=device.name, steps=("it is not reached by SSH and has no such line",)
            )
            return _Rekeyed(outcome, device.host_key or "", {})
        self.observer(DeviceProgress(device.name, "connecting"))
        with visit(self.home, device, self.admin, set_up_anew=True) as session:
            steps = self._set_line(device, session)
            if session.host_key != device.host_key:
                steps.append(f"{'pin' if self.dry_run else 'pinned'} its new host key")
            facts: dict[str, Json] = {LOGIN_FACT: self.login, **session.route.facts()}
            host_key = session.host_key
        changed = bool(steps) and not self.dry_run
        if not self.dry_run:
            self._check(device, host_key, facts)
        steps = steps or ["its line is there already"]
        return _Rekeyed(
            RekeyOutcome(device=device.name, changed=changed, steps=tuple(steps)), host_key, facts
        )

    def _set_line(self, device: Device, session: AdminSession) -> list[str]:
        shell = DeviceShell(session, device.name)
        places = self._places(device, shell)
        line = login_key_line(self.home, places.dial_command)
        found = shell.call(keyline, "inspect", launcher=places.launcher, line=line)
        if not found["installed"]:
            raise no_agent(device, places, session.host_key)
        present = found["present"] and self.login
        if present and not found["others"]:
            return []
        if not self.dry_run:
            shell.call(keyline, "replace", line=line)
        add, remove = ("add", "remove") if self.dry_run else ("added", "removed")
        steps = [] if present else [f"{add} the line of the login key to ~/.ssh/authorized_keys"]
        others = found["others"] + (1 if found["present"] and not present else 0)
        if others:
            steps.append(f"{remove} {others} older line{'' if others == 1 else 's'} of fedctl's")
        return steps

    def _places(self, device: Device, shell: DeviceShell) -> Places:
        probe = probe_device(shell)
        system = Places(probe.home, system=True)
        placement = placement_of(device)
        if placement == "auto":
            placement = "system" if system.launcher in probe.installed else "user"
        return system if placement == "system" else Places(probe.home)

    def _check(self, device: Device, host_key: str, facts: dict[str, Json]) -> None:
        """The agent answers by the current key, and is the one that was enrolled."""
        now = replace(device, host_key=host_key, facts={**device.facts, **facts})
        with reach(self.home, now) as client:
            greet(client, now, self.home, roster_serial=self.roster_serial)


def rekey(
    store: Store,
    home: Home,
    devices: Sequence[Device],
    *,
    admin: AdminLogin,
    new_key: bool = False,
    dry_run: bool = False,
    parallel: int = PARALLEL,
    observer: Observer = silent,
) -> RekeyResult:
    """Leave the fleet's login key as the only one of fedctl's on devices; a failure is a value.

    Run again, it changes only what is missing.

    Args:
        store: The fleet's database.
        home: Its keys.
        devices: Which; the outcomes come in the same order.
        admin: How to log in over SSH.
        new_key: Make another login key first.
        dry_run: Look and say what would be done; change nothing.
        parallel: How many at the same time.
        observer: Told each step.

    Raises:
        UsageError: `via` with several devices, or a new key before the last one is everywhere.
        ConfigError: Keys or database.
    """
    _check_words(store, home, devices, admin, new_key=new_key)
    if new_key and not dry_run:
        replace_login(home)
    work = Rekeying(
        home=home,
        login="" if new_key and dry_run else login_id(home),
        roster_serial=store.fleet().roster_serial,
        admin=admin,
        dry_run=dry_run,
        observer=observer,
    )
    found: dict[str, RekeyOutcome] = {}
    for device, answer in sweep(devices, work.of, parallel=parallel):
        if isinstance(answer, FedctlError):
            found[device.name] = RekeyOutcome(device=device.name, error=answer)
        else:
            found[device.name] = answer.outcome
            if not dry_run:
                _record(store, device, answer)
        observer(DeviceProgress(device.name, "failed" if found[device.name].error else "done"))
    waiting = () if dry_run else _finish(store, home)
    outcomes = tuple(found[device.name] for device in devices)
    return RekeyResult(
        outcomes=outcomes, new_key=work.login if new_key else None, waiting=waiting, dry_run=dry_run
    )


def _check_words(
    store: ReadStore, home: Home, devices: Sequence[Device], admin: AdminLogin, *, new_key: bool
) -> None:
    check_via(admin, devices)
    if new_key and replacement_unfinished(home):
        left = " ".join(_waiting(store, home)) or "'*'"
        raise UsageError(
            "the last new login key is not on every device yet",
            hint=f"first: fedctl devices rekey {left}; and for one that is lost: "
            "fedctl devices remove NAME --forget",
            subject="--new-key",
            code="rekey_unfinished",
        )


def _record(store: Store, device: Device, rekeyed: _Rekeyed) -> None:
    if not rekeyed.facts:
        return
    with store.transaction():
        if rekeyed.host_key != device.host_key:
            store.set_host_key(device.name, rekeyed.host_key)
        store.set_device_seen(device.name, facts=rekeyed.facts)
        if rekeyed.outcome.changed:
            detail: dict[str, Json] = {"steps": list(rekeyed.outcome.steps), **rekeyed.facts}
            store.add_event(actor=actor(), verb="device.rekey", subject=device.name, detail=detail)


def _waiting(store: ReadStore, home: Home) -> tuple[str, ...]:
    current = login_id(home)
    return tuple(
        device.name
        for device in store.devices()
        if device.url.startswith("ssh:") and device.facts.get(LOGIN_FACT) != current
    )


def _finish(store: ReadStore, home: Home) -> tuple[str, ...]:
    """Forget the key before once nobody needs it; the devices that still do."""
    waiting = _waiting(store, home) if replacement_unfinished(home) else ()
    if not waiting:
        forget_previous(home)
    return waiting

"""`devices upgrade`: the agent of this fedctl on devices that have another one, or the old one back.

State, sources and identity stay as they are. A device whose new agent does not answer in time gets the
old version back, which is started and asked whether it answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fedctl
from fedctl.core.errors import DeviceError, FedctlError, UsageError
from fedctl.core.home import Home
from fedctl.core.progress import DeviceProgress, Observer, silent
from fedctl.core.records import Device
from fedctl.ops.contact import greet, reach
from fedctl.ops.enrolment.install import Installation, Outcome, survey
from fedctl.ops.enrolment.shell import DeviceShell
from fedctl.ops.enrolment.survey import placement_of
from fedctl.ops.enrolment.undo import Undo
from fedctl.ops.enrolment.visit import AdminLogin, admin_endpoint, check_via, no_agent, visit
from fedctl.ops.fleet import actor
from fedctl.store import Store
from fedctl.transport import retrying, sweep
from fedctl_wire.codec import Json

PATIENCE_S = 60.0  # for an agent to answer after its start
PARALLEL = 8  # an upload each, and the workstation's own upstream is shared


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeOutcome:
    """What became of one device's agent."""

    device: str
    before: str | None = None  # version that answered when it was last seen
    steps: tuple[str, ...] = ()  # what was done; empty: nothing was to do
    verdict: str = ""  # how the agent comes back after a reboot
    error: FedctlError | None = None  # set: the device has no new agent; code `rolled_back`: the old one


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upgraded:
    """What a device's row gets to know."""

    outcome: UpgradeOutcome
    python: str
    facts: dict[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """One `devices upgrade`.

    Attributes:
        home: Keys and caches.
        roster_serial: Of the fleet's current roster.
        admin: How to log in.
        wheels: A directory of wheels to use instead of the internet.
        reinstall: Also where this version is there already.
        patience_s: For an agent to answer after its start.
        observer: Told each step.
    """

    home: Home
    roster_serial: int
    admin: AdminLogin
    wheels: Path | None
    reinstall: bool
    patience_s: float
    observer: Observer

    def of(self, device: Device) -> _Upgraded:
        """Upgrade one device.

        Raises:
            UsageError: Its agent was not installed over SSH.
            DeviceError: A step failed there, or the new agent did not answer.
            TrustError: Host key, login, or another device answers.
            UnreachableError: The device does not answer.
            ConfigError: No wheel fits it.
        """
        _check_installed_from_here(device)
        self._say(device, "connecting")
        with visit(self.home, device, self.admin) as session:
            installation = survey(DeviceShell(session, device.name), self.home, placement_of(device))
            if installation.found.launcher is None:
                raise no_agent(device, installation.places, session.host_key)
            changes = self.reinstall or not installation.up_to_date
            outcome = self._replace(device, installation) if changes else installation.start(restart=False)
            if changes:
                installation.tidy()
        return _Upgraded(
            outcome=UpgradeOutcome(
                device=device.name, before=device.agent_version, steps=outcome.done, verdict=outcome.verdict
            ),
            python=installation.probe.python_version,
            facts=installation.facts(outcome.service),
        )

    def _replace(self, device: Device, installation: Installation) -> Outcome:
        touched = False
        try:
            with Undo() as undo:
                done = installation.put(self.home, undo, self.wheels, self.observer)
                touched = True
                installation.prepare_state(undo, None)
                self._say(device, "starting")
                started = installation.start(restart=True, patience_s=self.patience_s)
                self._await_answer(device, fedctl.__version__)
        except FedctlError as error:
            if not touched:  # nothing was changed, or it is changed back
                raise
            raise self._went_back(device, error) from error
        return Outcome((*done, *started.done), started.verdict, started.service)

    def _await_answer(self, device: Device, version: str | None = None) -> None:
        """Ask through the fleet's own login until the agent answers as `device`, of that version.

        Raises:
            FedctlError: It does not, or another one does.
        """
        deadline = time.monotonic() + self.patience_s

        def ask() -> None:
            with reach(self.home, device, timeout_s=max(deadline - time.monotonic(), 1.0)) as client:
                health = greet(client, device, self.home, roster_serial=self.roster_serial).health
            if version is not None and health.version != version:
                raise DeviceError(
                    f"device {device.name}: version {health.version} answers instead of {version}",
                    subject=device.name,
                )

        retrying(ask, deadline=deadline)

    def _went_back(self, device: Device, cause: FedctlError) -> DeviceError:
        """The old version is in place again, as far as that could be done: does it answer?"""
        self._say(device, "going back")
        why = cause.message.removeprefix(f"device {device.name}").lstrip(": ")
        message = f"device {device.name}: the new agent does not run: {why}"
        try:
            self._await_answer(device)
        except FedctlError as error:
            return DeviceError(
                f"{message}; the version before was put back, but does not answer either: {error.message}",
                hint="; ".join(
                    filter(None, [cause.hint, f"look into it: fedctl devices check {device.name}"])
                ),
                subject=device.name,
                code="rollback_failed",
            )
        old = device.agent_version or "before"
        return DeviceError(
            f"{message}; version {old} was put back and answers",
            hint=cause.hint,
            subject=device.name,
            code="rolled_back",
        )

    def _say(self, device: Device, stage: str) -> None:
        self.observer(DeviceProgress(device.name, stage))


def upgrade(  # noqa: PLR0913 - one parameter an option
    store: Store,
    home: Home,
    devices: Sequence[Device],
    *,
    admin: AdminLogin,
    wheels: Path | None = None,
    reinstall: bool = False,
    patience_s: float = PATIENCE_S,
    parallel: int = PARALLEL,
    observer: Observer = silent,
) -> tuple[UpgradeOutcome, ...]:
    """Bring the agent of this fedctl onto devices, concurrently; a failure is a value in its outcome.

    Nothing is done where this very version is installed and runs.

    Args:
        store: The fleet's database.
        home: Its keys and caches.
        devices: Which; the outcomes come in the same order.
        admin: How to log in over SSH.
        wheels: A directory of wheels to use instead of the internet.
        reinstall: Also where this version is there already.
        patience_s: For an agent to answer after its start; then the old version is put back.
        parallel: How many at the same time.
        observer: Told each step.

    Raises:
        UsageError: `admin.via` is one device's login, and there are several devices.
    """
    check_via(admin, devices)
    work = Upgrade(
        home=home,
        roster_serial=store.fleet().roster_serial,
        admin=admin,
        wheels=wheels,
        reinstall=reinstall,
        patience_s=patience_s,
        observer=observer,
    )
    found: dict[str, UpgradeOutcome] = {}
    for device, answer in sweep(devices, work.of, parallel=parallel):
        if isinstance(answer, FedctlError):
            found[device.name] = UpgradeOutcome(device=device.name, before=device.agent_version, error=answer)
        else:
            found[device.name] = answer.outcome
            _record(store, answer)
        observer(DeviceProgress(device.name, "failed" if found[device.name].error else "upgraded"))
    return tuple(found[device.name] for device in devices)


def _check_installed_from_here(device: Device) -> None:
    scheme = admin_endpoint(device).scheme
    if scheme == "ssh":
        return
    raise UsageError(
        f"device {device.name} is reached by {scheme}: its agent was not installed from here",
        hint=f"at the device, install fedctl-agent {fedctl.__version__} the way it was installed before, "
        "for example: pip install --upgrade fedctl-agent; then start it again",
        subject=device.name,
        code="not_ssh",
    )


def _record(store: Store, upgraded: _Upgraded) -> None:
    outcome = upgraded.outcome
    with store.transaction():
        store.set_device_seen(
            outcome.device, agent_version=fedctl.__version__, python=upgraded.python, facts=upgraded.facts
        )
        if outcome.steps:
            store.add_event(
                actor=actor(),
                verb="device.upgrade",
                subject=outcome.device,
                detail={"from": outcome.before, "to": fedctl.__version__, "steps": list(outcome.steps)},
            )

"""`devices add`: from an address to an enrolled device that runs, over SSH or at a Unix socket."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl.core.errors import TrustError, UsageError
from fedctl.core.home import Home
from fedctl.core.progress import DeviceProgress, Observer
from fedctl.core.records import Device
from fedctl.ops.authority import fleet_root
from fedctl.ops.contact import timed_health
from fedctl.ops.enrolment.enrol import (
    Candidate,
    Known,
    NewDevice,
    check_free,
    check_identity,
    check_membership,
    enrol,
    enrolled_as,
)
from fedctl.ops.enrolment.install import Installation, Outcome, survey
from fedctl.ops.enrolment.shell import DeviceShell
from fedctl.ops.enrolment.source import Source, read_source
from fedctl.ops.enrolment.survey import Placement
from fedctl.ops.enrolment.undo import Undo
from fedctl.ops.enrolment.visit import LOGIN_FACT, AdminLogin, ssh_config_for
from fedctl.release.keys import login_path
from fedctl.release.login_key import login_id
from fedctl.store import Store
from fedctl.transport import AdminSession, AgentClient, Endpoint, connect, open_admin
from fedctl.transport.typed import URL_FACT, typed_facts
from fedctl_wire.codec import Json
from fedctl_wire.errors import WireError
from fedctl_wire.messages import Health, Identity
from fedctl_wire.names import Name
from fedctl_wire.signing import fingerprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class AddResult:
    """What `add` found and did, or would do with `dry_run`."""

    name: str
    url: str
    device: Device | None  # None after a dry run of a new device
    changed: bool  # False: everything was there already
    steps: tuple[str, ...]  # sentences: done or kept, or with dry_run what would be
    verdict: str = ""  # how the agent comes back after a reboot; "" for unix://
    round_trip_ms: float | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """One `devices add`, its words checked."""

    store: Store
    home: Home
    name: Name
    endpoint: Endpoint
    labels: Mapping[str, str]
    source: Source | None
    root_key: Ed25519PrivateKey
    dry_run: bool
    observer: Observer
    enroller: Callable[[Candidate], Device] | None = None  # joins it with others; None: it joins alone

    @classmethod
    def of(
        cls,
        store: Store,
        home: Home,
        device: NewDevice,
        *,
        root_key: Path | None,
        dry_run: bool,
        observer: Observer,
        enroller: Callable[[Candidate], Device] | None = None,
    ) -> Addition:
        """Check the words of the command and load the root key, before anything is asked of a device.

        Raises:
            UsageError: For a name, URL, label or source that cannot be used.
            ConfigError: When the root key cannot be read.
            TrustError: When it is another fleet's.
        """
        endpoint = Endpoint.parse(device.url)
        if device.source is not None and endpoint.scheme != "ssh":
            raise UsageError(
                "--source needs an ssh:// device",
                hint="for an agent that is there already, put the file into sources/ of its state directory",
                subject=device.name,
            )
        return cls(
            store=store,
            home=home,
            name=checked_name(device.name),
            endpoint=endpoint,
            labels=device.labels,
            source=read_source(device.source) if device.source else None,
            root_key=fleet_root(home, store.fleet(), root_key),
            dry_run=dry_run,
            observer=observer,
            enroller=enroller,
        )

    def check_placement(self, placement: Placement) -> None:
        """Refuse to place an agent that is there already.

        Raises:
            UsageError: The device is not reached by SSH.
        """
        if placement != "auto" and self.endpoint.scheme != "ssh":
            raise UsageError(
                f"--{placement} needs an ssh:// device",
                hint="an agent that is reached otherwise has been installed already",
                subject=self.name,
            )

    def at_socket(self) -> AddResult:
        """Enrol the agent that listens at a Unix socket."""
        existing = check_free(self.store, self.name, self.endpoint.url)
        with connect(device=self.name, url=self.endpoint.url) as client:
            return self.join(client, self.endpoint.url, Known(), existing)

    def over_ssh(self, admin: AdminLogin, wheels: Path | None, placement: Placement = "auto") -> AddResult:
        """Install the agent where it is missing, start it, enrol it; a failure takes all of it back."""
        self.observer(DeviceProgress(self.name, "connecting"))
        earlier = self._earlier()
        ssh_config = ssh_config_for(earlier, admin) if earlier else admin.ssh_config
        with open_admin(
            self.endpoint,
            via=Endpoint.parse(admin.via) if admin.via else None,
            ssh_config=ssh_config,
            accept_host_key=admin.accept_host_key,
            ask=admin.ask,
            login_key=login_path(self.home),
            device=self.name,
            pinned=earlier.host_key if earlier else None,
            facts=earlier.facts if earlier else None,
        ) as session:
            existing = check_free(self.store, self.name, session.endpoint.url)
            _check_host_key(existing, session)
            self.observer(DeviceProgress(self.name, "probing"))
            installation = survey(DeviceShell(session, self.name), self.home, placement)
            self.observer(DeviceProgress(self.name, "probed", installation.probe.sentence))
            self._check_state(installation)
            if self.dry_run:
                installation.check_wheels(self.home, wheels)
                return self._foresee(installation, existing, session.endpoint.url)
            with Undo() as undo:
                outcome = installation.carry_out(
                    self.home, undo, offline=wheels, source=self.source, observer=self.observer
                )
                typed = typed_facts(self.endpoint.url, ssh_config)
                result = self._join_installed(installation, outcome, existing, session, typed)
            installation.tidy()
            return result

    def _check_state(self, installation: Installation) -> None:
        """Refuse what the agent would refuse, before it is installed and started for that."""
        found = installation.found
        if found.enrolled and found.root_key is not None:
            state = installation.places.state
            check_membership(self.store, self.name, found.root_key, found.member, state=state)

    def _earlier(self) -> Device | None:
        """The earlier enrolment under this name and address, as typed or as resolved."""
        for device in self.store.devices():
            typed_before = device.facts.get(URL_FACT)
            if device.name == self.name and self.endpoint.url in {device.url, typed_before}:
                return device
        return None

    def _foresee(self, installation: Installation, existing: Device | None, url: str) -> AddResult:
        steps = [installation.probe.sentence, *installation.intentions(self.source)]
        steps += installation.kept_source(self.source)
        if existing is None or not installation.found.enrolled:
            steps.append(f"enrol it as {self.name}")
        return AddResult(
            name=self.name, url=url, device=existing, changed=False, steps=tuple(steps), dry_run=True
        )

    def _join_installed(
        self,
        installation: Installation,
        outcome: Outcome,
        existing: Device | None,
        session: AdminSession,
        typed: Mapping[str, Json],
    ) -> AddResult:
        url, host_key = session.endpoint.url, session.host_key
        facts: dict[str, Json] = {
            **installation.facts(outcome.service),
            **session.route.facts(),
            LOGIN_FACT: login_id(self.home),
            **typed,
        }
        known = Known(
            host_key=host_key,
            arch=installation.probe.machine,
            python=installation.probe.python_version,
            facts=facts,
        )
        login_key = login_path(self.home)
        with connect(
            device=self.name, url=url, host_key=host_key, login_key=login_key, facts=facts
        ) as client:
            joined = self.join(client, url, known, existing)
        changes = (*outcome.done, *joined.steps)
        steps = (*changes, *installation.kept_source(self.source))
        return replace(joined, steps=steps, changed=bool(changes), verdict=outcome.verdict)

    def join(
        self,
        client: AgentClient,
        url: str,
        known: Known,
        existing: Device | None,
        *,
        token: str | None = None,
    ) -> AddResult:
        """Enrol the agent behind `client` unless that is so already; `token` is what HTTPS needs for it."""
        self.observer(DeviceProgress(self.name, "enrolling"))
        identity = client.identity()
        check_identity(self.store, self.name, identity)
        health, round_trip_ms = timed_health(client)
        member = enrolled_as(existing, identity)
        steps = _changed_key(existing, identity)
        if not member:
            steps.append(f"{'enrol' if self.dry_run else 'enrolled'} it as {self.name}, {_short(identity)}")
        elif existing is not None and not self.labels.items() <= existing.labels.items():
            steps.append(f"{'set' if self.dry_run else 'have set'} its labels")
        device = existing
        if existing is not None and member and not self.dry_run:
            device = self._refresh(existing, known, health)
        if steps and not self.dry_run:
            candidate = Candidate(
                name=self.name,
                url=url,
                labels=self.labels,
                client=client,
                identity=identity,
                agent_version=health.version,
                known=known,
                token=token,
            )
            device = self._relabel() if member else self._enrol(candidate)
        return AddResult(
            name=self.name,
            url=url,
            device=device,
            changed=bool(steps) and not self.dry_run,
            steps=tuple(steps),
            round_trip_ms=round_trip_ms,
            dry_run=self.dry_run,
        )

    def _enrol(self, candidate: Candidate) -> Device:
        if self.enroller is not None:
            return self.enroller(candidate)
        return enrol(self.store, self.home, [candidate], self.root_key)[0]

    def _refresh(self, device: Device, known: Known, health: Health) -> Device:
        """Bring the row up to what was learned, e.g. after an upgrade; nothing is written otherwise."""
        learned = (known.arch or device.arch, known.python or device.python, health.version)
        if learned == (device.arch, device.python, device.agent_version) and (
            known.facts.items() <= device.facts.items()
        ):
            return device
        arch, python, version = learned
        self.store.set_device_seen(
            device.name, agent_version=version, arch=arch, python=python, facts=known.facts
        )
        return self.store.device(device.name)

    def _relabel(self) -> Device:
        self.store.set_labels(self.name, self.labels)
        return self.store.device(self.name)


def add_agents(
    store: Store, home: Home, devices: Sequence[NewDevice], *, root_key: Path | None
) -> tuple[Device, ...]:
    """Enrol agents that listen on Unix sockets, all with one new roster; those enrolled already stay.

    Raises:
        FedctlError: As `add` does; no device gets a row then.
    """
    root = fleet_root(home, store.fleet(), root_key)
    with ExitStack() as clients:
        candidates = []
        for device in devices:
            name, url = checked_name(device.name), Endpoint.parse(device.url).url
            existing = check_free(store, name, url)
            client = clients.enter_context(connect(device=name, url=url))
            identity = client.identity()
            check_identity(store, name, identity)
            if not enrolled_as(existing, identity):
                candidate = Candidate(
                    name=name,
                    url=url,
                    labels=device.labels,
                    client=client,
                    identity=identity,
                    agent_version=client.health().version,
                    known=Known(),
                )
                candidates.append(candidate)
        if candidates:
            enrol(store, home, candidates, root)
    return tuple(store.device(device.name) for device in devices)


def checked_name(text: str) -> Name:
    """The name of a device.

    Raises:
        UsageError: When the grammar forbids it.
    """
    try:
        return Name(text, what="device name")
    except WireError as error:
        raise UsageError(str(error), subject=text, code=error.code) from error


def _check_host_key(existing: Device | None, session: AdminSession) -> None:
    if existing is None or existing.host_key == session.host_key:
        return
    raise TrustError(
        f"device {existing.name} shows another host key than at its enrolment",
        hint=f"if it was set up anew: fedctl devices remove {existing.name} --forget, then add it again",
        subject=existing.name,
        code="host_key",
    )


def _changed_key(existing: Device | None, identity: Identity) -> list[str]:
    """Says that a known name has another key now: somebody set the device up anew, or it is another one."""
    if existing is None or existing.identity_key == identity.identity_key:
        return []
    was, now = fingerprint(existing.identity_key), fingerprint(identity.identity_key)
    return [f"its identity key has changed: it was {was}, it is {now}"]


def _short(identity: Identity) -> str:
    return f"identity {fingerprint(identity.identity_key)}"

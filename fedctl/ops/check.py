"""`devices check`: why a device cannot be reached, step by step, and what is not well with one that answers.

The way is tried as every command goes it; the first step that fails ends it, and what lies behind it is
not reached. Nothing is changed on the device, not even its roster.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fedctl
from fedctl.core import check_verdicts as verdicts
from fedctl.core.check_verdicts import Finding, Verdict
from fedctl.core.clock import SYSTEM_CLOCK
from fedctl.core.errors import ConfigError, DeviceError, FedctlError, TrustError, UnreachableError
from fedctl.core.home import Home
from fedctl.core.progress import DeviceProgress, Observer, silent
from fedctl.core.records import Device, Fleet
from fedctl.ops.contact import reach
from fedctl.ops.enrolment.visit import admin_endpoint
from fedctl.release.keys import operator_certificate_path
from fedctl.store import Store
from fedctl.transport import AgentClient, Endpoint, sweep
from fedctl.transport.base import HTTPS_PORT, SSH_PORT
from fedctl.transport.jump import Route
from fedctl.transport.pool import PARALLEL
from fedctl.transport.reachability import addresses_of, port_open_ms
from fedctl_wire.messages import Health

_WAYS: Mapping[str, tuple[str, ...]] = {
    "ssh": ("name", "port", "host_key", "login", "bridge", "agent"),
    "jump": ("jump", "host_key", "login", "bridge", "agent"),
    "https": ("name", "port", "tls", "certificate", "agent"),
    "unix": ("socket", "agent"),
}
_THERE = ("identity", "version", "clock", "roster", "disk", "cgroup", "limits")
_PASSED = {
    "host_key": "host key as enrolled",
    "login": "login by the fleet's key",
    "bridge": "the agent's bridge starts",
    "tls": "TLS with its identity key",
    "socket": "socket there",
}
_STEPS = {  # by an error's code: the step that it ends
    "host_key": "host_key",
    "login": "login",
    "chatty_login": "bridge",
    "no_agent": "bridge",
    "no_session": "bridge",
    "socket_mode": "agent",
    "agent_down": "agent",
    "no_tls": "tls",
    "old_tls": "tls",
    "identity": "tls",
    "client_certificate": "certificate",
    "no_certificate": "certificate",
}
_PHRASES = (  # of errors of the connection, which have one code
    (" is behind ", "jump"),
    ("SSH handshake", "host_key"),
    ("hung up before the agent", "bridge"),
    ("TLS handshake", "tls"),
    ("may not open", "socket"),
)
_HINTS = {  # where an error has none, by the step that it ends
    "host_key": "does an SSH server listen there? Try: ssh -v {url}",
    "bridge": "`fedctl devices add {name} {url}` repairs the installation (run it again)",
    "tls": "does an agent listen there? At the device: fedctl-agent enrol says where it listens",
    "": "look at the agent's log there, and run `fedctl devices add {name} {url}` again, which repairs it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCheck:
    """One device's findings, in the order of the way to it."""

    device: str
    url: str
    findings: tuple[Finding, ...]
    error: FedctlError | None = None  # what the command's exit code is made of; None: nothing failed

    @property
    def reached(self) -> bool:
        """Whether its agent answered."""
        return any(f.check == "agent" and f.verdict is Verdict.WELL for f in self.findings)


def check(
    store: Store,
    home: Home,
    devices: Sequence[Device],
    *,
    timeout_s: float = 10.0,
    parallel: int = PARALLEL,
    observer: Observer = silent,
) -> tuple[DeviceCheck, ...]:
    """Go the way to every device, concurrently; the results come in the same order.

    Args:
        store: The fleet's database; the time of an answer is recorded.
        home: Its keys.
        devices: Which.
        timeout_s: For each step.
        parallel: How many at the same time.
        observer: Told each result.

    Raises:
        ConfigError: The database or the home cannot be read.
    """
    fleet = store.fleet()

    def work(device: Device) -> DeviceCheck:
        return _Walk(home, fleet, device, timeout_s).go()

    found = {}
    for device, result in sweep(devices, work, parallel=parallel):
        if isinstance(result, FedctlError):
            raise result  # of this machine, not of the device: `go` keeps those
        found[device.name] = result
        observer(DeviceProgress(device.name, "reached" if result.reached else "not reached"))
    with store.transaction():
        for result in found.values():
            if result.reached and not isinstance(result.error, TrustError):
                store.set_device_seen(result.device)
    return tuple(found[device.name] for device in devices)


@dataclass(slots=True)
class _Walk:
    """The way to one device."""

    home: Home
    fleet: Fleet
    device: Device
    timeout_s: float
    findings: list[Finding] = field(default_factory=list)
    error: FedctlError | None = None

    def go(self) -> DeviceCheck:
        """All steps, as far as one leads to the next."""
        endpoint = Endpoint.parse(self.device.url)
        way = _WAYS["jump" if self.device.facts.get("jump") else endpoint.scheme]
        try:
            self._before(way, endpoint)
            with reach(self.home, self.device, timeout_s=self.timeout_s) as client:
                self._connect(client, way)
        except FedctlError as error:
            self._end(way, error)
        done = {finding.check for finding in self.findings}
        for step in (*way, *_THERE):
            if step not in done:
                self.findings.append(Finding(step, Verdict.NOT_REACHED))
        return DeviceCheck(
            device=self.device.name, url=self.device.url, findings=tuple(self.findings), error=self.error
        )

    def _before(self, way: Sequence[str], endpoint: Endpoint) -> None:
        """What can be tried without an agent."""
        name = self.device.name
        if "name" in way:
            found = addresses_of(endpoint.host, device=name)
            literal = endpoint.host in found
            shown = endpoint.host if literal else f"name resolves ({', '.join(found[:2])})"
            self._well("name", f"address {shown}" if literal else shown)
            port = endpoint.port or (HTTPS_PORT if endpoint.scheme == "https" else SSH_PORT)
            took_ms = port_open_ms(endpoint.host, port, device=name, timeout_s=self.timeout_s)
            self._well("port", f"port {port} open ({took_ms:.0f} ms)")
        if "socket" in way and not Path(endpoint.path).exists():
            raise UnreachableError(  # the transport says that nobody listens, which is not the same
                f"there is no {endpoint.path}",
                hint="start the agent there: fedctl-agent serve",
                subject=name,
                code="socket",
            )

    def _connect(self, client: AgentClient, way: Sequence[str]) -> None:
        """The first answer proves all steps of the way; then what the device says of itself."""
        client.health()  # connects
        begin = time.perf_counter()
        health = client.health()
        took_ms = (time.perf_counter() - begin) * 1000
        self._pass(way[:-1])
        self._well("agent", f"agent answers ({took_ms:.0f} ms)")
        self._check_identity(client, health)
        ours = SYSTEM_CLOCK.now()
        self._add(verdicts.judge_version(self.device.name, health.version, fedctl.__version__))
        self._add(verdicts.judge_clock(health.time, ours))
        self._add(verdicts.judge_roster(self.device.name, health.roster_serial, self.fleet.roster_serial))
        status = client.status()
        policy = verdicts.judge_policy(self.device.name, admin_endpoint(self.device).url, status)
        for finding in (
            *([policy] if policy else []),
            verdicts.judge_disk(status),
            verdicts.judge_cgroup(status),
            verdicts.judge_limits(status),
        ):
            self._add(finding)

    def _check_identity(self, client: AgentClient, health: Health) -> None:
        """Whether the one that answers is the one that was enrolled.

        Raises:
            TrustError: It is another one, or belongs to another fleet.
        """
        identity = client.identity()
        name = self.device.name
        problem = ""
        if identity.identity_key != self.device.identity_key:
            problem = "shows another identity than at its enrolment"
        elif not identity.enrolled or health.device != name:
            problem = f"is not enrolled as {name} any more"
        elif identity.root_key != self.fleet.root_key:
            problem = "is enrolled in another fleet"
        if problem:
            raise TrustError(
                f"device {name} {problem}",
                hint=f"look which device has {self.device.url} now; if it was set up anew: "
                f"fedctl devices add {name} {self.device.url}",
                subject=name,
                code="other_identity",
            )
        self._well("identity", "identity as enrolled")

    def _end(self, way: Sequence[str], error: FedctlError) -> None:
        """Say which step an error ends; those before it went well."""
        step = _step_of(error, way, {finding.check for finding in self.findings})
        if step in way and not isinstance(error, ConfigError):  # of this machine: nothing was tried
            self._pass(way[: way.index(step)])
        self.error = error
        hint = error.hint or _HINTS.get(step, _HINTS[""]).format(
            name=self.device.name, url=admin_endpoint(self.device).url
        )
        self.findings.append(Finding(step, Verdict.FAILED, error.message, hint))

    def _pass(self, steps: Sequence[str]) -> None:
        done = {finding.check for finding in self.findings}
        for step in steps:
            if step == "certificate":
                self._add(_certificate(self.home))
            elif step == "jump":
                hops = Route.from_facts(self.device.facts).hops
                self._well(step, f"through {', '.join(hop.name for hop in hops)}")
            elif step not in done:
                self._well(step, _PASSED[step])

    def _well(self, step: str, text: str) -> None:
        self.findings.append(Finding(step, Verdict.WELL, text))

    def _add(self, finding: Finding) -> None:
        self.findings.append(finding)
        if finding.verdict is Verdict.FAILED and self.error is None:
            self.error = DeviceError(finding.text, hint=finding.hint, subject=self.device.name)


def _step_of(error: FedctlError, way: Sequence[str], done: set[str]) -> str:
    """Which step of the way an error ends."""
    if error.code in {*way, "name", "port"}:
        return error.code
    if error.code == "other_identity":
        return "identity"
    named = next((step for phrase, step in _PHRASES if phrase in error.message and step in way), None)
    step = named or _STEPS.get(error.code, "agent")
    if step in way and step not in done:
        return step
    return next(step for step in (*way, *_THERE) if step not in done)


def _certificate(home: Home) -> Finding:
    """How long what this workstation shows is accepted."""
    from cryptography.x509 import load_pem_x509_certificate

    certificate = load_pem_x509_certificate(operator_certificate_path(home).read_bytes())
    return verdicts.judge_certificate(certificate.not_valid_after_utc, SYSTEM_CLOCK.now())

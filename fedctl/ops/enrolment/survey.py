"""What is on a device before anything is installed, and whether an agent can live there. Changes nothing."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Literal

from fedctl.core.errors import DeviceError, ExitCode, UsageError
from fedctl.core.records import Device
from fedctl.ops.enrolment.ondevice import files, probe, service
from fedctl.ops.enrolment.shell import DeviceShell
from fedctl.release import wheels
from fedctl_wire.codec import Json, from_json
from fedctl_wire.errors import WireError

Placement = Literal["auto", "system", "user"]
ACCOUNT = "fedctl"  # of a system's agent: user and group

_AWKWARD = frozenset("\"'\\%$`\r\n")  # in a home directory: some launcher, table or unit cannot hold them


@dataclass(frozen=True, slots=True)
class Probe:
    """What a device said of itself; see `fedctl.ops.enrolment.ondevice.probe`."""

    python: tuple[int, ...]
    executable: str
    cache_tag: str
    bytecode_magic: str  # hex
    machine: str
    libc: str  # "glibc 2.36", "musl" or ""
    system: str
    user: str
    home: str
    importable: dict[str, str]  # distribution: version
    free_memory_bytes: int | None
    free_disk_bytes: int
    systemd_user: bool
    systemd_system: bool
    root: bool  # the login is root's
    installed: tuple[str, ...]  # launchers of agents, of `Places`
    package_manager: str  # "apt-get", "dnf" … or ""

    @property
    def python_version(self) -> str:
        """As people write it, "3.11.2"."""
        return ".".join(map(str, self.python))

    @property
    def platform(self) -> wheels.Platform:
        """What wheels must fit."""
        major, minor = self.libc.split()[1].split(".")[:2]
        return wheels.Platform((self.python[0], self.python[1]), self.machine, (int(major), int(minor)))

    @property
    def sentence(self) -> str:
        """The device in one line for a person."""
        free = {"memory": self.free_memory_bytes, "disk": self.free_disk_bytes}
        room = "".join(
            f", {size / 1e6:.0f} MB of {what} free" for what, size in free.items() if size is not None
        )
        systemd = self.systemd_user or (self.root and self.systemd_system)
        manager = "systemd" if systemd else "no systemd for this user"
        return f"{self.system}, {self.machine}, Python {self.python_version}{room}, {manager}"


@dataclass(frozen=True, slots=True)
class Found:
    """What earlier runs left on the device; see `inspect` of `fedctl.ops.enrolment.ondevice.files`."""

    launcher: str | None
    key_line: bool
    authorized_keys: str | None  # base64 of the file
    state: bool
    enrolled: bool
    trust_files: tuple[str, ...]
    sources: tuple[str, ...]
    root_key: str | None = None  # that its enrolment pinned
    member: str | None = None  # its name in that fleet


@dataclass(frozen=True, slots=True)
class Places:
    """Where the agent lives on a device: below the login's home directory, or in the system's places."""

    home: str
    system: bool = False

    @property
    def placement(self) -> str:
        """As `--system` and `--user` name it."""
        return "system" if self.system else "user"

    @property
    def prefix(self) -> str:
        """The agent's own files."""
        return "/usr/lib/fedctl-agent" if self.system else f"{self.home}/.local/share/fedctl/agent"

    @property
    def state(self) -> str:
        """Identity, models, tasks, spool."""
        return "/var/lib/fedctl-agent" if self.system else f"{self.home}/.local/share/fedctl/state"

    @property
    def launcher(self) -> str:
        """The program, and the pointer to the installed version."""
        return f"{self.prefix}/bin/fedctl-agent"

    @property
    def socket(self) -> str:
        """Where the agent listens."""
        return "/run/fedctl-agent/agent.sock" if self.system else f"{self.state}/agent.sock"

    @property
    def owner(self) -> str | None:
        """The account that the state belongs to; None: the login's own."""
        return ACCOUNT if self.system else None

    @property
    def dial_command(self) -> str:
        """The one command that the login key may run."""
        return shlex.join([self.launcher, "dial-stdio", "--socket", self.socket])


@dataclass(frozen=True, slots=True)
class Site:
    """Where on a device the agent goes or is, and the shell that may write there."""

    probe: Probe  # as that shell sees the device; user and home are those of the login
    places: Places
    shell: DeviceShell  # root's where the places are the system's


def find_site(shell: DeviceShell, wanted: Placement) -> Site:
    """Ask the device what it is, and decide where the agent goes; one that is there stays where it is.

    Raises:
        UsageError: There is one in the other place than wanted.
        DeviceError: The device cannot carry an agent, or none of the system's, with the reason.
        UnreachableError: The connection broke.
    """
    facts = probe_device(shell)
    places = _choose(shell.device, facts, wanted)
    if not places.system or facts.root:
        return Site(facts, places, shell)
    by_sudo = shell.by_sudo()
    as_root = probe_device(by_sudo, place=places.prefix)
    return Site(replace(as_root, user=facts.user, home=facts.home), places, by_sudo)


def _choose(device: str, facts: Probe, wanted: Placement) -> Places:
    places = {"user": Places(facts.home), "system": Places(facts.home, system=True)}
    there = [name for name, place in places.items() if _has_agent(facts, place)]
    if wanted == "auto":
        usual = "system" if facts.root and facts.systemd_system else "user"
        return places[there[0] if there else usual]
    if there and wanted not in there:
        raise UsageError(
            f"device {device} has an agent already, in {places[there[0]].prefix}",
            hint=f"leave out --{wanted}; to move it, remove the device from its fleet first and add it again",
            subject=device,
            code="placement",
        )
    if wanted == "system" and not facts.systemd_system:
        raise DeviceError(
            f"device {device} is not run by systemd, which an agent of the system needs",
            hint="use --user: the agent's own supervisor keeps it running",
            subject=device,
            exit_code=ExitCode.CONFIG,
            code="systemd",
        )
    return places[wanted]


def _has_agent(facts: Probe, places: Places) -> bool:
    return any(places.launcher in {path, path.replace("~", facts.home, 1)} for path in facts.installed)


def placement_of(device: Device) -> Placement:
    """Where an enrolled device's agent was put; `auto`, so where it is found, when that is not known."""
    placement = device.facts.get("placement")
    return "system" if placement == "system" else "user" if placement == "user" else "auto"


def probe_device(shell: DeviceShell, *, place: str | None = None) -> Probe:
    """Ask the device what it is; `place` is where the agent will be, for the free disk.

    Raises:
        DeviceError: It cannot carry an agent, with the reason.
        UnreachableError: The connection broke.
    """
    launchers = [Places("~").launcher, Places("~", system=True).launcher]
    answer = shell.call(
        probe, "probe", distributions=list(wheels.NEEDED), launchers=list[Json](launchers), place=place
    )
    try:
        found = from_json(Probe, answer)
    except WireError as error:
        raise DeviceError(f"device {shell.device}: {error}", subject=shell.device) from error
    if not found.libc.startswith("glibc "):
        raise DeviceError(
            f"device {shell.device} has {found.libc or 'an unknown C library'}; wheels need glibc",
            hint="fedctl brings the agent's packages as wheels for glibc, and is tested with that only: "
            "use a system with it, e.g. Debian, Raspberry Pi OS, Fedora or a Yocto image",
            subject=shell.device,
            exit_code=ExitCode.CONFIG,
            code="libc",
        )
    if _AWKWARD & set(found.home):
        raise DeviceError(
            f"device {shell.device}: the home directory {found.home!r} has characters that cannot be quoted",
            hint="log in as a user whose home directory has a plain name",
            subject=shell.device,
            exit_code=ExitCode.CONFIG,
            code="home",
        )
    return found


def inspect(login: DeviceShell, site: Site, key_line: str) -> Found:
    """Ask the device what earlier runs left there."""
    where: dict[str, Json] = {"launcher": site.places.launcher, "state": site.places.state}
    if site.shell is login:
        return from_json(Found, login.call(files, "inspect", **where, key_line=key_line))
    found = site.shell.call(files, "inspect", **where)
    return from_json(Found, {**found, **login.call(files, "inspect_key", line=key_line)})


@dataclass(frozen=True, slots=True)
class Service:
    """How the agent there runs; see `survey` of `fedctl.ops.enrolment.ondevice.service`."""

    state: str  # "stopped", "outdated", "movable" or "runs"
    unit: str | None = None  # the text of the unit in its place


def service_of(site: Site, unit: str) -> Service:
    """Ask the device how the agent there runs; `unit` is the one that should keep it."""
    places = site.places
    answer = site.shell.call(service, "survey", socket=places.socket, unit=unit, system=places.system)
    return from_json(Service, answer)

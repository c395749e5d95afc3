"""What is on a device before anything is installed, and whether an agent can live there. Changes nothing."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from fedctl.core.errors import DeviceError, ExitCode
from fedctl.ops.enrolment.ondevice import files, probe, service
from fedctl.ops.enrolment.shell import DeviceShell
from fedctl.release import wheels
from fedctl_wire.codec import from_json
from fedctl_wire.errors import WireError

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
        memory = "" if self.free_memory_bytes is None else f", {self.free_memory_bytes / 1e6:.0f} MB free"
        manager = "systemd" if self.systemd_user else "no systemd for this user"
        return f"{self.system}, {self.machine}, Python {self.python_version}{memory}, {manager}"


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


@dataclass(frozen=True, slots=True)
class Places:
    """Where the agent lives on a device, below the login's home directory."""

    home: str

    @property
    def prefix(self) -> str:
        """The agent's own files."""
        return f"{self.home}/.local/share/fedctl/agent"

    @property
    def state(self) -> str:
        """Identity, models, tasks, spool."""
        return f"{self.home}/.local/share/fedctl/state"

    @property
    def launcher(self) -> str:
        """The program, and the pointer to the installed version."""
        return f"{self.prefix}/bin/fedctl-agent"

    @property
    def socket(self) -> str:
        """Where the agent listens."""
        return f"{self.state}/agent.sock"

    @property
    def dial_command(self) -> str:
        """The one command that the login key may run."""
        return shlex.join([self.launcher, "dial-stdio", "--socket", self.socket])


def probe_device(shell: DeviceShell) -> Probe:
    """Ask the device what it is.

    Raises:
        DeviceError: It cannot carry an agent, with the reason.
        UnreachableError: The connection broke.
    """
    answer = shell.call(probe, "probe", distributions=list(wheels.NEEDED))
    try:
        found = from_json(Probe, answer)
    except WireError as error:
        raise DeviceError(f"device {shell.device}: {error}", subject=shell.device) from error
    if not found.libc.startswith("glibc "):
        raise DeviceError(
            f"device {shell.device} has {found.libc or 'an unknown C library'}; wheels need glibc",
            hint="use a system with glibc, e.g. Debian, Raspberry Pi OS, Fedora or a Yocto image with it",
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


def inspect(shell: DeviceShell, places: Places, key_line: str) -> Found:
    """Ask the device what earlier runs left there."""
    answer = shell.call(files, "inspect", launcher=places.launcher, state=places.state, key_line=key_line)
    return from_json(Found, answer)


def running(shell: DeviceShell, places: Places) -> bool:
    """Whether an agent answers at the socket there."""
    return bool(shell.call(service, "running", socket=places.socket))

"""Installing the agent on a device over the admin's login, without pip and without internet there.

`survey` looks and decides, `Installation.carry_out` does it. Whatever a run changed is taken back when
the run fails: every change first registers how to undo it.
"""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import fedctl
from fedctl.core.errors import DeviceError, ExitCode
from fedctl.core.home import Home
from fedctl.core.progress import DeviceProgress, Observer
from fedctl.ops.enrolment.ondevice import files, service
from fedctl.ops.enrolment.shell import DeviceShell
from fedctl.ops.enrolment.source import Source
from fedctl.ops.enrolment.survey import Found, Places, Probe, inspect, probe_device, running
from fedctl.ops.enrolment.undo import Undo
from fedctl.release import wheels
from fedctl.release.keys import login_key_line
from fedctl.release.payload import BYTECODE_MAGIC, build_payload, wheel_bytecode
from fedctl_wire.codec import Json

_UPLOAD_DEADLINE_S = 1800.0  # 25 MB over the slowest radio that is worth the wait, and unpacking
_SPARE_DISK_BYTES = 16 * 1024 * 1024  # left free for state and logs
_START_PROGRAM = 'import sys; sys.argv[0] = "fedctl-agent"; from fedctl_agent.main import main; main()'
_BRIDGE_PROGRAM = (
    "import sys; sys.path.insert(0, {tree!r}); "
    "from fedctl_agent.dial_stdio import run; sys.exit(run(sys.argv[1]))"
)


def launcher_text(python: str, tree: str) -> str:
    """A launcher: the system's Python with the installed tree before its own packages.

    The bridge of an SSH connection starts without `site`, which halves its CPU time: one starts a channel.
    """
    bridge = _BRIDGE_PROGRAM.format(tree=tree)
    return (
        "#!/bin/sh\n"
        f'[ "$1" = dial-stdio ] && exec {shlex.quote(python)} -I -S -c {shlex.quote(bridge)} "$3"\n'
        f"export PYTHONPATH={shlex.quote(tree)} PYTHONSAFEPATH=1\n"
        f'exec {shlex.quote(python)} -c {shlex.quote(_START_PROGRAM)} "$@"\n'
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `carry_out` changed, one sentence each, and how the agent comes back after a reboot."""

    done: tuple[str, ...]
    verdict: str
    service: str  # "systemd" or "supervisor"


@dataclass(frozen=True, slots=True)
class Installation:
    """One device's survey, and what there is to do."""

    shell: DeviceShell
    probe: Probe
    found: Found
    running: bool
    places: Places
    key_line: str
    version: str  # names the installed tree
    distributions: tuple[str, ...]  # that must travel

    @property
    def device(self) -> str:
        """The device's name."""
        return self.shell.device

    @property
    def launcher_text(self) -> str:
        """The launcher's content; another one means that this tree is not the installed one."""
        tree = f"{self.places.prefix}/versions/{self.version}"
        return f"{launcher_text(self.probe.executable, tree)}# fedctl-agent {self.version}\n"

    @property
    def up_to_date(self) -> bool:
        """Whether this very tree is installed."""
        return self.found.launcher == self.launcher_text

    def intentions(self, source: Source | None) -> tuple[str, ...]:
        """What `carry_out` would do, one sentence each; empty when nothing is missing."""
        sentences = []
        if not self.up_to_date:
            travelling = f" with {', '.join(self.distributions)}" if self.distributions else ""
            sentences.append(f"install fedctl-agent {fedctl.__version__}{travelling} in {self.places.prefix}")
        if source is not None and not self.found.sources:
            sentences.append(f"copy the source {source.name} to {self.places.state}/sources")
        if not self.found.key_line:
            sentences.append("add the restricted login key to ~/.ssh/authorized_keys")
        if not self.running:
            sentences.append("start the agent")
        return tuple(sentences)

    def kept_source(self, source: Source | None) -> tuple[str, ...]:
        """Says that `source` is not copied, since there is one already, and how it would be replaced."""
        if source is None or not self.found.sources:
            return ()
        there = ", ".join(self.found.sources)
        where = f"{self.places.state}/sources"
        return (
            f"kept the source that is there: {there} (only someone at the device can replace it: {where})",
        )

    def carry_out(
        self, home: Home, undo: Undo, *, offline: Path | None, source: Source | None, observer: Observer
    ) -> Outcome:
        """Install what is missing and start the agent.

        Args:
            home: Holds the wheel cache.
            undo: Gets the undoing of every change.
            offline: A directory of wheels to use instead of the internet.
            source: Where the device's data is; not copied when it has a source already.
            observer: Told each step.

        Raises:
            DeviceError: A step failed there.
            ConfigError: No wheel fits the device.
            UnreachableError: The connection broke.
        """
        done: list[str] = []
        if not self.up_to_date:
            self._unpack(home, undo, offline, observer)
            done.append(f"installed fedctl-agent {fedctl.__version__} in {self.places.prefix}")
        done += self._prepare_state(undo, source)
        done += self._add_key(undo)
        observer(DeviceProgress(self.device, "starting"))
        if not self.found.enrolled:
            undo.add("the agent still runs", lambda: self._service("stop"))
        started = self._service("start", restart=not self.up_to_date)
        if started["changed"]:
            done.append("started the agent")
        return Outcome(tuple(done), started["verdict"], started["service"])

    def tidy(self) -> None:
        """Delete earlier versions, once nothing can send the device back to them."""
        self._files("forget_other_versions", prefix=self.places.prefix, version=self.version)

    # ------------------------------------------------------------------ steps

    def _unpack(self, home: Home, undo: Undo, offline: Path | None, observer: Observer) -> None:
        observer(DeviceProgress(self.device, "preparing", f"wheels for {self.probe.platform.label}"))
        parts = self._parts(home, offline)
        size = sum(map(len, parts))
        self._check_disk(parts)
        observer(DeviceProgress(self.device, "installing", f"{size / 1e6:.1f} MB", bytes_down=size))
        where: dict[str, Json] = {"prefix": self.places.prefix, "version": self.version}
        before = self.found.launcher
        if self.found.enrolled and before is not None:
            undo.add("the agent does not run", lambda: self._service("start", restart=True))
        undo.add(self.places.prefix, lambda: self._files("undo_unpack", **where, launcher=before))
        self._files(
            "unpack",
            **where,
            data=b"".join(parts),
            launcher=self.launcher_text,
            sizes=[len(part) for part in parts],
            byte_compile=not self._same_bytecode,
        )

    def _prepare_state(self, undo: Undo, source: Source | None) -> list[str]:
        copied = source if source is not None and not self.found.sources else None
        before: Mapping[str, Json] = {
            "state": self.places.state,
            "trust_files": list(self.found.trust_files),
            "existed": self.found.state,
            "source": copied.name if copied else None,
        }
        undo.add(self.places.state, lambda: self._files("undo_state", **before))
        self._files("keygen", launcher=self.places.launcher, state=self.places.state)
        if copied is None:
            return []
        self._files("add_source", state=self.places.state, name=copied.name, text=copied.text)
        return [f"copied the source {copied.name}"]

    def _add_key(self, undo: Undo) -> list[str]:
        key: dict[str, Json] = {"line": self.key_line}
        before = self.found.authorized_keys
        undo.add("the key in authorized_keys", lambda: self._files("undo_key", **key, before=before))
        return ["added the restricted login key"] if self._files("add_key", **key) else []

    # ------------------------------------------------------------------ plumbing

    @property
    def _same_bytecode(self) -> bool:
        return self.probe.bytecode_magic == BYTECODE_MAGIC and bool(self.probe.cache_tag)

    def _parts(self, home: Home, offline: Path | None) -> list[bytes]:
        """The zip files to unpack over each other: agent, wheels, and byte code where it fits."""
        tag = self.probe.cache_tag if self._same_bytecode else None
        platform = self.probe.platform
        parts = [build_payload(tag).archive]
        for wheel in wheels.fetch(self.distributions, platform, home.wheels, offline=offline):
            parts.append(wheel.read_bytes())
            if tag is not None:
                parts.append(wheel_bytecode(wheel, tag, home.wheels / platform.label))
        return parts

    def _check_disk(self, parts: list[bytes]) -> None:
        needed = max(map(len, parts)) + _SPARE_DISK_BYTES
        for part in parts:
            with zipfile.ZipFile(BytesIO(part)) as archive:
                needed += sum(info.file_size for info in archive.infolist())
        if needed > self.probe.free_disk_bytes:
            raise DeviceError(
                f"device {self.device} has {self.probe.free_disk_bytes / 1e6:.0f} MB free in "
                f"{self.probe.home}, the agent needs {needed / 1e6:.0f} MB",
                hint="free some space, or install numpy and cryptography there by its package manager",
                subject=self.device,
                exit_code=ExitCode.CONFIG,
                code="disk",
            )

    def _files(self, verb: str, *, data: bytes = b"", **arguments: Json) -> Json:
        deadline = _UPLOAD_DEADLINE_S if data else None
        return self.shell.call(files, verb, data=data, timeout_s=deadline, **arguments)

    def _service(self, verb: str, **arguments: Json) -> Json:
        places = self.places
        where: dict[str, Json] = {"launcher": places.launcher, "state": places.state, "socket": places.socket}
        return self.shell.call(service, verb, **where, **arguments)


def survey(shell: DeviceShell, home: Home) -> Installation:
    """Look at the device and decide what an installation would do there; changes nothing.

    Raises:
        DeviceError: It cannot carry an agent, with the reason.
        ConfigError: The login key, or this installation's own packages, cannot be read.
        UnreachableError: The connection broke.
    """
    facts = probe_device(shell)
    if shell.chatter:  # the login key's one command would be preceded by it, too
        raise DeviceError(
            f"device {shell.device}: the login of {facts.user} prints {shell.chatter[:80]!r} on its own",
            hint="its shell start-up file (.bashrc, .profile) must be silent when it is not interactive",
            subject=shell.device,
            exit_code=ExitCode.CONFIG,
            code="chatty_login",
        )
    places = Places(facts.home)
    key_line = login_key_line(home, places.dial_command)
    distributions = wheels.missing(facts.importable)
    names = "\n".join([build_payload().digest, facts.executable, *distributions])
    return Installation(
        shell=shell,
        probe=facts,
        found=inspect(shell, places, key_line),
        running=running(shell, places),
        places=places,
        key_line=key_line,
        version=f"{fedctl.__version__}-{sha256(names.encode()).hexdigest()[:12]}",
        distributions=distributions,
    )


def uninstall(shell: DeviceShell, home: Home, *, purge: bool) -> tuple[str, ...]:
    """Stop and delete the agent and the login key's line; the state directory only with `purge`.

    Files that a source names are never deleted.

    Returns:
        What was done, one sentence each.

    Raises:
        DeviceError: A step failed there.
        UnreachableError: The connection broke.
    """
    places = Places(probe_device(shell).home)
    where: dict[str, Json] = {"launcher": places.launcher, "state": places.state, "socket": places.socket}
    shell.call(service, "stop", **where)
    done = [f"stopped the agent and deleted {places.prefix}"]
    if shell.call(files, "remove_key", line=login_key_line(home, places.dial_command)):
        done.append("took the login key out of authorized_keys")
    kept = shell.call(files, "delete", prefix=places.prefix, state=places.state, purge=purge)["kept"]
    done.append(f"deleted {places.state}" if purge else f"left {places.state} in place (--purge deletes it)")
    if kept:
        done.append(f"kept what its sources name: {', '.join(kept)}")
    return tuple(done)

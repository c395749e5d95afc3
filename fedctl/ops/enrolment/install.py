"""Installing the agent on a device over the admin's login, without pip and without internet there.

`survey` looks and decides, `Installation.carry_out` does it. Whatever a run changed is taken back when
the run fails: every change first registers how to undo it.
"""

from __future__ import annotations

import shlex
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import fedctl
from fedctl.core.errors import ConfigError, DeviceError, ExitCode
from fedctl.core.home import Home
from fedctl.core.progress import DeviceProgress, Observer
from fedctl.ops.enrolment.ondevice import account, files, service
from fedctl.ops.enrolment.shell import DeviceShell
from fedctl.ops.enrolment.source import Source
from fedctl.ops.enrolment.survey import (
    ACCOUNT,
    Found,
    Placement,
    Places,
    Probe,
    Service,
    find_site,
    inspect,
    service_of,
)
from fedctl.ops.enrolment.undo import Undo
from fedctl.release import wheels
from fedctl.release.keys import login_key_line
from fedctl.release.payload import BYTECODE_MAGIC, build_payload, unit_text, wheel_bytecode
from fedctl_wire.codec import Json

START_PATIENCE_S = 30.0  # for an agent to listen: a small board reads its Python from a slow card
_UPLOAD_DEADLINE_S = 1800.0  # 25 MB over the slowest radio that is worth the wait, and unpacking
_SERVICE_DEADLINE_S = 90.0  # for stopping what runs, and for systemd's own words
_SPARE_DISK_BYTES = 16 * 1024 * 1024  # left free for state and logs
_WELL_SERVED = frozenset({"x86_64", "aarch64"})  # machines for which the index has all wheels
_INSTALL_WORDS = {"dnf": "dnf install", "zypper": "zypper install", "opkg": "opkg install"}
_SERVICE_INTENTIONS = {
    "stopped": "start the agent",
    "outdated": "renew its unit and start the agent again",
    "movable": "move the agent from its supervisor to systemd",
}
_PREPARING = threading.Lock()  # of many devices the first fills the caches, instead of each downloading
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

    shell: DeviceShell  # the login's
    work: DeviceShell  # whoever may write where the agent goes: the login, or root
    probe: Probe
    found: Found
    service: Service
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
            if self.places.system:
                sentences.append(f"let it run as {ACCOUNT}, whose group {self.probe.user} joins")
        if source is not None and not self.found.sources:
            sentences.append(f"copy the source {source.name} to {self.places.state}/sources")
        if not self.found.key_line:
            sentences.append("add the restricted login key to ~/.ssh/authorized_keys")
        if self.service.state in _SERVICE_INTENTIONS:
            sentences.append(_SERVICE_INTENTIONS[self.service.state])
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
            done += self.put(home, undo, offline, observer)
        elif self.places.system:
            done += self._prepare_account(undo)
        done += self.prepare_state(undo, source)
        done += self._add_key(undo)
        observer(DeviceProgress(self.device, "starting"))
        if not self.found.enrolled or self.found.launcher is None:  # nothing of it ran that should again
            undo.add("the agent still runs", lambda: self._service("stop"))
        started = self.start(restart=not self.up_to_date)
        return Outcome((*done, *started.done), started.verdict + self._closed_data(), started.service)

    def put(self, home: Home, undo: Undo, offline: Path | None, observer: Observer) -> list[str]:
        """Put this version on the device, and the account that it runs as; what runs there runs on."""
        observer(DeviceProgress(self.device, "preparing", f"wheels for {self.probe.platform.label}"))
        parts = self._parts(home, offline)  # what does not fit is refused before anything is changed
        self._check_disk(parts)
        done = self._prepare_account(undo) if self.places.system else []
        self._unpack(parts, undo, observer)
        return [f"installed fedctl-agent {fedctl.__version__} in {self.places.prefix}", *done]

    def start(self, *, restart: bool, patience_s: float = START_PATIENCE_S) -> Outcome:
        """Make the agent run; with `restart` by the version that the launcher points at now."""
        unit = unit_text(self.places.placement)
        started = self._service("start", unit=unit, restart=restart, patience_s=patience_s)
        return Outcome(tuple(filter(None, [started["done"]])), started["verdict"], started["service"])

    def facts(self, service: str) -> dict[str, Json]:
        """What the device's row keeps of the installation; `service` is what keeps the agent running."""
        return {
            "system": self.probe.system,
            "prefix": self.places.prefix,
            "state": self.places.state,
            "placement": self.places.placement,
            "service": service,
            "payload": build_payload().digest,
        }

    def check_wheels(self, home: Home, offline: Path | None) -> None:
        """Fail now where the wheels would be missing; only where that has to be feared.

        Raises:
            ConfigError: Saying what is missing, and how to get it.
        """
        if self.distributions and (offline is not None or self.probe.machine not in _WELL_SERVED):
            self._wheels(home, offline)

    def tidy(self) -> None:
        """Delete earlier versions, once nothing can send the device back to them."""
        self._files("forget_other_versions", prefix=self.places.prefix, version=self.version)

    # ------------------------------------------------------------------ steps

    def _prepare_account(self, undo: Undo) -> list[str]:
        login = self.probe.user
        who: dict[str, Json] = {"account": ACCOUNT, "login": login}
        did = self.work.call(account, "prepare", state=self.places.state, **who)
        undo.add(f"the account {ACCOUNT}", lambda: self.work.call(account, "undo", **who, **did))
        made = [f"made the account {ACCOUNT}"] if did["made"] else []
        return [*made, *([f"let {login} into the group {ACCOUNT}"] if did["joined"] else [])]

    def _closed_data(self) -> str:
        """Says which data the system's agent cannot read: its account is not the login's."""
        if not self.places.system:
            return ""
        closed = self._files("unreadable", state=self.places.state, owner=ACCOUNT)
        what = f"; but the account {ACCOUNT} may not read {', '.join(closed)}: give it the right to, "
        return f"{what}or put the data where it may, e.g. below /srv" if closed else ""

    def _unpack(self, parts: list[bytes], undo: Undo, observer: Observer) -> None:
        size = sum(map(len, parts))
        observer(DeviceProgress(self.device, "installing", f"{size / 1e6:.1f} MB", bytes_down=size))
        where: dict[str, Json] = {"prefix": self.places.prefix, "version": self.version}
        before = self.found.launcher
        if self.found.enrolled and before is not None:
            unit = self.service.unit or unit_text(self.places.placement)
            undo.add("the agent does not run", lambda: self._service("start", unit=unit, restart=True))
        undo.add(self.places.prefix, lambda: self._files("undo_unpack", **where, launcher=before))
        self._files(
            "unpack",
            **where,
            data=b"".join(parts),
            launcher=self.launcher_text,
            sizes=[len(part) for part in parts],
            byte_compile=not self._same_bytecode,
            for_all=self.places.system,
        )

    def prepare_state(self, undo: Undo, source: Source | None) -> list[str]:
        """Make what is missing in the state directory: its identity, and a source where there is none."""
        copied = source if source is not None and not self.found.sources else None
        before: Mapping[str, Json] = {
            "state": self.places.state,
            "trust_files": list(self.found.trust_files),
            "existed": self.found.state,
            "source": copied.name if copied else None,
        }
        undo.add(self.places.state, lambda: self._files("undo_state", **before))
        owner = self.places.owner
        self._files("keygen", launcher=self.places.launcher, state=self.places.state, owner=owner)
        if copied is None:
            return []
        self._files("add_source", state=self.places.state, name=copied.name, text=copied.text, owner=owner)
        return [f"copied the source {copied.name}"]

    def _add_key(self, undo: Undo) -> list[str]:
        key: dict[str, Json] = {"line": self.key_line}
        before = self.found.authorized_keys
        login = self.shell
        undo.add("the login key's line", lambda: login.call(files, "undo_key", **key, before=before))
        return ["added the restricted login key"] if login.call(files, "add_key", **key) else []

    # ------------------------------------------------------------------ plumbing

    @property
    def _same_bytecode(self) -> bool:
        return self.probe.bytecode_magic == BYTECODE_MAGIC and bool(self.probe.cache_tag)

    def _parts(self, home: Home, offline: Path | None) -> list[bytes]:
        """The zip files to unpack over each other: agent, wheels, and byte code where it fits."""
        with _PREPARING:
            return self._prepared_parts(home, offline)

    def _prepared_parts(self, home: Home, offline: Path | None) -> list[bytes]:
        tag = self.probe.cache_tag if self._same_bytecode else None
        platform = self.probe.platform
        parts = [build_payload(tag).archive]
        for wheel in self._wheels(home, offline):
            parts.append(wheel.read_bytes())
            if tag is not None:
                parts.append(wheel_bytecode(wheel, tag, home.wheels / platform.label))
        return parts

    def _wheels(self, home: Home, offline: Path | None) -> Sequence[Path]:
        try:
            return wheels.fetch(self.distributions, self.probe.platform, home.wheels, offline=offline)
        except wheels.NoWheelsError as error:
            raise self._unserved(error, offline) from error

    def _unserved(self, error: wheels.NoWheelsError, offline: Path | None) -> ConfigError:
        """What is missing, and how to get it: the device's own packages come first."""
        facts = self.probe
        old = [f"{name} {facts.importable[name]}" for name in error.distributions if name in facts.importable]
        where = f"in {offline}" if offline else "on the package index"
        return ConfigError(
            f"device {self.device} ({facts.machine}, Python {facts.python[0]}.{facts.python[1]}) lacks "
            f"{', '.join(error.distributions)}, and there are no wheels of it {where}: {error.message}"
            + (f"; too old there: {', '.join(old)}" if old else ""),
            hint=f"on the device: {_install_line(facts.package_manager, error.distributions)}; "
            "or fetch wheels elsewhere and name their directory with --wheels DIR",
            subject=self.device,
            code="wheels",
        )

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
        return self.work.call(files, verb, data=data, timeout_s=deadline, **arguments)

    def _service(self, verb: str, **arguments: Json) -> Json:
        # Systemd may be tried before the supervisor.
        deadline = 2 * float(arguments.get("patience_s") or START_PATIENCE_S) + _SERVICE_DEADLINE_S
        words = _service_words(self.places)
        return self.work.call(service, verb, timeout_s=deadline, **words, **arguments)


def survey(shell: DeviceShell, home: Home, placement: Placement = "auto") -> Installation:
    """Look at the device and decide what an installation would do there; changes nothing.

    Raises:
        UsageError: It has an agent in another place than `placement` says.
        DeviceError: It cannot carry an agent, with the reason.
        ConfigError: The login key, or this installation's own packages, cannot be read.
        UnreachableError: The connection broke.
    """
    site = find_site(shell, placement)
    facts, places = site.probe, site.places
    key_line = login_key_line(home, places.dial_command)
    distributions = wheels.missing(facts.importable)
    names = "\n".join([build_payload().digest, facts.executable, *distributions])
    return Installation(
        shell=shell,
        work=site.shell,
        probe=facts,
        found=inspect(shell, site, key_line),
        service=service_of(site, unit_text(places.placement)),
        places=places,
        key_line=key_line,
        version=f"{fedctl.__version__}-{sha256(names.encode()).hexdigest()[:12]}",
        distributions=distributions,
    )


def uninstall(
    shell: DeviceShell, home: Home, *, purge: bool, placement: Placement = "auto"
) -> tuple[str, ...]:
    """Stop and delete the agent and the login key's line; state directory and account only with `purge`.

    Files that a source names are never deleted.

    Returns:
        What was done, one sentence each.

    Raises:
        DeviceError: A step failed there.
        UnreachableError: The connection broke.
    """
    site = find_site(shell, placement)
    places, work = site.places, site.shell
    work.call(service, "stop", **_service_words(places))
    done = [f"stopped the agent and deleted {places.prefix}"]
    if shell.call(files, "remove_key", line=login_key_line(home, places.dial_command)):
        done.append("took the login key out of authorized_keys")
    kept = work.call(files, "delete", prefix=places.prefix, state=places.state, purge=purge)["kept"]
    done.append(f"deleted {places.state}" if purge else f"left {places.state} in place (--purge deletes it)")
    if kept:
        done.append(f"kept what its sources name: {', '.join(kept)}")
    if places.system:
        who: dict[str, Json] = {"account": ACCOUNT, "state": places.state, "login": site.probe.user}
        work.call(account, "withdraw", **who, delete=purge)
    return tuple(done)


def _service_words(places: Places) -> dict[str, Json]:
    return {
        "launcher": places.launcher,
        "state": places.state,
        "socket": places.socket,
        "system": places.system,
    }


def _install_line(package_manager: str, distributions: Sequence[str]) -> str:
    """What installs these from the device's distribution; Debian's words where another one is unknown."""
    names = " ".join(f"python3-{name}" for name in distributions)
    return f"sudo {_INSTALL_WORDS.get(package_manager, 'apt install')} {names}"

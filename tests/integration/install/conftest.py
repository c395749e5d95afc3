"""A device as an admin finds it: a user's login at a real sshd, Debian's Python without any package."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fedctl.core.home import Home
from fedctl.ops.devices import AdminLogin
from fedctl.ops.fleet import init
from fedctl.release import wheels
from fedctl.store import Store
from tests.system import SshBed, Sshd, make_key, ssh_bed


@dataclass
class Board:
    """The user's home directory, and how its admin logs in."""

    bed: SshBed
    sshd: Sshd
    admin: AdminLogin

    @property
    def home(self) -> Path:
        return self.bed.home

    @property
    def url(self) -> str:
        return f"ssh://{self.bed.user}@{self.sshd.address}:{self.sshd.port}"

    @property
    def keys(self) -> Path:
        return self.home / ".ssh" / "authorized_keys"

    @property
    def state(self) -> Path:
        return self.home / ".local" / "share" / "fedctl" / "state"

    @property
    def prefix(self) -> Path:
        return self.state.with_name("agent")

    def own(self, path: Path, text: str, mode: int = 0o600) -> Path:
        """A file of the user's."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        for one in (path, path.parent):
            shutil.chown(one, self.bed.user, self.bed.user)
        return path

    def listing(self) -> dict[str, bytes]:
        """Every path below the home directory, with the contents of files."""
        paths = (p for p in self.home.rglob("*") if not p.is_socket())
        return {str(p.relative_to(self.home)): p.read_bytes() if p.is_file() else b"" for p in paths}

    def agents(self) -> list[psutil.Process]:
        """The user's processes that belong to an agent."""
        found = []
        for process in self.bed.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any("fedctl_agent" in word for word in process.cmdline()):
                    found.append(process)
        return found

    def reset(self) -> None:
        """As fresh from the factory."""
        for process in self.bed.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for path in self.home.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@pytest.fixture(scope="module")
def device_bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SshBed, Sshd]]:
    """One user and one server with OpenSSH's default place for keys, for all tests of a module."""
    with ssh_bed() as bed:
        sshd = Sshd(bed.sshd.program, bed.directory / "device")
        config = bed.directory / "device" / "sshd_config"
        ours = f"AuthorizedKeysFile {sshd.authorized_keys}"
        config.write_text(config.read_text().replace(ours, "AuthorizedKeysFile .ssh/authorized_keys"))
        sshd.start()
        try:
            yield bed, sshd
        finally:
            sshd.stop()


@pytest.fixture
def board(device_bed: tuple[SshBed, Sshd], tmp_path: Path) -> Iterator[Board]:
    bed, sshd = device_bed
    key = make_key(tmp_path / "admin")
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host *\n  IdentityFile {key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {tmp_path / 'known_hosts'}\n"
    )
    made = Board(bed, sshd, AdminLogin(ssh_config=config, ask=lambda _question: True))
    made.reset()
    made.own(made.keys, "# the admin's\n" + key.with_suffix(".pub").read_text())
    try:
        yield made
    finally:
        made.reset()


@pytest.fixture(scope="session")
def wheel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels are fetched once; on the device itself nothing is ever downloaded."""
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture
def home(tmp_path: Path, wheel_cache: Path) -> Home:
    made = Home(tmp_path / "home")
    init(made)
    made.wheels.parent.mkdir(parents=True)
    made.wheels.symlink_to(wheel_cache)
    return made


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    with Store.open(home) as opened:
        yield opened


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy does not travel: it is two thirds of an installation, and enrolment does not need it."""
    missing = wheels.missing
    monkeypatch.setattr(wheels, "missing", lambda found: tuple(n for n in missing(found) if n != "numpy"))

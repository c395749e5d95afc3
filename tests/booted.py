"""A booted device for tests: Debian with systemd as its init, in a container of systemd-nspawn.

Needs root, systemd-nspawn and a tree that `FEDCTL_TEST_TREE` names; without one its tests skip. Made once:

    mmdebstrap --variant=minbase --mode=root --include=systemd,systemd-sysv,dbus,openssh-server,python3,\
python3-psutil,iproute2,procps,sudo,libpam-systemd,dbus-user-session bookworm TREE

Every device is an overlay over that tree in a network namespace of its own; all of it is removed at the end.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system import HOW_TO_ENABLE, eventually, make_key, system_tests_enabled

TREE = "FEDCTL_TEST_TREE"
USER = "pi"
_CGROUPS = Path("/sys/fs/cgroup")
_BOOT_S = 60.0


@dataclass(frozen=True)
class BootedDevice:
    """A running container; `key` opens both its user and its root."""

    name: str
    root: Path
    address: str
    key: Path

    def run(self, command: str, *, user: str = "root") -> str:
        """What a command prints, run by a login over SSH; it must succeed."""
        options = ("-i", str(self.key), "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes")
        trust = ("-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
        done = subprocess.run(
            ["ssh", "-F", "none", *options, *trust, f"{user}@{self.address}", command],
            capture_output=True,
            text=True,
            timeout=_BOOT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def url(self, user: str = USER) -> str:
        """As `devices add` takes it."""
        return f"ssh://{user}@{self.address}"


@contextlib.contextmanager
def booted_device() -> Iterator[BootedDevice]:
    """Boot one device; skips where that is not possible, with the reason."""
    tree = _tree()
    name = f"fedctl-{secrets.token_hex(3)}"
    with contextlib.ExitStack() as undo:
        directory = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        undo.callback(shutil.rmtree, directory)
        key = make_key(directory / "key")
        root = _overlay(tree, directory, undo)
        _furnish(root, key)
        address = _network(name, undo)
        _boot(name, root, directory / "console", undo)
        device = BootedDevice(name, root, address, key)
        eventually(lambda: _ready(device), f"{name} boots")
        yield device


def _tree() -> Path:
    if not system_tests_enabled():
        pytest.skip(f"needs root; {HOW_TO_ENABLE}")
    if shutil.which("systemd-nspawn") is None:
        pytest.skip("needs systemd-nspawn: install systemd-container")
    tree = Path(os.environ.get(TREE, ""))
    if not os.environ.get(TREE) or not (tree / "lib/systemd/systemd").exists():
        pytest.skip(f"needs a tree of Debian with systemd, named by {TREE}; see tests/booted.py")
    return tree


def _overlay(tree: Path, directory: Path, undo: contextlib.ExitStack) -> Path:
    """The tree with a layer of its own, in memory: an overlay cannot lie over another one."""
    layer, root = directory / "layer", directory / "root"
    for path in (layer, root):
        path.mkdir()
    _mount(layer, "-t", "tmpfs", "-o", "size=600m", "tmpfs", undo=undo)
    for name in ("upper", "work"):
        (layer / name).mkdir()
    options = f"lowerdir={tree},upperdir={layer}/upper,workdir={layer}/work"
    _mount(root, "-t", "overlay", "-o", options, "overlay", undo=undo)
    return root


def _mount(target: Path, *words: str, undo: contextlib.ExitStack) -> None:
    _command("mount", *words, str(target))
    undo.callback(_command, "umount", "--lazy", str(target))


def _furnish(root: Path, key: Path) -> None:
    """A login with sudo, the key for it and for root, host keys, an identity."""
    (root / "etc/machine-id").write_text("")
    _command("chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", "--password", "*", USER)
    public = key.with_suffix(".pub").read_text()
    for home, owner in ((root / "root", "root"), (root / "home" / USER, USER)):
        (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
        (home / ".ssh/authorized_keys").write_text(public)
        _command("chroot", str(root), "chown", "--recursive", f"{owner}:", f"/{home.relative_to(root)}/.ssh")
    (root / f"etc/sudoers.d/{USER}").write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
    _command("chroot", str(root), "ssh-keygen", "-A")


def _network(name: str, undo: contextlib.ExitStack) -> str:
    """A pair of links between here and a new namespace; the device's address."""
    subnet = f"10.{secrets.randbelow(120) + 100}.{secrets.randbelow(256)}"
    here = f"v{name[-6:]}"
    _command("ip", "netns", "add", name)
    undo.callback(_command, "ip", "netns", "delete", name)
    _command("ip", "link", "add", here, "type", "veth", "peer", "name", "host0", "netns", name)
    _command("ip", "addr", "add", f"{subnet}.1/24", "dev", here)
    _command("ip", "link", "set", here, "up")
    _command("ip", "-n", name, "addr", "add", f"{subnet}.2/24", "dev", "host0")
    for link in ("lo", "host0"):
        _command("ip", "-n", name, "link", "set", link, "up")
    return f"{subnet}.2"


def _boot(name: str, root: Path, console: Path, undo: contextlib.ExitStack) -> None:
    groups = [path / name for path in _CGROUPS.iterdir() if (path / "cgroup.procs").exists()]
    for group in groups:  # its own, or it shares one with whoever runs the tests, and gets its signals
        with contextlib.suppress(OSError):
            group.mkdir()
            undo.callback(_remove_group, group)
    enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups if group.is_dir())
    options = ("-q", "--boot", "--register=no", "--keep-unit", "--console=pipe", "--resolv-conf=off")
    more = ("--timezone=off", "--link-journal=no", f"--network-namespace-path=/run/netns/{name}")
    nspawn = ["systemd-nspawn", *options, *more, "-M", name, "-D", str(root)]
    with console.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'{enter}exec "$@"', "sh", *nspawn],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    undo.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # nspawn lets the device shut down
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()  # and the device with it
        process.wait()


def _remove_group(group: Path) -> None:
    for path in sorted(group.rglob("*"), reverse=True):
        if path.is_dir():
            with contextlib.suppress(OSError):
                path.rmdir()
    with contextlib.suppress(OSError):
        group.rmdir()


def _ready(device: BootedDevice) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((device.address, 22)) != 0:
            return False
    return not (device.root / "run/nologin").exists()


def _command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)

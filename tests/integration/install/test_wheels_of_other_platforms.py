"""Wheels for boards of another architecture, from the real index; and boards for which there are none."""

from __future__ import annotations

import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedctl.core.errors import ConfigError, DeviceError, ExitCode
from fedctl.core.home import Home
from fedctl.ops import devices
from fedctl.ops.devices import AddResult, NewDevice
from fedctl.ops.enrolment.ondevice import probe as device_probe
from fedctl.ops.enrolment.shell import DeviceShell
from fedctl.release import wheels
from fedctl.release.wheels import NoWheelsError, Platform
from fedctl.store import Store
from tests.integration.install.conftest import Board
from tests.unit.release.test_wheels import make_wheel

ALL = (*wheels.NEEDED, "cffi", "pycparser")
EM_X86_64, EM_AARCH64 = 62, 183  # of the ELF header
PLATFORMS = {
    "Raspberry Pi OS 12": (Platform((3, 11), "aarch64", (2, 36)), EM_AARCH64),
    "Ubuntu 24.04 on ARM": (Platform((3, 12), "aarch64", (2, 39)), EM_AARCH64),
    "Python 3.13 on an old x86-64": (Platform((3, 13), "x86_64", (2, 28)), EM_X86_64),
}


@pytest.mark.parametrize("target", PLATFORMS)
def test_wheels_are_for_the_devices_machine_python_and_glibc(target: str, wheel_cache: Path) -> None:
    platform, machine = PLATFORMS[target]
    try:
        found = wheels.fetch(ALL, platform, wheel_cache)
    except NoWheelsError as error:
        pytest.skip(f"the package index is not reached: {error.message}")
    assert [path.name.split("-")[0] for path in found] == list(ALL)
    seen = {name: machines(path) for name, path in zip(ALL, found, strict=True)}
    assert {m for found in seen.values() for m in found} == {machine}
    assert all(seen[name] for name in ("psutil", "numpy", "cryptography", "cffi"))
    for path in found:
        assert fits(path.name, platform), path.name
    before = [path.stat().st_mtime_ns for path in found]
    assert [path.stat().st_mtime_ns for path in wheels.fetch(ALL, platform, wheel_cache)] == before


def machines(wheel: Path) -> set[int]:
    """The machines of a wheel's ELF files."""
    with zipfile.ZipFile(wheel) as archive:
        heads = [archive.open(name).read(20) for name in archive.namelist() if ".so" in name]
    return {struct.unpack_from("<H", head, 18)[0] for head in heads if head.startswith(b"\x7fELF")}


def fits(name: str, platform: Platform) -> bool:
    """Whether the tags of a wheel's name (PEP 425) are those of the platform."""
    *_, python, abi, machine = name.removesuffix(".whl").split("-")
    version = f"cp{platform.python[0]}{platform.python[1]}"
    right_python = version in python.split(".") or abi in {"abi3", "none"}
    return right_python and (machine == "any" or bool(set(machine.split(".")) & set(platform.tags)))


# ------------------------------------------------------------------ boards without wheels

Change = Callable[..., None]


@pytest.fixture
def board_is(monkeypatch: pytest.MonkeyPatch) -> Change:
    """Let the device say something else of itself; everything after that is real."""
    real = DeviceShell.call

    def change(**facts: object) -> None:
        def call(shell: DeviceShell, module: Any, verb: str, **words: Any) -> Any:
            answer = real(shell, module, verb, **words)
            return {**answer, **facts} if module is device_probe else answer

        monkeypatch.setattr(DeviceShell, "call", call)

    return change


def add(store: Store, home: Home, board: Board, **options: Any) -> AddResult:
    return devices.add(store, home, NewDevice(name="watch-1", url=board.url), admin=board.admin, **options)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index as it is for 32-bit ARM: pure Python only."""
    directory = tmp_path / "index"
    directory.mkdir()
    for name, version in {"h11": "0.16.0", "pycparser": "2.22"}.items():
        make_wheel(directory, name, version)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return directory


@pytest.mark.system
@pytest.mark.parametrize("dry_run", [True, False])
def test_armv7_without_packages_is_told_what_is_missing_and_how_it_comes(
    store: Store, home: Home, board: Board, board_is: Change, index: Path, *, dry_run: bool
) -> None:
    board_is(machine="armv7l", importable={"psutil": "5.9.4", "numpy": "1.19.5"})
    before = board.listing()
    with pytest.raises(ConfigError) as error:
        add(store, home, board, dry_run=dry_run)
    told = error.value
    assert (told.code, told.exit_code) == ("wheels", ExitCode.CONFIG)
    assert "watch-1 (armv7l, Python 3." in told.message
    assert "lacks numpy, cryptography, and there are no wheels" in told.message
    assert "too old there: numpy 1.19.5" in told.message
    assert "sudo apt install python3-numpy python3-cryptography;" in told.hint
    assert "--wheels DIR" in told.hint
    assert board.listing() == before
    assert store.devices() == ()


@pytest.mark.system
def test_armv7_with_its_distributions_packages_gets_an_agent(
    store: Store, home: Home, board: Board, board_is: Change, index: Path
) -> None:
    bookworm = {"psutil": "5.9.4", "numpy": "1.24.2", "cryptography": "38.0.4", "h11": "0.14.0"}
    board_is(machine="armv7l", importable=bookworm)
    (install, *_) = [s for s in add(store, home, board, dry_run=True).steps if s.startswith("install")]
    assert " with " not in install


@pytest.mark.system
def test_armv7_takes_wheels_from_a_directory(
    store: Store, home: Home, board: Board, board_is: Change, index: Path, tmp_path: Path
) -> None:
    board_is(machine="armv7l", importable={"psutil": "5.9.4", "cryptography": "38.0.4", "h11": "0.14.0"})
    offline = tmp_path / "wheels"
    offline.mkdir()
    with pytest.raises(ConfigError, match="lacks numpy, and there are no wheels of it in"):
        add(store, home, board, dry_run=True, wheels=offline)
    version = "".join(map(str, device_python(board)))
    make_wheel(offline, "numpy", "2.2.0", f"cp{version}-cp{version}-linux_armv7l")  # as piwheels names them
    assert any(
        "install fedctl-agent" in step and "with numpy" in step
        for step in add(store, home, board, dry_run=True, wheels=offline).steps
    )


def device_python(board: Board) -> tuple[int, int]:
    code = "import sys; print(*sys.version_info[:2])"
    shown = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, text=True, check=True)
    major, minor = shown.stdout.split()
    return int(major), int(minor)


@pytest.mark.system
def test_musl_is_refused_with_the_reason(store: Store, home: Home, board: Board, board_is: Change) -> None:
    board_is(libc="musl")
    before = board.listing()
    with pytest.raises(DeviceError, match="has musl; wheels need glibc") as error:
        add(store, home, board)
    assert (error.value.code, error.value.exit_code) == ("libc", ExitCode.CONFIG)
    assert "wheels for glibc" in error.value.hint
    assert board.listing() == before

"""Wheels for a device, fetched on the workstation by pip for the device's platform and kept in a cache.

The device needs neither pip nor the internet. What it can import in a new enough version is not
sent. Only binary wheels are taken: nothing is built, and nothing of a package runs here.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedctl.core.durable import make_directory
from fedctl.core.errors import ConfigError

# The versions of Debian 12: a board whose architecture has no wheels lives from its distribution's packages.
NEEDED: Mapping[str, str] = {"psutil": "5.9", "numpy": "1.24", "cryptography": "38", "h11": "0.14"}
_COMPANIONS: Mapping[str, tuple[str, ...]] = {"cryptography": ("cffi", "pycparser")}
_OLDEST_GLIBC_MINOR = {"x86_64": 5, "i686": 5}  # of manylinux tags; 17 on every other architecture
_LEGACY_TAGS = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_ONE_PIP = threading.Lock()  # of many devices that are added at once, the first fetches for all
_PIP_DEADLINE_S = 900.0


class NoWheelsError(ConfigError):
    """No wheel fits a device; `distributions` are those that lack one, as the device's admin knows them."""

    def __init__(self, distributions: Sequence[str], platform: Platform, reason: str) -> None:
        super().__init__(
            f"no wheels of {', '.join(distributions)} for {platform.label}: {reason}",
            hint="fetch them elsewhere and name their directory with --wheels DIR, "
            "or install them on the device",
            subject=platform.label,
            code="wheels",
        )
        self.distributions = tuple(name for name in distributions if name in NEEDED) or tuple(distributions)


@dataclass(frozen=True, slots=True)
class Platform:
    """What a wheel must fit."""

    python: tuple[int, int]
    machine: str  # of user space: "x86_64", "aarch64", "armv7l"
    glibc: tuple[int, int]

    @property
    def label(self) -> str:
        """Name of its directory in the cache."""
        return f"cp{self.python[0]}{self.python[1]}-{self.machine}-glibc{self.glibc[0]}.{self.glibc[1]}"

    @property
    def tags(self) -> tuple[str, ...]:
        """Platform tags of wheels that run there, best first (PEP 600)."""
        oldest = _OLDEST_GLIBC_MINOR.get(self.machine, 17)
        tags: list[str] = []
        for minor in range(self.glibc[1], oldest - 1, -1):
            tags.append(f"manylinux_{self.glibc[0]}_{minor}_{self.machine}")
            if minor in _LEGACY_TAGS:
                tags.append(f"{_LEGACY_TAGS[minor]}_{self.machine}")
        return (*tags, f"linux_{self.machine}")


def missing(importable: Mapping[str, str]) -> tuple[str, ...]:
    """Which distributions must travel, given the versions that the device can import.

    cffi goes with cryptography even where the device has one: the two fit only as a pair.
    """
    needed = [name for name, least in NEEDED.items() if _older(importable.get(name), least)]
    return tuple(needed) + tuple(c for name in needed for c in _COMPANIONS.get(name, ()))


def fetch(
    distributions: Sequence[str], platform: Platform, cache: Path, *, offline: Path | None = None
) -> tuple[Path, ...]:
    """The wheels of these distributions for `platform`, in that order, downloaded where not yet cached.

    Args:
        distributions: Names from `missing`.
        platform: The device's.
        cache: Directory for wheels, one sub-directory a platform.
        offline: A directory to take wheels from instead of the cache and the internet.

    Raises:
        NoWheelsError: When pip is absent or finds no wheel for the platform.
        ConfigError: When a directory cannot be used.
    """
    if offline is not None:
        with _ONE_PIP:
            return _from_directory(tuple(distributions), platform, offline)
    directory = cache / platform.label
    make_directory(directory)
    with _ONE_PIP:
        absent = [name for name in distributions if _cached(directory, name) is None]
        if absent:
            _download(absent, platform, directory)
    return tuple(_require(directory, name, platform) for name in distributions)


@functools.cache
def _from_directory(distributions: tuple[str, ...], platform: Platform, directory: Path) -> tuple[Path, ...]:
    if not directory.is_dir():
        raise ConfigError(f"--wheels {directory} is no directory", subject=str(directory))
    with tempfile.TemporaryDirectory(prefix="fedctl-wheels-") as chosen:
        arguments = ["--no-index", "--find-links", str(directory)]
        _pip_download(distributions, platform, Path(chosen), arguments)
        names = [_require(Path(chosen), name, platform).name for name in distributions]
    return tuple(directory / name for name in names)


def _download(distributions: Sequence[str], platform: Platform, directory: Path) -> None:
    with tempfile.TemporaryDirectory(dir=directory, prefix=".download-") as temporary:
        _pip_download(distributions, platform, Path(temporary), [])
        for wheel in sorted(Path(temporary).glob("*.whl")):
            wheel.replace(directory / wheel.name)


def _pip_download(
    distributions: Sequence[str], platform: Platform, target: Path, arguments: Sequence[str]
) -> None:
    """Download all of them, or say which cannot be."""
    reason = _pip(distributions, platform, target, arguments)
    if reason is None:
        return
    # pip stops at the first that it does not find; a person wants the whole list.
    alone = [*arguments, "--retries", "1"]
    absent = [name for name in distributions if _pip([name], platform, target, alone) is not None]
    raise NoWheelsError(absent or distributions, platform, reason)


def _pip(
    distributions: Sequence[str], platform: Platform, target: Path, arguments: Sequence[str]
) -> str | None:
    """Run pip; why it failed, or None."""
    requirements = [f"{name}>={NEEDED[name]}" if name in NEEDED else name for name in distributions]
    version = f"{platform.python[0]}.{platform.python[1]}"
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("--only-binary=:all:", "--no-deps", "--dest", str(target)),
        *("--implementation", "cp", "--python-version", version),
        *("--abi", f"cp{version.replace('.', '')}", "--abi", "abi3", "--abi", "none"),
        *(word for tag in platform.tags for word in ("--platform", tag)),
        *arguments,
        *requirements,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        return f"pip took over {_PIP_DEADLINE_S:.0f} s"
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
    return (errors or done.stderr.splitlines() or ["pip failed"])[-1].strip()


def _require(directory: Path, distribution: str, platform: Platform) -> Path:
    wheel = _cached(directory, distribution)
    if wheel is None:
        raise NoWheelsError([distribution], platform, f"pip left none in {directory}")
    return wheel


def _cached(directory: Path, distribution: str) -> Path | None:
    """The newest wheel of a distribution that is new enough; file names follow PEP 427."""
    least = NEEDED.get(distribution, "0")
    found = [w for w in directory.glob(f"{distribution}-*.whl") if not _older(w.name.split("-")[1], least)]
    return max(found, key=lambda wheel: _numbers(wheel.name.split("-")[1]), default=None)


def _older(version: str | None, least: str) -> bool:
    return version is None or _numbers(version) < _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()

"""The agent as it travels: its packages from this installation, and byte code where the device's Python fits.

Packages are found without importing them (the workstation never imports the agent). The same sources
give the same archive, byte for byte. Byte code is of the unchecked-hash kind (PEP 552): the device
neither compiles nor compares time stamps, which it could not trust after a start in 1970.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import marshal
import threading
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fedctl.core.durable import make_directory, write_file
from fedctl.core.errors import ConfigError

PACKAGES = ("fedctl_agent", "fedctl_graph", "fedctl_wire")
BYTECODE_MAGIC = importlib.util.MAGIC_NUMBER.hex()  # same on both sides: same byte code

_ONE_COMPILER = threading.Lock()  # of many devices that are added at once, the first compiles for all
_UNCHECKED_HASH = (1).to_bytes(4, "little")  # PEP 552: hash-based, not checked
_MARSHAL_VERSION = 2  # later ones record reference counts and so differ from run to run
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip file can hold
_FILE_MODE = 0o100644 << 16


@dataclass(frozen=True, slots=True)
class Payload:
    """The agent's packages."""

    digest: str  # hex SHA-256 of the sources: names a version of the agent
    archive: bytes  # zip, to be unpacked on sys.path


@functools.cache  # one command installs many devices
def build_payload(cache_tag: str | None = None) -> Payload:
    """Collect the agent's packages; with `cache_tag` ("cpython-311") their byte code too.

    The caller checks that the device's byte code magic is `BYTECODE_MAGIC` before it gives a tag.

    Raises:
        ConfigError: When this installation lacks one of the packages.
    """
    digest = hashlib.sha256()
    entries: list[tuple[str, bytes]] = []
    for name, data in _sources():
        digest.update(f"{name}\n{len(data)}\n".encode() + data)
        entries.append((name, data))
    if cache_tag is not None:
        entries.extend(_bytecode_of(entries, cache_tag))
    return Payload(digest.hexdigest(), _archive(entries))


def wheel_bytecode(wheel: Path, cache_tag: str, cache: Path) -> bytes:
    """A zip with the byte code of a wheel's modules, kept in the directory `cache` for the next device.

    Tests that come with a package are left out: nobody runs them on a wearable.

    Raises:
        ConfigError: When the wheel is no readable zip file, or the cache cannot be written.
    """
    cached = cache / f"{wheel.name}.{cache_tag}.zip"
    with _ONE_COMPILER:
        return cached.read_bytes() if cached.is_file() else _compile_wheel(wheel, cache_tag, cached)


def _compile_wheel(wheel: Path, cache_tag: str, cached: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(name for name in archive.namelist() if _worth_compiling(name))
            data = _archive(_bytecode_of(((name, archive.read(name)) for name in names), cache_tag))
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"cannot read {wheel}: {error}", hint="delete it and try again", subject=str(wheel)
        ) from error
    make_directory(cached.parent)
    write_file(cached, data)
    return data


def unit_text(placement: str) -> str:
    """The systemd unit of an agent, `system` or `user`, as it stands in `agent/packaging`.

    Raises:
        ConfigError: When this installation lacks it.
    """
    name = f"{placement}/fedctl-agent.service"
    # A wheel carries the units inside the package, a checkout has them where packagers look.
    for directory in (Path(__file__).with_name("units"), Path(__file__).parents[2] / "agent/packaging"):
        if (directory / name).is_file():
            return (directory / name).read_text(encoding="utf-8")
    raise ConfigError(
        f"this installation of fedctl lacks the unit {name}", hint="install fedctl again", subject=name
    )


def _sources() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                f"this installation of fedctl lacks the package {package}",
                hint="install fedctl again",
                subject=package,
            )
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _worth_compiling(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".py" and "tests" not in path.parts and ".data/" not in name


def _bytecode_of(entries: Iterable[tuple[str, bytes]], cache_tag: str) -> Iterator[tuple[str, bytes]]:
    for name, source in list(entries):
        path = PurePosixPath(name)
        if path.suffix != ".py":
            continue
        try:
            code = compile(source, name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            continue  # a template or a module for another Python: the device would not compile it either
        head = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + importlib.util.source_hash(source)
        target = path.parent / "__pycache__" / f"{path.stem}.{cache_tag}.pyc"
        yield target.as_posix(), head + marshal.dumps(code, _MARSHAL_VERSION)


def _archive(entries: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = _FILE_MODE
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return buffer.getvalue()

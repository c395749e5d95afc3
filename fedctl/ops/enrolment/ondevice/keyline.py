"""Runs on a device, under its own Python: fedctl's one line in authorized_keys. Standard library only.

The source text of this module is sent over the admin's login and executed there, so it imports nothing
of fedctl. A line of fedctl's is one that has the login key, which belongs to nobody else, or may only run
an agent's `dial-stdio`, whatever its key is; all other lines stay as they are.
"""

import os
import re
import subprocess  # noqa: F401 - the program around this module names its errors
from pathlib import Path
from typing import Any

_FEDCTL_LINE = re.compile(
    rb'restrict,command="[^"]*fedctl-agent\S* dial-stdio [^"]*" ssh-ed25519 \S+ fedctl\s*'
)


def inspect(launcher: str, line: str) -> dict[str, Any]:
    """Whether the agent is installed, whether `line` is there, and how many lines of fedctl's are besides."""
    ours = [found.strip() for found in _lines() if _is_ours(found, line)]
    return {
        "installed": Path(launcher).exists(),
        "present": line.encode() in ours,
        "others": len(ours) - (line.encode() in ours),
    }


def replace(line: str) -> None:
    """Leave `line` as the only line of fedctl's."""
    kept = b"".join(found for found in _lines() if not _is_ours(found, line))
    separator = b"\n" if kept and not kept.endswith(b"\n") else b""
    path = _path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o7777 if path.exists() else 0o600
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(kept + separator + line.encode() + b"\n")
            os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_ours(found: bytes, line: str) -> bool:
    if found.lstrip().startswith(b"#"):
        return False
    key = line.split()[-2].encode()  # options, type, key, comment
    return key in found.split() or _FEDCTL_LINE.fullmatch(found) is not None


def _path() -> Path:
    return Path("~/.ssh/authorized_keys").expanduser().resolve()  # it may be a symbolic link


def _lines() -> list[bytes]:
    try:
        return _path().read_bytes().splitlines(keepends=True)
    except (FileNotFoundError, NotADirectoryError):
        return []

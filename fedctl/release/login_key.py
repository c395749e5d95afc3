"""Replacing the fleet's login key: a new one is made, and the one before is kept until no device needs it.

Both are needed for a while: a device that could not be reached still knows only the one before. The
transport offers the current key first and then that one (`fedctl.transport.ssh.login_keys`).
"""

from __future__ import annotations

import base64
from hashlib import sha256
from pathlib import Path

from fedctl.core.durable import write_file
from fedctl.core.errors import ConfigError, reason_of, unreadable
from fedctl.core.home import Home
from fedctl.release.keys import ensure_login, login_path


def login_id(home: Home) -> str:
    """Names the current login key, `SHA256:…` as ssh-keygen prints it; the public half is mended first.

    Raises:
        ConfigError: The key cannot be read, or its public half not be written.
    """
    blob = base64.b64decode(ensure_login(home).split()[1])
    return "SHA256:" + base64.b64encode(sha256(blob).digest()).decode().rstrip("=")


def previous_path(home: Home) -> Path:
    """The login key before the current one, while some device may still need it."""
    path = login_path(home)
    return path.with_name(f"{path.name}.previous")


def replacement_unfinished(home: Home) -> bool:
    """Whether the key before is still kept, as another one than the current."""
    previous = previous_path(home)
    return previous.exists() and _bytes(previous) != _bytes(login_path(home))


def replace_login(home: Home) -> None:
    """Make a new login key and keep the one before; killed at any point, it can be run again.

    Raises:
        ConfigError: A file cannot be read or written.
    """
    write_file(previous_path(home), _bytes(login_path(home)), mode=0o600)
    ensure_login(home, anew=True)


def forget_previous(home: Home) -> None:
    """Delete the key before: every device knows the current one.

    Raises:
        ConfigError: It cannot be deleted.
    """
    try:
        previous_path(home).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{previous_path(home)} cannot be deleted: {reason_of(error)}", subject=str(previous_path(home))
        ) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error

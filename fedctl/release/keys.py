"""The three Ed25519 keys of a fleet: root, operator and login, as files that only their owner may read.

The root enrols devices and signs roster and policy; it may live elsewhere (`--root-key PATH`). The
operator signs plans and bundles. The login key opens SSH and nothing else. Keys never travel and are
never printed; a file that others can read is refused rather than used.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl.core.durable import make_directory, write_file
from fedctl.core.errors import ConfigError, TrustError, reason_of, unreadable
from fedctl.core.home import Home
from fedctl_wire.errors import WireError
from fedctl_wire.signing import generate_key, private_key_from_pem, private_key_to_pem, public_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ROOT_FILE = "root"
OPERATOR_FILE = "operator"
OPERATOR_CERTIFICATE_FILE = "operator.crt"
LOGIN_FILE = "login"
LOGIN_PUBLIC_FILE = "login.pub"
LOGIN_COMMENT = "fedctl"  # the last word of the line in authorized_keys

_MOVED_ROOT_HINT = "name the file where the root key was moved to with --root-key PATH"
_KEY_BYTES_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """The public halves of a new fleet's keys."""

    root: str  # raw Ed25519, hex
    operator: str  # raw Ed25519, hex
    login: str  # OpenSSH line: "ssh-ed25519 AAAA… fedctl"


def create_keys(home: Home, root_key: Path | None = None) -> PublicKeys:
    """Make the three keys; `root_key` says where the root goes instead of the home directory.

    A key that exists is kept, so that an `init` which was killed half-way can be run again.

    Raises:
        ConfigError: When a file cannot be written, or an existing one is no usable key.
    """
    make_directory(home.keys, mode=0o700)
    _restrict(home.keys)
    root_path = root_key or home.keys / ROOT_FILE
    make_directory(root_path.parent, mode=0o700)
    root = _load_or_create(root_path)
    operator = _load_or_create(home.keys / OPERATOR_FILE)
    return PublicKeys(public_key(root), public_key(operator), ensure_login(home))


def load_root(home: Home, root_key: Path | None = None, *, expected: str | None = None) -> Ed25519PrivateKey:
    """Load the root key from `root_key`, else from the home directory.

    Args:
        home: The fleet's home.
        root_key: Where the key was moved to.
        expected: The fleet's public root key in hex; another key is refused.

    Raises:
        ConfigError: When the file is missing, readable by others or no Ed25519 key.
        TrustError: When it is another fleet's root.
    """
    path = root_key or home.keys / ROOT_FILE
    return _load_expected(path, expected, "root", hint=_MOVED_ROOT_HINT)


def load_operator(home: Home, *, expected: str | None = None) -> Ed25519PrivateKey:
    """Load the operator key; `expected` is the fleet's public operator key in hex.

    Raises:
        ConfigError: When the file is missing, readable by others or no Ed25519 key.
        TrustError: When it is another fleet's operator.
    """
    hint = "restore it from a backup of the home directory"
    return _load_expected(home.keys / OPERATOR_FILE, expected, "operator", hint=hint)


def operator_path(home: Home) -> Path:
    """The operator's private key, PKCS#8 PEM."""
    return home.keys / OPERATOR_FILE


def operator_certificate_path(home: Home) -> Path:
    """The operator's certificate, PEM: made when the root key is at hand, needed for HTTPS."""
    return home.keys / OPERATOR_CERTIFICATE_FILE


def login_path(home: Home) -> Path:
    """The private login key in OpenSSH format."""
    return home.keys / LOGIN_FILE


def login_public(home: Home) -> str:
    """The login key's public line, `ssh-ed25519 AAAA… fedctl`.

    Raises:
        ConfigError: When the file is missing or holds something else.
    """
    path = home.keys / LOGIN_PUBLIC_FILE
    line = _read(path, hint="restore it from a backup of the home directory").decode(errors="replace").strip()
    if not line.startswith("ssh-ed25519 ") or "\n" in line:
        raise ConfigError(f"{path} is not an OpenSSH public key", subject=str(path))
    return line


def login_key_line(home: Home, command: str) -> str:
    """The line for a device's `authorized_keys`: the login key may run `command` and nothing else.

    Raises:
        ConfigError: When the public key is missing, or `command` cannot stand in such a line.
    """
    if any(c in command for c in '"\\\r\n'):
        raise ConfigError(f"the command {command!r} cannot stand in authorized_keys", subject=command)
    return f'restrict,command="{command}" {login_public(home)}'


def ensure_login(home: Home, *, anew: bool = False) -> str:
    """Make the login key where it is missing, or another one in its place; its public half follows it.

    Returns:
        The public line.

    Raises:
        ConfigError: A file cannot be read or written.
    """
    from cryptography.hazmat.primitives import serialization

    path = login_path(home)
    if path.exists() and not anew:
        key = _load_login(path)
    else:
        key = generate_key()
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        write_file(path, private, mode=0o600)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    line = f"{public.decode()} {LOGIN_COMMENT}"
    public_path = home.keys / LOGIN_PUBLIC_FILE
    if not public_path.exists() or public_path.read_bytes() != f"{line}\n".encode():
        write_file(public_path, f"{line}\n".encode())
    return line


def _load_login(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    data = _read_private(path, hint="")
    try:
        key = serialization.load_ssh_private_key(data, password=None)
    except ValueError as error:
        raise ConfigError(f"{path} is not an OpenSSH private key", subject=str(path)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key", subject=str(path))
    return key


def _load_or_create(path: Path) -> Ed25519PrivateKey:
    if path.exists():
        return _load(path, hint="")
    key = generate_key()
    write_file(path, private_key_to_pem(key), mode=0o600)
    return key


def _load_expected(path: Path, expected: str | None, owner: str, *, hint: str) -> Ed25519PrivateKey:
    key = _load(path, hint=hint)
    if expected is not None and public_key(key) != expected:
        raise TrustError(
            f"{path} is not this fleet's {owner} key", hint=hint, subject=str(path), code="wrong_key"
        )
    return key


def _load(path: Path, *, hint: str) -> Ed25519PrivateKey:
    data = _read_private(path, hint=hint)
    try:
        return private_key_from_pem(data, what=str(path))
    except WireError as error:
        raise ConfigError(str(error), hint=hint, subject=str(path)) from error


def _read_private(path: Path, *, hint: str) -> bytes:
    data = _read(path, hint=hint)
    facts = path.stat()
    if facts.st_uid not in {os.geteuid(), 0}:
        raise ConfigError(f"{path} belongs to user {facts.st_uid}, not to you", hint=hint, subject=str(path))
    if stat.S_IMODE(facts.st_mode) & 0o077:
        raise ConfigError(
            f"{path} can be read by others (mode {stat.S_IMODE(facts.st_mode):04o})",
            hint=f"chmod 600 {path}",
            subject=str(path),
        )
    return data


def _read(path: Path, *, hint: str) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_KEY_BYTES_LIMIT)
    except OSError as error:
        raise unreadable(path, error, hint=hint) from error


def _restrict(directory: Path) -> None:
    try:
        directory.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"cannot protect {directory}: {reason_of(error)}", subject=str(directory)
        ) from error

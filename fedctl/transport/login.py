"""Logging in with the person's own keys, in OpenSSH's manner: identity files first, then the ssh-agent.

A certificate of a key is offered before the key itself. Passwords and other questions are never answered.
"""

from __future__ import annotations

import base64
import socket
import struct
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import paramiko
from paramiko.agent import AgentSSH
from paramiko.pkey import PublicBlob

from fedctl.core.errors import ConfigError, TrustError
from fedctl.transport.base import describe
from fedctl.transport.sshconfig import SshTarget
from fedctl.transport.sshlink import ENCRYPTED_KEY, LoginAnswer, load_key, log_in

_MOST_KEYS = 6  # OpenSSH's MaxAuthTries
_AGENT_TIMEOUT_S = 60.0  # a person may have to confirm the use of a key
_OPENSSH_MAGIC = b"openssh-key-v1\0"
_CERTIFICATE = "-cert-v01@openssh.com"


class KeyRing:
    """The keys to try for one host, and why others could not be."""

    def __init__(self, target: SshTarget) -> None:
        self._target = target
        self.unusable: list[str] = []  # sentences about key files and the ssh-agent
        self.encrypted: list[Path] = []
        self._agent = self._open_agent()
        self._certificates: dict[bytes, list[PublicBlob]] = {}  # by the plain public key
        for path in target.certificates:
            self._take_certificate(path, missing_ok=False)

    def close(self) -> None:
        """Give up the connection to the ssh-agent."""
        if self._agent is not None:
            self._agent.close()

    def candidates(self) -> Iterator[paramiko.PKey]:
        """Each key once: identity files, taken from the ssh-agent where it holds them, then its others."""
        held = self._held()
        for path in self._target.identity_files:
            self._take_certificate(path.with_name(f"{path.name}-cert.pub"), missing_ok=True)
            public = _public_blob(path)
            if public is not None and public in held:
                yield from self._with_certificates(held.pop(public), public)
            elif path.is_file() and (key := self._load(path)) is not None:
                yield from self._with_certificates(key, key.asbytes())
        if not self._target.identities_only:
            for public, key in held.items():
                yield from self._with_certificates(key, public)

    def _held(self) -> dict[bytes, paramiko.PKey]:
        """The ssh-agent's keys by their public half; its certificates join those of the files."""
        held: dict[bytes, paramiko.PKey] = {}
        for key in self._agent.get_keys() if self._agent is not None else ():
            if key.get_name().endswith(_CERTIFICATE):
                self._add_certificate(PublicBlob(key.get_name(), key.blob))
            else:
                held[key.blob] = key
        return held

    def _with_certificates(self, key: paramiko.PKey, public: bytes) -> Iterator[paramiko.PKey]:
        for certificate in self._certificates.get(public, ()):
            key.public_blob = certificate
            yield key
        key.public_blob = None
        yield key

    def _take_certificate(self, path: Path, *, missing_ok: bool) -> None:
        if missing_ok and not path.is_file():
            return
        try:
            self._add_certificate(PublicBlob.from_string(path.read_text(errors="replace")))
        except (OSError, ValueError, IndexError, paramiko.SSHException) as error:
            self.unusable.append(f"certificate {path} cannot be used: {describe(error)}")

    def _add_certificate(self, blob: PublicBlob) -> None:
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            PublicFormat,
            SSHCertificate,
            load_ssh_public_identity,
        )

        line = f"{blob.key_type} {base64.b64encode(blob.key_blob).decode()}"
        certificate = load_ssh_public_identity(line.encode())
        if not isinstance(certificate, SSHCertificate):
            raise ValueError("it is a plain key")  # noqa: TRY004 - of the file, not of an argument
        plain = certificate.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        known = self._certificates.setdefault(base64.b64decode(plain.split()[1]), [])
        if all(blob.key_blob != other.key_blob for other in known):
            known.append(blob)

    def _load(self, path: Path) -> paramiko.PKey | None:
        try:
            return load_key(path)
        except ConfigError as error:
            if error.code == ENCRYPTED_KEY:
                self.encrypted.append(path)
            else:
                self.unusable.append(error.message)
            return None

    def _open_agent(self) -> paramiko.Agent | _AgentAt | None:
        if not self._target.use_agent:
            return None
        where = self._target.agent_socket
        try:
            return paramiko.Agent() if where is None else _AgentAt(where)
        except (OSError, paramiko.SSHException) as error:
            self.unusable.append(f"the ssh-agent {where or ''} does not answer: {describe(error)}")
            return None


class _AgentAt(AgentSSH):
    """An ssh-agent at a socket of its own; paramiko's public class only knows SSH_AUTH_SOCK's."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._link.settimeout(_AGENT_TIMEOUT_S)
        try:
            self._link.connect(str(path))
            self._connect(self._link)  # type: ignore[attr-defined]  # its stubs know no public way
        except BaseException:
            self._link.close()
            raise

    def close(self) -> None:
        self._link.close()


def log_in_as_person(
    link: paramiko.Transport, target: SshTarget, *, deadline: float, also: paramiko.PKey | None = None
) -> None:
    """Try the person's keys one after the other, then `also`.

    Raises:
        TrustError: None was accepted; the message says what was tried and what could not be.
    """
    ring = KeyRing(target)
    tried = 0
    answer = LoginAnswer.REFUSED
    try:
        for key in chain(ring.candidates(), [also] if also is not None else []):
            if tried == _MOST_KEYS or not link.is_active():
                break
            tried += 1
            answer = log_in(link, target.user, key, deadline=deadline)
            if answer is LoginAnswer.ACCEPTED:
                return
            if answer is not LoginAnswer.REFUSED:
                break
    finally:
        ring.close()
    raise _refused(target, ring, tried, answer)


def _refused(target: SshTarget, ring: KeyRing, tried: int, answer: LoginAnswer) -> TrustError:
    who = f"{target.user}@{target.hostname}"
    reasons = [f"{path} is encrypted and no ssh-agent holds it" for path in ring.encrypted] + ring.unusable
    if answer is not LoginAnswer.REFUSED:
        offered = answer.value
    else:
        offered = "none of your keys was offered" if tried == 0 else f"{tried} of your keys refused"
    message = f"login as {who} failed: " + "; ".join([offered, *reasons])
    if answer is LoginAnswer.NO_KEYS:
        hint = "fedctl logs in by keys only: let its sshd take them for this user"
    elif answer is LoginAnswer.MORE_NEEDED:
        hint = "fedctl logs in by keys only: exempt this user there, with Match User in sshd_config"
    elif ring.encrypted:
        hint = f"unlock it first: ssh-add {ring.encrypted[0]}"
    else:
        hint = f"it must work without a password: try `{target.login}`, or ssh-copy-id with the same words"
        if target.user == "root":
            hint += "; sshd's PermitRootLogin may forbid it"
    return TrustError(message, hint=hint, subject=target.hostname, code="login")


def _public_blob(path: Path) -> bytes | None:
    """The public half of a key, by which an ssh-agent's is recognised.

    It stands in `path.pub`, in the file itself where that is a public key, or unencrypted before the private
    half.
    """
    for place in (path.with_name(path.name + ".pub"), path):
        try:
            return bytes(PublicBlob.from_string(place.read_text(errors="replace")).key_blob)
        except (OSError, ValueError, IndexError, paramiko.SSHException):
            continue
    try:
        return _public_part(path.read_text(errors="replace"))
    except (OSError, ValueError, struct.error):
        return None


def _public_part(text: str) -> bytes | None:
    """The public key in a private key file of OpenSSH's form (PROTOCOL.key)."""
    lines = text.strip().splitlines()
    if not lines or "OPENSSH PRIVATE KEY" not in lines[0]:
        return None
    data = base64.b64decode("".join(lines[1:-1]))
    if not data.startswith(_OPENSSH_MAGIC):
        return None
    place = len(_OPENSSH_MAGIC)
    for _ in range(3):  # cipher, key derivation, its options
        place += 4 + struct.unpack_from(">I", data, place)[0]
    place += 4  # the number of keys
    size = struct.unpack_from(">I", data, place)[0]
    return data[place + 4 : place + 4 + size]

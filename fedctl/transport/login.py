"""Logging in with the person's own keys, in OpenSSH's manner: identity files first, then the ssh-agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import paramiko
from paramiko.pkey import PublicBlob, UnknownKeyType

from fedctl.core.errors import TrustError
from fedctl.transport.base import describe
from fedctl.transport.sshconfig import SshTarget
from fedctl.transport.sshlink import log_in

_MOST_KEYS = 6  # OpenSSH's MaxAuthTries


class KeyRing:
    """The keys to try for one host, and why others could not be."""

    def __init__(self, target: SshTarget) -> None:
        self._target = target
        self._agent = paramiko.Agent() if target.use_agent else None
        self.unusable: list[str] = []  # sentences about key files
        self.encrypted: list[Path] = []

    def close(self) -> None:
        """Give up the connection to the ssh-agent."""
        if self._agent is not None:
            self._agent.close()

    def candidates(self) -> Iterator[paramiko.PKey]:
        """Each key once: identity files, taken from the ssh-agent where it holds them, then its others."""
        held = {key.asbytes(): key for key in self._agent.get_keys()} if self._agent is not None else {}
        for path in self._target.identity_files:
            public = _public_blob(path)
            if public is not None and public in held:
                yield held.pop(public)
            elif path.is_file():
                yield from self._load(path)
        if not self._target.identities_only:
            yield from held.values()

    def _load(self, path: Path) -> Iterator[paramiko.PKey]:
        try:
            yield paramiko.PKey.from_path(path)
        except (TypeError, paramiko.PasswordRequiredException):  # cryptography says TypeError
            self.encrypted.append(path)
        except (OSError, ValueError, paramiko.SSHException, UnknownKeyType) as error:
            self.unusable.append(f"{path} cannot be used: {describe(error)}")


def log_in_as_person(link: paramiko.Transport, target: SshTarget, *, deadline: float) -> None:
    """Try the person's keys one after the other.

    Raises:
        TrustError: None was accepted; the message says what was tried and what could not be.
    """
    ring = KeyRing(target)
    tried = 0
    try:
        for key in ring.candidates():
            if tried == _MOST_KEYS or not link.is_active():
                break
            tried += 1
            if log_in(link, target.user, key, deadline=deadline):
                return
    finally:
        ring.close()
    raise _refused(target, ring, tried)


def _refused(target: SshTarget, ring: KeyRing, tried: int) -> TrustError:
    who = f"{target.user}@{target.hostname}"
    reasons = [f"{path} is encrypted and no ssh-agent holds it" for path in ring.encrypted] + ring.unusable
    offered = "none of your keys was offered" if tried == 0 else f"{tried} of your keys refused"
    message = f"login as {who} failed: " + "; ".join([offered, *reasons])
    if ring.encrypted:
        hint = f"unlock it first: ssh-add {ring.encrypted[0]}"
    else:
        hint = f"it must work without a password: try `{target.login}`, or ssh-copy-id with the same words"
    return TrustError(message, hint=hint, subject=target.hostname, code="login")


def _public_blob(path: Path) -> bytes | None:
    """The public half in `path.pub`, by which an ssh-agent's key is recognised."""
    try:
        line = path.with_name(path.name + ".pub").read_text(errors="replace")
        return bytes(PublicBlob.from_string(line).key_blob)
    except (OSError, ValueError, IndexError):
        return None

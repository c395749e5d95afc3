"""Whether a host key may be trusted at enrolment: known_hosts files, a given fingerprint, or a question.

Read of known_hosts: plain, wildcard, negated, `[host]:port` and hashed names, `@revoked`. Not supported:
the host certificates of `@cert-authority` lines, which errors name.

Source: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

from fedctl.core.errors import ConfigError, TrustError, reason_of
from fedctl.transport.base import SSH_PORT
from fedctl.transport.sshlink import fingerprint

_HASHED = "|1|"
_FILE_WORDS = {"ssh-rsa": "rsa", "ssh-ed25519": "ed25519"} | dict.fromkeys(
    [f"ecdsa-sha2-nistp{bits}" for bits in (256, 384, 521)], "ecdsa"
)  # by key type: in the names of sshd's key files


@dataclass(frozen=True, slots=True)
class KnownHosts:
    """What known_hosts files say about one host; keys are `type base64`."""

    keys: frozenset[str]
    revoked: frozenset[str]
    by_authority: bool = False  # a certificate authority vouches for the host, by certificates unread here

    @classmethod
    def read(cls, paths: Iterable[Path], host: str, port: int) -> Self:
        """Collect the keys of `host` from the files that exist.

        Raises:
            ConfigError: A file exists but cannot be read.
        """
        name = host if port == SSH_PORT else f"[{host}]:{port}"
        keys, revoked, by_authority = set(), set(), False
        for marker, patterns, key in _entries(paths):
            if not _matches(patterns, name):
                continue
            if marker == "@revoked":
                revoked.add(key)
            elif marker == "@cert-authority":
                by_authority = True
            elif not marker:
                keys.add(key)
        return cls(frozenset(keys), frozenset(revoked), by_authority)

    def or_else(self, key: str) -> KnownHosts:
        """With `key` as the known one where the files have none; "" adds nothing."""
        return replace(self, keys=frozenset([key])) if key and not self.keys else self

    @property
    def key_types(self) -> list[str]:
        """The types of the known keys: those to ask the server for."""
        return sorted({key.split(" ", 1)[0] for key in self.keys})


def check_host_key(
    shown: str,
    known: KnownHosts,
    *,
    where: str,
    accept: str | None,
    ask: Callable[[str], bool] | None,
    pinned: str | None = None,
    unknown_hint: str = "",
) -> None:
    """Trust the key `shown`, or refuse.

    Args:
        shown: What the server proved, `type base64`.
        known: What known_hosts says about the host.
        where: Names the host in messages.
        accept: A fingerprint that is trusted, or None.
        ask: Asked when nothing is known; None when nobody can be.
        pinned: The key of the device's enrolment, `type base64`; then known_hosts has no say but to revoke.
        unknown_hint: The way out for an unknown key, where --accept-host-key is none.

    Raises:
        TrustError: Revoked, changed, unknown, or not the accepted one.
    """
    key = _Shown(shown, where)
    if shown in known.revoked:
        raise key.refusal(f"{key.kind} key {key.fingerprint} of {where} is revoked in known_hosts")
    if accept is not None:
        _check_accepted(key, accept)
    elif pinned is not None:
        _check_pinned(key, pinned)
    elif shown not in known.keys:
        _check_new(key, known, ask, unknown_hint)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A key that a server proved, and the words about it."""

    key: str  # "type base64"
    where: str

    @property
    def kind(self) -> str:
        return self.key.split(" ", 1)[0]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key)

    @property
    def printed_by(self) -> str:
        """The command that prints the fingerprint at the device itself."""
        return f"ssh-keygen -lf /etc/ssh/ssh_host_{_FILE_WORDS.get(self.kind, 'ed25519')}_key.pub"

    def refusal(self, message: str, hint: str = "") -> TrustError:
        return TrustError(f"host {message}", hint=hint, subject=self.where, code="host_key")


def _check_accepted(key: _Shown, accept: str) -> None:
    if accept.rstrip("=") != key.fingerprint:
        raise key.refusal(
            f"{key.kind} key of {key.where} is {key.fingerprint}, not the accepted {accept}",
            f"compare with what the device itself prints: {key.printed_by}",
        )


def _check_pinned(key: _Shown, pinned: str) -> None:
    if pinned != key.key:
        raise key.refusal(
            f"{key.kind} key of {key.where} is {key.fingerprint}, another one than at its enrolment",
            f"if it was set up anew, compare with what it prints there ({key.printed_by}), then "
            "`fedctl devices remove NAME --forget` and add it again; else somebody else answers",
        )


def _check_new(key: _Shown, known: KnownHosts, ask: Callable[[str], bool] | None, unknown_hint: str) -> None:
    """A key that no known_hosts file has for the host."""
    if key.kind in known.key_types:
        raise key.refusal(
            f"{key.kind} key of {key.where} has changed: it is {key.fingerprint}, "
            "and known_hosts has another",
            "if the device was re-flashed, remove the old line (ssh-keygen -R); else somebody else answers",
        )
    if ask is None:
        unread = "; known_hosts has only a @cert-authority for it, and host certificates are not read here"
        raise key.refusal(
            f"{key.kind} key of {key.where} is unknown: {key.fingerprint}"
            f"{unread if known.by_authority else ''}",
            unknown_hint
            or f"compare it with what the device itself prints ({key.printed_by}) "
            f"and add --accept-host-key {key.fingerprint}",
        )
    if not ask(f"host key {key.fingerprint} ({key.kind}) of {key.where} is new. Trust it?"):
        raise key.refusal(f"{key.kind} key {key.fingerprint} of {key.where} was not trusted")


def _entries(paths: Iterable[Path]) -> Iterator[tuple[str, str, str]]:
    """(marker or "", host patterns, "type base64") of each line that has them."""
    for path in paths:
        try:
            lines = path.read_text(errors="replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {reason_of(error)}", subject=str(path)) from error
        for line in lines:
            words = line.split()
            marker = words.pop(0) if words and words[0].startswith("@") else ""
            if len(words) >= 3 and not words[0].startswith("#"):
                yield marker, words[0], f"{words[1]} {words[2]}"


def _matches(patterns: str, name: str) -> bool:
    if patterns.startswith(_HASHED):
        return _matches_hash(patterns, name)
    found = False
    for pattern in patterns.lower().split(","):
        # Only * and ? are special there; [ ] belong to the name of a host with a port.
        plain = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatchcase(name, plain):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _matches_hash(hashed: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in hashed[len(_HASHED) :].split("|"))
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)

"""The one-time token that lets a workstation enrol this device over HTTPS.

`fedctl-agent enrol` opens one, at the device; the daemon checks it. The device keeps its hash only. It
holds for 15 minutes of the clock that neither jumps nor stops while the device sleeps, and not beyond a
boot; for one enrolment; and for five tries, each of them on disk before it is answered, so that killing
the agent buys no further one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fedctl_agent.state import StateDir, read_json, write_durably
from fedctl_wire.codec import encode, from_json
from fedctl_wire.errors import WireError
from fedctl_wire.signing import key_id

LIFETIME_S = 15 * 60.0
TRIES = 5
_SECRET_BYTES = 20  # 160 bits, 32 characters in base32
_SCHEME = "bearer "


class TokenError(Exception):
    """What was presented does not open this device."""


class _TornError(TokenError):
    """The file holds no token."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time that survives neither a boot nor a set clock, because it needs neither."""

    boot_id: str
    since_boot_s: float  # CLOCK_BOOTTIME: goes on while the device sleeps


@dataclass(frozen=True, slots=True)
class _Opened:
    sha256: str  # of the secret
    boot_id: str
    opened_at_s: float
    tries: int = 0
    used: bool = False


def moment() -> Moment:
    """Now, by the system's clock since boot."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Moment(boot_id, time.clock_gettime(time.CLOCK_BOOTTIME))


def open_token(state: StateDir) -> str:
    """Make a token, in place of any earlier one, and return it with the identity key's fingerprint.

    Whoever types it on the workstation thereby says which key the device has to show.

    Raises:
        OSError: When the state directory cannot be written.
    """
    secret = base64.b32encode(os.urandom(_SECRET_BYTES)).decode().lower()
    now = moment()
    opened = _Opened(_hash(secret), now.boot_id, now.since_boot_s)
    write_durably(state.token, encode(opened))
    return f"fedctl-{secret}-{key_id(state.identity_public.read_text().strip())}"


class Tokens:
    """The daemon's side of the token. Thread-safe.

    Args:
        state: The agent's state directory.
        now: The clock since boot.
    """

    def __init__(self, state: StateDir, *, now: Callable[[], Moment] = moment) -> None:
        self._state = state
        self._now = now
        self._lock = threading.Lock()

    def check(self, authorization: str | None) -> None:
        """Count a try and compare.

        Args:
            authorization: The header `Authorization: Bearer SECRET`.

        Raises:
            TokenError: Saying what is wrong with it.
            OSError: When the try cannot be counted.
        """
        if authorization is None:
            raise TokenError("enrolment over HTTPS needs a token")
        with self._lock:
            opened = self._usable()
            write_durably(self._state.token, encode(replace(opened, tries=opened.tries + 1)))
            scheme, secret = authorization[: len(_SCHEME)], authorization[len(_SCHEME) :]
            if scheme.lower() != _SCHEME or not hmac.compare_digest(_hash(secret), opened.sha256):
                raise TokenError(f"the token is wrong; tries left: {TRIES - opened.tries - 1}")

    def use_up(self) -> None:
        """The device is enrolled: the token opens nothing any more.

        Raises:
            OSError: When that cannot be written.
        """
        with self._lock:
            try:
                opened = self._read()
            except _TornError:  # it opens nothing as it is, and need not hold up an enrolment at the socket
                return
            if opened is not None:
                write_durably(self._state.token, encode(replace(opened, used=True)))

    def _usable(self) -> _Opened:
        opened, now = self._read(), self._now()
        if opened is None:
            raise TokenError("no token is open on this device")
        if opened.used:
            raise TokenError("the token has been used already")
        age_s = now.since_boot_s - opened.opened_at_s
        if opened.boot_id != now.boot_id or not 0 <= age_s <= LIFETIME_S:
            raise TokenError(f"the token has expired: it holds for {LIFETIME_S / 60:g} minutes")
        if opened.tries >= TRIES:
            raise TokenError(f"the token is void after {TRIES} tries")
        return opened

    def _read(self) -> _Opened | None:
        try:
            return from_json(_Opened, read_json(self._state.token), what="token")
        except FileNotFoundError:
            return None
        except WireError as error:
            name = self._state.token.name
            raise _TornError(f"this device's {name} is damaged: run fedctl-agent enrol again") from error


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

"""First contact with a device in a command: is it the one we mean, and does it know today's roster?"""

from __future__ import annotations

import time
from dataclasses import dataclass

from fedctl.core.errors import TrustError
from fedctl.core.home import Home
from fedctl.core.records import Device
from fedctl.ops.authority import operator_identity
from fedctl.ops.roster import stored_roster
from fedctl.release.keys import login_path
from fedctl.transport import DEFAULT_TIMEOUT_S, AgentClient, connect
from fedctl.transport.typed import typed_words
from fedctl_wire.messages import Health
from fedctl_wire.signing import key_id


@dataclass(frozen=True, slots=True)
class Contact:
    """What a device said of itself."""

    health: Health
    round_trip_ms: float
    roster_pushed: bool  # it held an older one


def reach(home: Home, device: Device, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> AgentClient:
    """A client of an enrolled device with all that its row and the home's keys say of the way there.

    Raises:
        ConfigError: It is reached over HTTPS and the operator's key or certificate is missing.
    """
    https = device.url.startswith("https:")
    return connect(
        device=device.name,
        url=device.url,
        host_key=device.host_key,
        login_key=login_path(home),
        facts=device.facts,
        pin=key_id(device.identity_key),
        identity=operator_identity(home) if https else None,
        timeout_s=timeout_s,
    )


def greet(client: AgentClient, device: Device, home: Home, *, roster_serial: int) -> Contact:
    """Ask a device who it is, and pass the roster on where it holds an older one.

    Args:
        client: At the device's address.
        device: Who should answer there.
        home: Holds the roster.
        roster_serial: Of the fleet's current roster.

    Raises:
        UnreachableError: Nobody answers.
        TrustError: Another device does.
    """
    health, round_trip_ms = timed_health(client)
    if health.device != device.name:
        raise TrustError(
            f"at the address of {device.name} answers {health.device or 'a device that is not enrolled'}",
            hint=f"look which device has {device.url} now; if it is {device.name}, set up anew: "
            f"fedctl devices add {device.name} {typed_words(device.facts, device.url)}",
            subject=device.name,
            code="identity",
        )
    roster = stored_roster(home) if health.roster_serial < roster_serial else None
    if roster is not None:
        client.put_roster(roster)
    return Contact(health, round_trip_ms, roster_pushed=roster is not None)


def timed_health(client: AgentClient) -> tuple[Health, float]:
    """The device's health, and the milliseconds until it was here."""
    started = time.perf_counter()
    health = client.health()
    return health, (time.perf_counter() - started) * 1000

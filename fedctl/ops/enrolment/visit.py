"""Logging in, as the admin, on a device that is enrolled already: for its removal, its upgrade, a new key."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedctl.core.errors import DeviceError, TrustError, UsageError
from fedctl.core.home import Home
from fedctl.core.records import Device
from fedctl.ops.enrolment.survey import Places
from fedctl.release.keys import login_path
from fedctl.transport import AdminSession, Endpoint, open_admin
from fedctl.transport.jump import Route
from fedctl.transport.typed import URL_FACT, typed_config, typed_words

LOGIN_FACT = "login_key"  # of a device's row: which login key its line has


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminLogin:
    """How the admin, not fedctl, logs in at a device over SSH."""

    ssh_config: Path | None = None
    via: str | None = None  # another ssh URL to log in at, e.g. as root; the device's own stays what it is
    accept_host_key: str | None = None  # "SHA256:…"
    ask: Callable[[str], bool] | None = None  # None: never asked, an unknown host key is refused


@contextlib.contextmanager
def visit(
    home: Home, device: Device, admin: AdminLogin, *, set_up_anew: bool = False
) -> Iterator[AdminSession]:
    """The admin's login on a device, whose host key must be that of its enrolment.

    Args:
        home: Its login key is offered to a jump host after the admin's own keys.
        device: Which.
        admin: How to log in there.
        set_up_anew: A host key that the admin accepts by its fingerprint may be another one.

    Raises:
        TrustError: It is another one, or no key was accepted for the login.
        UnreachableError: The device does not answer.
        ConfigError: The OpenSSH configuration cannot be used.
    """
    with open_admin(
        admin_endpoint(device),
        via=Endpoint.parse(admin.via) if admin.via else None,
        ssh_config=ssh_config_for(device, admin),
        accept_host_key=admin.accept_host_key,
        ask=admin.ask,
        login_key=login_path(home),
        device=device.name,
        pinned=device.host_key,
        facts=device.facts,
    ) as session:
        if session.host_key != device.host_key and not (set_up_anew and admin.accept_host_key):
            raise TrustError(
                f"device {device.name} shows another host key than at its enrolment",
                subject=device.name,
                code="host_key",
            )
        yield session


def admin_endpoint(device: Device) -> Endpoint:
    """The address as the admin typed it at enrolment; it may be an alias of an SSH configuration."""
    return Endpoint.parse(str(device.facts.get(URL_FACT, device.url)))


def ssh_config_for(device: Device, admin: AdminLogin) -> Path | None:
    """The SSH configuration to log in with: the one that is named now, else the one of the enrolment."""
    return admin.ssh_config or typed_config(device.facts) or Route.from_facts(device.facts).ssh_config


def no_agent(device: Device, places: Places, host_key: str) -> DeviceError:
    """The error for an agent that is not there any more; `host_key` is what the device shows now.

    `devices add` puts it back and keeps the membership, unless the device was set up anew and shows another
    host key: that one it only takes for a device that it does not know.
    """
    forget = "" if host_key == device.host_key else f"fedctl devices remove {device.name} --forget, then "
    system = " --system" if places.system else ""
    return DeviceError(
        f"device {device.name} has no agent any more in {places.prefix}",
        hint=f"install it again: {forget}fedctl devices add {device.name} "
        f"{typed_words(device.facts, device.url)}{system}",
        subject=device.name,
        code="no_agent",
    )


def check_via(admin: AdminLogin, devices: Sequence[Device]) -> None:
    """Refuse one device's login for several devices.

    Raises:
        UsageError: `via` is given, and there is more than one device.
    """
    if admin.via is not None and len(devices) > 1:
        raise UsageError(
            f"--via is an address of one device, and {len(devices)} are chosen",
            hint="name one device, or give them aliases in your SSH configuration and use -F",
            subject="--via",
        )

"""Logging in, as the admin, on a device that is enrolled already: for its removal, its upgrade, a new key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fedctl.core.errors import TrustError
from fedctl.core.records import Device
from fedctl.ops.enrolment.add import AdminLogin
from fedctl.transport import AdminSession, Endpoint, open_admin
from fedctl.transport.jump import Route


@contextlib.contextmanager
def visit(device: Device, admin: AdminLogin, *, set_up_anew: bool = False) -> Iterator[AdminSession]:
    """The admin's login on a device, whose host key must be that of its enrolment.

    Args:
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
        ssh_config=admin.ssh_config or Route.from_facts(device.facts).ssh_config,
        accept_host_key=admin.accept_host_key,
        ask=admin.ask,
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
    return Endpoint.parse(str(device.facts.get("admin_url", device.url)))

"""How the workstation reaches an agent: Unix sockets, SSH and HTTPS, one client over all.

`connect` gives an `AgentClient` for one device, `sweep` works on many devices at once, and
`open_admin` logs in as the person's own account to install or remove an agent. Importing this package loads
none of paramiko, httpx and ssl; the first connection does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedctl.core.errors import UsageError
from fedctl.transport.admin import AdminSession, Completed, open_admin
from fedctl.transport.base import DEFAULT_TIMEOUT_S, ClientIdentity, Endpoint, Traffic, Transport
from fedctl.transport.client import AgentClient
from fedctl.transport.commands import why_no_commands
from fedctl.transport.pool import retrying, sweep
from fedctl.transport.typed import URL_FACT, typed_words
from fedctl_wire.codec import Json

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "AdminSession",
    "AgentClient",
    "ClientIdentity",
    "Completed",
    "Endpoint",
    "Traffic",
    "connect",
    "open_admin",
    "retrying",
    "sweep",
    "why_no_commands",
]


def connect(
    *,
    device: str,
    url: str,
    host_key: str | None = None,
    login_key: Path | None = None,
    facts: Mapping[str, Json] | None = None,
    pin: str | None = None,
    identity: ClientIdentity | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> AgentClient:
    """A client of one device's agent; the connection is made by its first call.

    Args:
        device: The device's name, which every error carries.
        url: `unix:///PATH`, `ssh://[user@]host[:port]` or `https://host[:port]`.
        host_key: SSH: the pinned key, `ssh-ed25519 AAAA…`.
        login_key: SSH: the fleet's login key, an unencrypted OpenSSH private key file.
        facts: SSH: what the device's row says of the way there: `Route.facts` and `typed_facts`.
        pin: HTTPS: the SHA-256 of the device's raw public identity key, hex.
        identity: HTTPS: what the workstation shows; None before the first enrolment.
        timeout_s: How long one call may take; transfers get more by their size, long polls by their wait.

    Raises:
        UsageError: When the URL is not one of these, SSH lacks the host key or the login key, or HTTPS
            the pin.
    """
    endpoint = Endpoint.parse(url)
    if endpoint.scheme == "https":
        from fedctl.transport.https import HttpsTransport

        if pin is None:
            raise UsageError(f"device {device} is reached by HTTPS but has no pinned key", subject=device)
        return AgentClient(HttpsTransport(device, endpoint, pin=pin, identity=identity), timeout_s=timeout_s)
    return AgentClient(_transport(device, endpoint, host_key, login_key, facts or {}), timeout_s=timeout_s)


def _transport(
    device: str,
    endpoint: Endpoint,
    host_key: str | None,
    login_key: Path | None,
    facts: Mapping[str, Json],
) -> Transport:
    if endpoint.scheme == "unix":
        from fedctl.transport.unix import UnixTransport

        return UnixTransport(device, Path(endpoint.path))
    if host_key is None or login_key is None:
        missing = "host key" if host_key is None else "login key"
        raise UsageError(f"device {device} is reached by SSH but has no {missing}", subject=device)
    from fedctl.transport.jump import Route
    from fedctl.transport.ssh import SshTransport

    route = Route.from_facts(facts)
    transport = SshTransport(device, endpoint, host_key=host_key, login_key=login_key, route=route)
    if URL_FACT in facts:
        words = typed_words(facts, endpoint.url)
        transport.mend = f"`fedctl devices add {device} {words}` repairs it (run it again)"
    return transport

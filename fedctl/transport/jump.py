"""Reaching a device through jump hosts (OpenSSH's ProxyJump), one connection to each for a whole process.

A jump host only forwards bytes: the device's host key is checked end to end, so that a jump host can
refuse service but not listen. Its own key must be in known_hosts, or the one that a person accepted when
the device was enrolled; the login there is the person's own, or else the fleet's login key.

A route keeps the jump hosts' names as the configuration says them; address, user, keys and known_hosts
are looked up whenever a process first goes that way.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedctl.core.errors import ConfigError, FedctlError, TrustError, UnreachableError
from fedctl.transport.base import Endpoint, describe, remaining_s
from fedctl_wire.codec import Json

if TYPE_CHECKING:
    import paramiko

    from fedctl.transport.sshconfig import SshTarget

_MOST_HOPS = 8  # of a route; more is a loop in the configuration
_FAILURE_LASTS_S = 5.0  # so long others share a refused login instead of trying themselves
_NOWHERE = ("127.0.0.1", 0)  # where a forwarded connection comes from; sshd only logs it
_PROHIBITED, _CONNECT_FAILED = 1, 2  # RFC 4254, section 5.1

Ask = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Hop:
    """A jump host: as the configuration names it, and the host key it had at the device's enrolment."""

    url: str
    host_key: str = ""  # "type base64"; "" when it was not reached yet

    @property
    def name(self) -> str:
        """As a person writes it."""
        return self.url.removeprefix("ssh://")


@dataclass(frozen=True, slots=True)
class Route:
    """The jump hosts between this machine and a device, nearest first; none: it is reached directly."""

    hops: tuple[Hop, ...] = ()
    ssh_config: Path | None = None  # another configuration than the user's own

    def facts(self) -> dict[str, Json]:
        """The route for a device's row."""
        hops: list[Json] = [{"url": hop.url, "host_key": hop.host_key} for hop in self.hops]
        config = str(self.ssh_config.absolute()) if self.ssh_config is not None and hops else None
        return {"jump": hops, "ssh_config": config}

    def remembering(self, before: Route) -> Route:
        """This route with the host keys that the same jump hosts had before."""
        keys = {hop.url: hop.host_key for hop in before.hops}
        hops = tuple(Hop(hop.url, hop.host_key or keys.get(hop.url, "")) for hop in self.hops)
        return Route(hops, self.ssh_config)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Json]) -> Route:
        """The route of a device's row; older rows have none."""
        kept = facts.get("jump")
        hops = [
            Hop(str(hop.get("url")), str(hop.get("host_key", "")))
            for hop in (kept if isinstance(kept, list) else ())
            if isinstance(hop, dict)
        ]
        config = facts.get("ssh_config")
        return cls(tuple(hops), Path(config) if isinstance(config, str) else None)


def route_to(target: SshTarget, ssh_config: Path | None) -> Route:
    """The route that the configuration gives a device: its own ProxyJump, and that of the first jump host.

    Raises:
        ConfigError: The jump hosts go in a circle, or one of them has a ProxyCommand.
    """
    from fedctl.transport.sshconfig import resolve

    endpoints = target.jump
    while endpoints:
        before = resolve(endpoints[0], config=ssh_config).jump
        if not before:
            break
        endpoints = (*before, *endpoints)
        if len(endpoints) > _MOST_HOPS:
            raise ConfigError(
                f"the SSH configuration sends {target.hostname} through jump hosts in a circle: "
                f"{', '.join(endpoint.host for endpoint in endpoints[:3])} …",
                hint="exempt the jump host itself, e.g. Host * !bastion",
                subject=target.hostname,
                code="jump_loop",
            )
    return Route(tuple(Hop(endpoint.url) for endpoint in endpoints), ssh_config)


@dataclass(slots=True)
class _Connection:
    """One jump host of one route; `lock` is held while somebody logs in there."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    link: paramiko.Transport | None = None
    host_key: str = ""
    failure: FedctlError | None = None
    failed_at: float = 0.0  # instant of time.monotonic()

    @property
    def lasts_s(self) -> float:
        """How long after the failure it still holds: a host that was away may be back at once."""
        return 0.0 if isinstance(self.failure, UnreachableError) else _FAILURE_LASTS_S


class JumpHosts:
    """The connections to jump hosts of one process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: dict[tuple[Path | None, tuple[str, ...]], _Connection] = {}

    def open(
        self,
        route: Route,
        host: str,
        port: int,
        deadline: float,
        *,
        device: str,
        login_key: Path | None = None,
        ask: Ask | None = None,
    ) -> paramiko.Channel:
        """A byte stream to `host` from the last jump host of the route.

        Args:
            route: With at least one jump host.
            host: Name or address as the last jump host knows it.
            port: TCP port there.
            deadline: Instant of `time.monotonic()`.
            device: Named in errors.
            login_key: The fleet's login key, offered to a jump host after the person's own keys.
            ask: Asked about an unknown host key of a jump host.

        Raises:
            UnreachableError: A jump host, or the device from there, does not answer.
            TrustError: A jump host's key is not trusted, or it refuses the login or the forwarding.
            ConfigError: The configuration cannot be read.
        """
        with _about(device, route):
            link = self._link(route, len(route.hops), deadline, login_key, ask)
            return _forward(link, route.hops[-1], host, port, deadline)

    def seen(self, route: Route) -> Route:
        """The route with the host keys that its jump hosts have shown."""
        hops = [
            Hop(hop.url, self._connection(route, count).host_key or hop.host_key)
            for count, hop in enumerate(route.hops, start=1)
        ]
        return Route(tuple(hops), route.ssh_config)

    def close(self) -> None:
        """Log out everywhere; the next `open` logs in again."""
        with self._lock:
            connections, self._connections = list(self._connections.values()), {}
        for connection in reversed(connections):
            if connection.link is not None:
                connection.link.close()

    def _connection(self, route: Route, count: int) -> _Connection:
        """Of the jump host that is the `count`th of the route."""
        key = (route.ssh_config, tuple(hop.url for hop in route.hops[:count]))
        with self._lock:
            return self._connections.setdefault(key, _Connection())

    def _link(
        self, route: Route, count: int, deadline: float, login_key: Path | None, ask: Ask | None
    ) -> paramiko.Transport:
        connection = self._connection(route, count)
        asked_at = time.monotonic()
        if not connection.lock.acquire(timeout=remaining_s(deadline)):
            raise UnreachableError(f"login at {route.hops[count - 1].name} takes too long")
        try:
            if connection.link is not None and connection.link.is_active():
                return connection.link
            if connection.failure is not None and asked_at < connection.failed_at + connection.lasts_s:
                raise connection.failure  # of the same login, which others need not repeat
            connection.failure = None
            connection.link, connection.host_key = self._log_in(route, count, deadline, login_key, ask)
        except FedctlError as error:
            if connection.failure is None:
                connection.failure, connection.failed_at = error, time.monotonic()
            raise
        finally:
            connection.lock.release()
        return connection.link

    def _log_in(
        self, route: Route, count: int, deadline: float, login_key: Path | None, ask: Ask | None
    ) -> tuple[paramiko.Transport, str]:
        from fedctl.transport.hostkeys import KnownHosts, check_host_key
        from fedctl.transport.login import log_in_as_person
        from fedctl.transport.sshconfig import resolve
        from fedctl.transport.sshlink import HANDSHAKES, connect, host_key_of

        hop = route.hops[count - 1]
        target = resolve(Endpoint.parse(hop.url), config=route.ssh_config)
        known = KnownHosts.read(target.known_hosts, target.known_as, target.port).or_else(hop.host_key)

        def through(host: str, port: int, deadline: float) -> paramiko.Channel:
            link = self._link(route, count - 1, deadline, login_key, ask)
            return _forward(link, route.hops[count - 2], host, port, deadline)

        with HANDSHAKES.turn((route.ssh_config, hop.url), deadline):
            link = connect(
                target.hostname,
                target.port,
                key_types=known.key_types,
                device=hop.name,
                kind="jump host",
                deadline=deadline,
                opener=through if count > 1 else None,
            )
            try:
                shown = host_key_of(link)
                begin = time.monotonic()
                check_host_key(
                    shown,
                    known,
                    where=f"jump host {target.hostname}",
                    accept=None,
                    ask=ask,
                    unknown_hint=f"log in there once, so that known_hosts has it: {target.login}",
                )
                # A person may have thought about the question for longer than the deadline.
                thought_s = time.monotonic() - begin
                log_in_as_person(link, target, deadline=deadline + thought_s, also=_key(login_key))
            except BaseException:
                link.close()
                raise
        return link, shown


JUMP_HOSTS = JumpHosts()
atexit.register(JUMP_HOSTS.close)


def _key(path: Path | None) -> paramiko.PKey | None:
    """The fleet's login key; without it the person's own must do."""
    from fedctl.transport.sshlink import load_key

    try:
        return None if path is None else load_key(path)
    except ConfigError:
        return None


class _Forwarded:
    """A stream through a jump host. Closing it never fails: the connection below it may be gone first."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def close(self) -> None:
        """Close it; the thread that reads a connection over it has nobody to tell of a failure."""
        with contextlib.suppress(EOFError, OSError):
            self._channel.close()


def _forward(link: paramiko.Transport, hop: Hop, host: str, port: int, deadline: float) -> paramiko.Channel:
    import paramiko

    try:
        channel = link.open_channel("direct-tcpip", (host, port), _NOWHERE, timeout=remaining_s(deadline))
        return cast("paramiko.Channel", _Forwarded(channel))
    except paramiko.ChannelException as error:
        if error.code == _PROHIBITED:
            raise TrustError(
                f"{hop.name} forbids forwarding to {host} port {port}",
                hint="its sshd has AllowTcpForwarding no, DisableForwarding yes or a PermitOpen without this "
                "address; or the key there has restrict without port-forwarding",
                code="forwarding",
            ) from error
        reason = "nobody answers there" if error.code == _CONNECT_FAILED else str(error.text)
        raise UnreachableError(f"{hop.name} cannot reach {host} port {port}: {reason}") from error
    except TimeoutError:
        raise
    except (OSError, EOFError, paramiko.SSHException) as error:
        reason = "connection timed out" if "Timeout" in str(error) else describe(error)
        raise UnreachableError(f"{hop.name} did not connect to {host} port {port}: {reason}") from error


@contextlib.contextmanager
def _about(device: str, route: Route) -> Iterator[None]:
    """Errors of a jump host name the device behind it; each device gets an error of its own."""
    through = ", ".join(hop.name for hop in route.hops)
    try:
        yield
    except FedctlError as error:
        raise type(error)(
            f"device {device} is behind {through}: {error.message}",
            hint=error.hint,
            subject=device,
            exit_code=error.exit_code,
            code=error.code,
        ) from error
    except Exception as error:
        raise UnreachableError(
            f"device {device} is behind {through}: {describe(error)}", subject=device
        ) from error

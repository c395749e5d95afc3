"""The person's own SSH login on a device, for enrolment, upgrade, rekey and removal.

Unlike the agent's connections this one follows the user's OpenSSH configuration: host aliases, users,
ports, jump hosts, identity files, certificates, the ssh-agent and known_hosts. Not supported: passwords,
ProxyCommand, certificates of hosts.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedctl.core.errors import DeviceError, ExitCode, FedctlError, UnreachableError, UsageError
from fedctl.transport.base import DEFAULT_TIMEOUT_S, Endpoint, describe, remaining_s
from fedctl_wire.codec import Json

if TYPE_CHECKING:
    import paramiko

    from fedctl.transport.jump import Route
    from fedctl.transport.sshconfig import SshTarget
    from fedctl.transport.sshlink import Opener

_OUTPUT_BYTES = 8 * 1024 * 1024  # of stdout and stderr each
_BLOCK_BYTES = 32 * 1024
_SESSION_ENDS_S = 2.0  # until a session that was closed has ended on the server, too
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Completed:
    """How a remote command ended; `code` is -1 when a signal ended it."""

    code: int
    stdout: bytes
    stderr: bytes


class AdminSession:
    """A logged-in SSH connection that runs commands; a context manager.

    Attributes:
        host_key: The key the device proved, `ssh-ed25519 AAAA…`: what `device.host_key` pins.
        endpoint: The device's own resolved address (user, host name and port all set): what `device.url`
            should hold, since the agent's connections do not read the OpenSSH configuration.
        user: Who is logged in.
        acts_for: The user of `endpoint`, where the login is another one's, by `via`; else None.
        route: The jump hosts on the way, which the agent's connections take too.
        notes: What of the configuration could not be followed, one sentence each; usually empty.
    """

    user: str = ""
    acts_for: str | None = None

    def __init__(
        self, link: paramiko.Transport, login: SshTarget, device: SshTarget, host_key: str, route: Route
    ) -> None:
        self.host_key = host_key
        self.endpoint = Endpoint("ssh", user=device.user, host=device.hostname, port=device.port)
        self.route = route
        self.user = login.user
        self.acts_for = None if login.user == device.user else device.user
        self.notes = login.notes
        self._link = link

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, argv: str, *, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed:
        """Run a command line by the login's shell, feed it `stdin` and collect its output.

        Args:
            argv: The command line; quoting is the caller's (`shlex.join`).
            stdin: Sent whole, then closed.
            timeout_s: For the whole command.

        Raises:
            UnreachableError: The connection broke or the command did not end in time.
            DeviceError: It printed more than 8 MiB, or the login may have no session.
        """
        host = self.endpoint.host
        try:
            return _run(self._link, argv, stdin, time.monotonic() + timeout_s)
        except _TooMuchOutputError as error:
            raise DeviceError(
                f"{host}: a command printed more than {_OUTPUT_BYTES} bytes", subject=host
            ) from error
        except _NoSessionError as error:
            raise DeviceError(
                f"{host}: {self.user} may not run commands: its sshd opens no session ({error})",
                hint="its sshd_config has MaxSessions 0 for this user: it needs 1 or more",
                subject=host,
                exit_code=ExitCode.CONFIG,
                code="no_commands",
            ) from error
        except TimeoutError as error:
            raise UnreachableError(
                f"{host}: a command did not end within {timeout_s:.0f} s", subject=host
            ) from error
        except Exception as error:
            raise UnreachableError(f"{host}: the login broke off: {describe(error)}", subject=host) from error

    def close(self) -> None:
        """Log out."""
        self._link.close()


def open_admin(  # noqa: PLR0913 - what a person can say about a login
    endpoint: Endpoint,
    *,
    via: Endpoint | None = None,
    ssh_config: Path | None = None,
    accept_host_key: str | None = None,
    ask: Callable[[str], bool] | None = None,
    login_key: Path | None = None,
    device: str = "",
    pinned: str | None = None,
    facts: Mapping[str, Json] | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> AdminSession:
    """Log in on a device with the person's own keys.

    Args:
        endpoint: An `ssh` endpoint; its host may be an alias of the OpenSSH configuration.
        via: Where and as whom to log in instead, e.g. as root; the endpoint stays the device's own.
        ssh_config: Another configuration file than the user's (`ssh -F`).
        accept_host_key: `SHA256:…` fingerprint that is trusted, whatever known_hosts says.
        ask: Asked about an unknown host key with a whole question; None when there is no terminal.
        login_key: The fleet's login key, which a jump host may know beside the person's own.
        device: Named in errors; the host where it has no name yet.
        pinned: The host key of the device's enrolment, `type base64`; trusted unless another is accepted.
        facts: What the device's row says, of the jump hosts on the way among other things.
        timeout_s: For connection and login.

    Raises:
        UsageError: The endpoint is no `ssh` one.
        ConfigError: The configuration cannot be read, or asks for ProxyCommand.
        UnreachableError: The device did not answer.
        TrustError: Its host key is unknown, changed or revoked, or no key was accepted for the login.
    """
    from fedctl.transport.hostkeys import KnownHosts, check_host_key
    from fedctl.transport.jump import JUMP_HOSTS, Route, route_to
    from fedctl.transport.sshconfig import resolve

    _check_ssh(endpoint, via)
    target = resolve(via or endpoint, config=ssh_config)
    own = resolve(endpoint, config=ssh_config) if via is not None else target
    host = target.hostname
    known = KnownHosts.read(target.known_hosts, target.known_as, target.port)
    remembered = Route.from_facts(facts or {})
    route = route_to(target, ssh_config).remembering(remembered)
    through = partial(JUMP_HOSTS.open, route, device=device or host, login_key=login_key, ask=ask)
    link, shown = _log_in(
        target,
        route,
        through if route.hops else None,
        key_types=[pinned.split(" ", 1)[0]] if pinned else known.key_types,
        check=partial(
            check_host_key, known=known, where=host, accept=accept_host_key, ask=ask, pinned=pinned
        ),
        device=device or host,
        timeout_s=timeout_s,
    )
    own_route = route_to(own, ssh_config).remembering(remembered)
    return AdminSession(link, target, own, shown, JUMP_HOSTS.seen(own_route))


def _check_ssh(endpoint: Endpoint, via: Endpoint | None) -> None:
    for where in (endpoint, via or endpoint):
        if where.scheme != "ssh":
            raise UsageError(f"{where.url} is no ssh:// address", subject=where.url)


def _log_in(
    target: SshTarget,
    route: Route,
    opener: Opener | None,
    *,
    key_types: Sequence[str],
    check: Callable[[str], None],
    device: str,
    timeout_s: float,
) -> tuple[paramiko.Transport, str]:
    """Connect, `check` the host key, log in; with the key that the server showed."""
    from fedctl.transport.login import log_in_as_person
    from fedctl.transport.sshlink import HANDSHAKES, connect, host_key_of

    host, deadline = target.hostname, time.monotonic() + timeout_s
    link = None
    try:
        with HANDSHAKES.turn((route, host, target.port), deadline):
            link = connect(
                host, target.port, key_types=key_types, device=device, deadline=deadline, opener=opener
            )
            shown = host_key_of(link)
            check(shown)
            # A person may have thought about the question for longer than the deadline.
            log_in_as_person(link, target, deadline=time.monotonic() + timeout_s)
    except BaseException as error:
        if link is not None:
            link.close()
        if isinstance(error, FedctlError) or not isinstance(error, Exception):
            raise
        raise UnreachableError(f"login on {host} broke off: {describe(error)}", subject=host) from error
    return link, shown


class _TooMuchOutputError(Exception):
    """A command prints without end."""


class _NoSessionError(Exception):
    """The server opens no session."""


def _run(link: paramiko.Transport, argv: str, stdin: bytes, deadline: float) -> Completed:
    with _open_session(link, deadline) as channel:
        channel.settimeout(remaining_s(deadline))
        channel.exec_command(argv)
        # A thread of its own, or input and output could wait for each other; it ends with the channel.
        threading.Thread(target=_feed, args=(channel, stdin), daemon=True).start()
        stdout, stderr = _collect(channel, deadline)
        channel.status_event.wait(remaining_s(deadline))
        if not link.is_active():
            raise EOFError("connection lost")
        return Completed(channel.exit_status, stdout, stderr)


def _open_session(link: paramiko.Transport, deadline: float) -> paramiko.Channel:
    import paramiko

    # The session of the command before may still count towards sshd's MaxSessions.
    give_up = min(deadline, time.monotonic() + _SESSION_ENDS_S)
    while True:
        try:
            return link.open_session(timeout=remaining_s(deadline))
        except paramiko.ChannelException as error:
            if time.monotonic() > give_up:
                raise _NoSessionError(error.text) from error
            time.sleep(_PAUSE_S)


def _feed(channel: paramiko.Channel, stdin: bytes) -> None:
    try:
        for start in range(0, len(stdin), _BLOCK_BYTES):  # paramiko copies what is left with each packet
            channel.sendall(stdin[start : start + _BLOCK_BYTES])
        channel.shutdown_write()
    except (OSError, EOFError):
        return  # the command ended without reading it all; its exit code says why


def _collect(channel: paramiko.Channel, deadline: float) -> tuple[bytes, bytes]:
    """Everything the command prints, until it closes its output."""
    stdout, stderr = bytearray(), bytearray()
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    while True:
        ended = channel.closed or channel.eof_received  # before looking: nothing comes after it
        while channel.recv_ready():
            stdout += channel.recv(_BLOCK_BYTES)
        while channel.recv_stderr_ready():
            stderr += channel.recv_stderr(_BLOCK_BYTES)
        if max(len(stdout), len(stderr)) > _OUTPUT_BYTES:
            raise _TooMuchOutputError
        if ended:
            return bytes(stdout), bytes(stderr)
        poller.poll(remaining_s(deadline) * 1000)

"""An agent behind SSH: a session channel in which the login key's forced command runs `dial-stdio`.

Strict: the host key must be the pinned one and the login is by the fleet's key only. The user's OpenSSH
configuration and ssh-agent are only looked at for jump hosts. One SSH connection carries all of a client's
streams and is made anew when it was lost.
"""

from __future__ import annotations

import getpass
from dataclasses import replace
from pathlib import Path

import paramiko

from fedctl.core.errors import DeviceError, FedctlError, TrustError
from fedctl.transport.base import SSH_PORT, Endpoint, Stream, Transport, remaining_s
from fedctl.transport.bridge import expect_agent
from fedctl.transport.jump import JUMP_HOSTS, Route
from fedctl.transport.sshlink import (
    HANDSHAKES,
    LoginAnswer,
    connect,
    fingerprint,
    host_key_of,
    load_key,
    log_in,
)

_DIRECT = Route()
# OpenSSH takes 2 MiB ahead of what the agent has read, which a cut loses and an upload sends again. It asks
# for more after 96 KiB, so that less is enough; servers that ask later would wait for ever, and are left as
# they are.
_WINDOW_BYTES = 256 * 1024
_COMMAND = "dial-stdio"  # only for sshd's log: the key's forced command runs instead


class SshTransport(Transport):
    """Streams to one device's agent over one SSH connection."""

    def __init__(
        self,
        device: str,
        endpoint: Endpoint,
        *,
        host_key: str,
        login_key: Path,
        route: Route = _DIRECT,
    ) -> None:
        super().__init__(device)
        self._route = route
        self._host, self._port = endpoint.host, endpoint.port or SSH_PORT
        self._user = endpoint.user or getpass.getuser()
        self._endpoint = replace(endpoint, user=self._user)
        self._host_key = " ".join(host_key.split()[:2])
        self._login_key = login_key
        self._link: paramiko.Transport | None = None

    def close(self) -> None:
        """Log out."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _dial(self, deadline: float) -> Stream:
        fresh = self._link is None or not self._link.is_active()
        if self._link is None or fresh:
            self.close()
            self._link = self._login(deadline)
        try:
            return ChannelStream(self, self._open_channel(self._link, deadline))
        except FedctlError:
            raise
        except paramiko.ChannelException as error:
            self.close()
            if fresh:
                raise _no_session(self.device, error) from error
            return self._dial(deadline)  # an earlier session may still count towards sshd's MaxSessions
        except BaseException:
            self.close()  # a connection that died unnoticed must not spoil the next try as well
            raise

    def _open_channel(self, link: paramiko.Transport, deadline: float) -> paramiko.Channel:
        channel = link.open_session(timeout=remaining_s(deadline))
        try:
            channel.settimeout(remaining_s(deadline))
            channel.exec_command(_COMMAND)
            if "OpenSSH" in link.remote_version:  # which opens its window just before it answers
                channel.out_window_size = min(channel.out_window_size, _WINDOW_BYTES)
            expect_agent(channel, device=self.device, endpoint=self._endpoint, deadline=deadline)
        except BaseException:
            channel.close()
            raise
        return channel

    def _login(self, deadline: float) -> paramiko.Transport:
        answer = LoginAnswer.REFUSED
        for path in login_keys(self._login_key):
            link, answer = self._try(path, deadline)
            if answer is LoginAnswer.ACCEPTED:
                return link
            link.close()
        why = f": {answer.value}" if answer is not LoginAnswer.REFUSED else ""
        raise TrustError(
            f"device {self.device} refused the fleet's login key for user {self._user}{why}",
            hint="its authorized_keys no longer holds fedctl's line, perhaps after a re-flash: "
            f"`fedctl devices rekey {self.device}` puts it back",
            subject=self.device,
            code="login",
        )

    def _try(self, path: Path, deadline: float) -> tuple[paramiko.Transport, LoginAnswer]:
        key = load_key(path)
        with HANDSHAKES.turn((self._route, self._host, self._port), deadline):
            link = connect(
                self._host,
                self._port,
                key_types=[self._host_key.split(" ", 1)[0]],
                device=self.device,
                deadline=deadline,
                opener=self._through if self._route.hops else None,
            )
            try:
                self._check_host_key(host_key_of(link))
                return link, log_in(link, self._user, key, deadline=deadline)
            except BaseException:
                link.close()
                raise

    def _through(self, host: str, port: int, deadline: float) -> paramiko.Channel:
        return JUMP_HOSTS.open(
            self._route, host, port, deadline, device=self.device, login_key=self._login_key
        )

    def _check_host_key(self, shown: str) -> None:
        if shown == self._host_key:
            return
        try:
            pinned = fingerprint(self._host_key)
        except (ValueError, IndexError):
            pinned = "no valid key"
        raise TrustError(
            f"device {self.device} at {self._host} has another host key than when it was enrolled: "
            f"{fingerprint(shown)}, pinned is {pinned}",
            hint="if it was re-flashed, remove it and add it again; otherwise somebody else answers there",
            subject=self.device,
            code="host_key",
        )


def _no_session(device: str, error: paramiko.ChannelException) -> DeviceError:
    return DeviceError(
        f"device {device} refuses sessions on the connection: {error.text}",
        hint="its sshd has MaxSessions 0: fedctl needs 1 or more",
        subject=device,
        code="no_session",
    )


def login_keys(current: Path) -> list[Path]:
    """The fleet's login key, and the one before it while `devices rekey` has not replaced it everywhere."""
    before = current.with_name(f"{current.name}.previous")
    return [current, before] if before.exists() else [current]


class ChannelStream:
    """A session channel whose other end is the agent."""

    def __init__(self, transport: SshTransport, channel: paramiko.Channel) -> None:
        self._transport = transport
        self._channel = channel

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        """See `Stream`."""
        self._channel.settimeout(timeout_s)
        try:
            return self._channel.recv(max_bytes)
        except TimeoutError:
            self._transport.close()
            raise

    def send(self, data: bytes, timeout_s: float) -> None:
        """See `Stream`."""
        self._channel.settimeout(timeout_s)
        try:
            self._channel.sendall(data)
        except TimeoutError:
            self._transport.close()
            raise

    def close(self) -> None:
        """See `Stream`."""
        self._channel.close()

    def stale(self) -> bool:
        """See `Stream`."""
        channel = self._channel
        return channel.closed or bool(channel.eof_received) or channel.recv_ready()

"""The person's own SSH login on a device, for enrolment, upgrade, rekey and removal.

Unlike the agent's connections this one follows the user's OpenSSH configuration: host aliases, users,
ports, identity files, the ssh-agent and known_hosts. Not supported: passwords, ProxyJump and
ProxyCommand, certificates of hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fedctl.transport.base import DEFAULT_TIMEOUT_S, Endpoint


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
        endpoint: The resolved address (user, host name and port all set): what `device.url` should hold,
            since the agent's connections do not read the OpenSSH configuration.
        notes: What of the configuration could not be followed, one sentence each; usually empty.
    """

    host_key: str
    endpoint: Endpoint
    notes: tuple[str, ...]

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
            DeviceError: It printed more than 8 MiB.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Log out."""
        raise NotImplementedError


def open_admin(
    endpoint: Endpoint,
    *,
    ssh_config: Path | None = None,
    accept_host_key: str | None = None,
    ask: Callable[[str], bool] | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> AdminSession:
    """Log in on a device with the person's own keys.

    Args:
        endpoint: An `ssh` endpoint; its host may be an alias of the OpenSSH configuration.
        ssh_config: Another configuration file than the user's (`ssh -F`).
        accept_host_key: `SHA256:…` fingerprint that is trusted, whatever known_hosts says.
        ask: Asked about an unknown host key with a whole question; None when there is no terminal.
        timeout_s: For connection and login.

    Raises:
        UsageError: The endpoint is no `ssh` one.
        ConfigError: The configuration cannot be read, or asks for ProxyJump or ProxyCommand.
        UnreachableError: The device did not answer.
        TrustError: Its host key is unknown, changed or revoked, or no key was accepted for the login.
    """
    raise NotImplementedError

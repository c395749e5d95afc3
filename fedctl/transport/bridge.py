"""The beginning of a session channel: is it the agent's bridge, and if not, what is wrong?

`fedctl_agent.dial_stdio` prints a line before anything of the agent. What a shell start-up file prints
before that line is skipped; a missing installation and an agent that is down are told apart and named.
"""

from __future__ import annotations

import re

import paramiko

from fedctl.core.errors import DeviceError, FedctlError, TrustError, UnreachableError
from fedctl.transport.answers import printable
from fedctl.transport.base import Endpoint, remaining_s

_NAME = b"fedctl-agent dial-stdio"
_BANNER = _NAME + b" 1\n"
_SPOKEN = re.compile(_NAME + rb"(?:: [^\n]*| [0-9]+)(?:\n|\Z)")  # a line of the bridge, of any version
_CHATTER_BYTES = 64 * 1024  # what a login may print before the bridge's line
_LINE_BYTES = 4096  # the longest line of the bridge, or of stderr, that is read
_SHOWN_CHARS = 120
_NOT_STARTED = {126, 127}  # exit codes of a shell that could not start the bridge
_FORBIDDEN = {"EACCES", "EPERM"}


def expect_agent(channel: paramiko.Channel, *, device: str, endpoint: Endpoint, deadline: float) -> None:
    """Read up to the bridge's banner; afterwards the channel is the agent's socket.

    Args:
        channel: Its forced command has been started.
        device: Named in errors.
        endpoint: The device's address, user included; for errors and their way out.
        deadline: Instant of `time.monotonic()`.

    Raises:
        UnreachableError: The agent is down, or the channel ended.
        TrustError: The login may not open the agent's socket.
        DeviceError: Something else than a bridge answers, or none can be started.
    """
    said = _read_to_banner(channel, deadline)
    if said is None:
        return
    spoken = _SPOKEN.search(said)
    if spoken:
        raise _bridge_error(printable(spoken[0].decode("utf-8", "replace").strip()), device, endpoint)
    if len(said) >= _CHATTER_BYTES:
        text = printable(said[:_LINE_BYTES].decode("utf-8", "replace"))
        raise DeviceError(
            f"device {device}: the login of {endpoint.user} prints {text[:_SHOWN_CHARS]!r} "
            f"and more, {_CHATTER_BYTES // 1024} KiB before the agent answers",
            hint="its shell start-up file (.bashrc, .profile) must be silent when it is not interactive",
            subject=device,
            code="chatty_login",
        )
    raise _silent_end(channel, device, deadline, said)


def _read_to_banner(channel: paramiko.Channel, deadline: float) -> bytes | None:
    """None when the banner has come, else all that came instead."""
    said = bytearray()
    while len(said) < _CHATTER_BYTES:
        channel.settimeout(remaining_s(deadline))
        byte = channel.recv(1)  # not one byte more: what follows the banner belongs to HTTP
        if not byte:
            break
        said += byte
        if byte == b"\n":
            if said.endswith(_BANNER):  # perhaps behind chatter that did not end its line
                return None
            if _SPOKEN.search(said[-_LINE_BYTES:]):
                break
    return bytes(said)


def _bridge_error(text: str, device: str, endpoint: Endpoint) -> FedctlError:
    told = re.fullmatch(r"fedctl-agent dial-stdio: ([A-Z0-9]+): (.*)", text)
    if told is None:
        return DeviceError(
            f"device {device}: its agent's bridge says {text[:_SHOWN_CHARS]!r}, unknown to this fedctl",
            subject=device,
            code="bad_answer",
        )
    if told[1] in _FORBIDDEN:
        return TrustError(
            f"device {device}: user {endpoint.user} may not open the agent's socket: {told[2]}",
            subject=device,
            code="socket_mode",
        )
    return UnreachableError(
        f"agent is not running on device {device}: {told[2]}",
        hint=f"`fedctl devices add {device} {endpoint.url}` repairs it (run it again)",
        subject=device,
        code="agent_down",
    )


def _silent_end(channel: paramiko.Channel, device: str, deadline: float, stdout: bytes) -> FedctlError:
    """The error for a channel that ended without a banner; `stdout` is what it printed instead."""
    channel.status_event.wait(remaining_s(deadline))
    said = channel.recv_stderr(_LINE_BYTES) if channel.recv_stderr_ready() else b""
    lines = (said.strip() or stdout).decode("utf-8", "replace").strip().splitlines()
    reason = printable(lines[-1]) if lines else f"exit code {channel.exit_status}"
    if channel.exit_status in _NOT_STARTED:
        return DeviceError(
            f"device {device}: the agent cannot be started: {reason}", subject=device, code="no_agent"
        )
    return UnreachableError(
        f"device {device} hung up before the agent answered: {reason[:_SHOWN_CHARS]}",
        hint="if it goes on, something else than fedctl's line decides what this login runs: sshd's "
        "ForceCommand, the account's shell, or a start-up file that ends it",
        subject=device,
    )

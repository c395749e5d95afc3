"""Bridge between stdin/stdout and the agent's socket: what an SSH login of the fleet's key runs.

Standard library only and quick to start, for it runs once a connection. The first line it prints tells
the workstation that what follows is the agent, or why there is none:

    fedctl-agent dial-stdio 1
    fedctl-agent dial-stdio: ECONNREFUSED: cannot reach the agent at PATH: Connection refused

It ends when the agent closes, when the caller goes away (seen on stdout, so that a long poll leaves no
bridge behind), or when the caller has closed stdin and the agent has said its last word.
"""

from __future__ import annotations

# The C half of `socket`: the Python half takes 40 % of the bridge's start, for nothing that it needs.
import _socket as socket
import errno
import os
import select
import struct

NAME = b"fedctl-agent dial-stdio"
BANNER = NAME + b" 1\n"
_STDIN, _STDOUT = 0, 1
_BLOCK_BYTES = 64 * 1024
_CONNECT_S = 10


def run(socket_path: str) -> int:
    """Connect and carry bytes both ways; returns the exit status: 0, or 1 when there is no agent."""
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A blocking connect waits for room in the backlog; a non-blocking one would not.
        agent.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _CONNECT_S, 0))
        os.chdir(os.path.dirname(socket_path) or ".")  # noqa: PTH120 - pathlib doubles the start-up
        agent.connect(os.path.basename(socket_path))  # noqa: PTH119 - a path may be longer than 107 bytes
    except OSError as error:
        agent.close()
        name = errno.errorcode.get(error.errno or 0, "EIO")
        text = f": {name}: cannot reach the agent at {socket_path}: {error.strerror}\n"
        os.write(_STDOUT, NAME + text.encode("utf-8", "replace"))
        return 1
    os.write(_STDOUT, BANNER)
    agent.setblocking(False)
    os.set_blocking(_STDOUT, False)
    _carry(agent)
    agent.close()
    return 0


def _carry(agent: socket.socket) -> None:
    """Copy until either end is gone; at most one block waits in each direction."""
    to_agent, to_caller, stdin_open = b"", b"", True
    while True:
        events = _wait(agent, to_agent, to_caller, stdin_open=stdin_open)
        try:
            if events.get(_STDOUT, 0) & (select.POLLERR | select.POLLHUP):
                return
            if _STDOUT in events:
                to_caller = to_caller[os.write(_STDOUT, to_caller) :]
            elif not to_caller and agent.fileno() in events:
                to_caller = agent.recv(_BLOCK_BYTES)
                if not to_caller:
                    return
        except BlockingIOError:
            pass
        except OSError:
            return
        if _STDIN in events:
            to_agent = os.read(_STDIN, _BLOCK_BYTES)
            stdin_open = bool(to_agent)
        to_agent = _pass_on(agent, to_agent, last=not stdin_open)


def _wait(agent: socket.socket, to_agent: bytes, to_caller: bytes, *, stdin_open: bool) -> dict[int, int]:
    """Sleep until something can move. An end that can do nothing now is left out: its hang-up would spin."""
    poller = select.poll()
    poller.register(_STDOUT, select.POLLOUT if to_caller else 0)  # POLLERR and POLLHUP come unasked
    if to_agent or not to_caller:
        events = (select.POLLOUT if to_agent else 0) | (0 if to_caller else select.POLLIN)
        poller.register(agent, events)
    if stdin_open and not to_agent:
        poller.register(_STDIN, select.POLLIN)
    return dict(poller.poll())


def _pass_on(agent: socket.socket, data: bytes, *, last: bool) -> bytes:
    """Send what the agent takes and return the rest.

    An agent that reads no more may have an answer on the way (an early 413), so its EPIPE only
    discards: stdin is read on, and the answer drained.
    """
    try:
        if data:
            return data[agent.send(data) :]
        if last:
            agent.shutdown(socket.SHUT_WR)
    except BlockingIOError:
        return data
    except OSError:
        return b""
    return b""

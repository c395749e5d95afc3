"""A TCP connection with a deadline for all addresses of a name together."""

from __future__ import annotations

import socket

from fedctl.transport.base import remaining_s

_KEEPALIVE_S = (15, 5, 3)  # idle, interval, probes: a device that vanished is noticed within 30 s


def open_tcp(host: str, port: int, deadline: float) -> socket.socket:
    """Connect to the first address of `host` that answers before `deadline`.

    Raises:
        TimeoutError: None did in time.
        OSError: What the last one said, or that the name has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for left, (family, kind, protocol, _, address) in zip(range(len(found), 0, -1), found, strict=True):
        link = socket.socket(family, kind, protocol)
        try:
            _keep_alive(link)
            link.settimeout(remaining_s(deadline) / left)  # a dead address must not take all the time
            link.connect(address)
        except BaseException as error:
            link.close()
            if isinstance(error, OSError) and left > 1:
                continue
            raise
        return link
    raise OSError(f"{host} has no address")


def _keep_alive(link: socket.socket) -> None:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms a small packet
    idle, interval, probes = _KEEPALIVE_S
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, (idle + interval * probes) * 1000)

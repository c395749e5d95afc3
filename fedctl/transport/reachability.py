"""The first steps of the way to a device on their own, so that a person can be told where it ends."""

from __future__ import annotations

import socket
import time

from fedctl.core.errors import UnreachableError
from fedctl.transport.base import describe
from fedctl.transport.tcp import open_tcp


def addresses_of(host: str, *, device: str) -> tuple[str, ...]:
    """The addresses of a name, each once.

    Raises:
        UnreachableError: It has none, or nobody could be asked.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnreachableError(
            f"{host} does not resolve: {describe(error).lower()}",
            hint=f"is it spelt right, and is the name service up? Try: getent hosts {host}",
            subject=device,
            code="name",
        ) from error
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


def port_open_ms(host: str, port: int, *, device: str, timeout_s: float) -> float:
    """Milliseconds until a TCP connection stands; it is closed again at once.

    Raises:
        UnreachableError: Nobody accepts it.
    """
    begin = time.monotonic()
    try:
        open_tcp(host, port, begin + timeout_s).close()
    except (OSError, UnicodeError) as error:
        refused = isinstance(error, ConnectionRefusedError)
        raise UnreachableError(
            f"port {port} of {host} is {'closed' if refused else 'not reached'}: {describe(error)}",
            hint="the device is up, but nothing listens there: is the server started, and is it this port?"
            if refused
            else "is the device switched on and in this network? A firewall on the way may drop what is sent",
            subject=device,
            code="port",
        ) from error
    return (time.monotonic() - begin) * 1000

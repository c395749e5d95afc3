"""`agent.toml`, as far as the daemon reads it: where to listen for HTTPS.

Whoever is at the device writes it, by hand or through `fedctl-agent enrol`; no route does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedctl_agent.state import StateDir, write_durably
from fedctl_wire.errors import WireError

HTTPS_PORT = 7443
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<v4>[A-Za-z0-9.-]+)):(?P<port>[0-9]{1,5})")
_LINE = re.compile(r"(?m)^[ \t]*https[ \t]*=.*\n?")
_TABLE = re.compile(r"(?m)^[ \t]*\[")
_PORTS = 65535


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: an IPv4 or IPv6 address or a host name, and a TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `ADDRESS:PORT`; an IPv6 address is in brackets.

        Raises:
            WireError: When it is none.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None or int(match["port"]) > _PORTS:
            raise WireError(f"{text[:80]!r} is not ADDRESS:PORT, e.g. 0.0.0.0:{HTTPS_PORT}", subject="https")
        return cls(match["v6"] or match["v4"], int(match["port"]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


ANYWHERE = Address("0.0.0.0", HTTPS_PORT)  # noqa: S104 - a wearable is called from elsewhere, that is the point


def https_address(state: StateDir) -> Address | None:
    """Where `agent.toml` wants the daemon to listen for HTTPS; None when it does not say.

    Raises:
        WireError: When the file is no TOML, or `https` no address.
        OSError: When it cannot be read.
    """
    try:
        text = state.settings.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    import tomllib  # few devices have the file

    try:
        value = tomllib.loads(text).get("https")
    except ValueError as error:
        raise WireError(f"{state.settings.name} is not valid TOML: {error}", subject="https") from error
    if value is None:
        return None
    if not isinstance(value, str):
        raise WireError(f'{state.settings.name}: https is not a text such as "{ANYWHERE}"', subject="https")
    return Address.parse(value)


def write_https(state: StateDir, address: Address) -> None:
    """Have `agent.toml` say where to listen for HTTPS; everything else in it stays.

    Raises:
        OSError: When it cannot be written.
    """
    try:
        text = state.settings.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    table = _TABLE.search(text)
    end = table.start() if table else len(text)  # what follows a table's header belongs to that table
    line = f'https = "{address}"\n'
    write_durably(state.settings, (line + _LINE.sub("", text[:end]) + text[end:]).encode())

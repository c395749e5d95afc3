"""`devices add NAME https://host:port`: an agent that listens for HTTPS and was told to by its admin.

The token that `fedctl-agent enrol` printed at the device holds both halves of the trust: a secret that
lets the workstation enrol it, once and soon, and the SHA-256 of the key that the device must show. Once
it is enrolled its row pins that key, and no token is needed any more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Self

from fedctl.core.errors import TrustError, UsageError
from fedctl.core.records import Device
from fedctl.ops.authority import operator_identity
from fedctl.ops.enrolment.add import Addition, AddResult
from fedctl.ops.enrolment.enrol import Known, check_free
from fedctl.store import ReadStore
from fedctl.transport import AgentClient, Endpoint, connect
from fedctl_wire.errors import WireError
from fedctl_wire.signing import key_id

_TOKEN = re.compile(r"fedctl-([a-z2-7]{32})-([0-9a-f]{64})")
_AT_THE_DEVICE = "run `fedctl-agent enrol` at the device: it prints one, which holds for 15 minutes"


@dataclass(frozen=True, slots=True)
class EnrolmentToken:
    """What `fedctl-agent enrol` printed."""

    secret: str = field(repr=False)
    pin: str  # SHA-256 of the raw public identity key, hex

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a token, with white space around it.

        Raises:
            UsageError: It is none; what was given is not repeated, it may be half a secret.
        """
        match = _TOKEN.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                "that is no enrolment token: one looks like fedctl-<32 characters>-<64 digits>",
                hint=f"copy it whole; {_AT_THE_DEVICE}",
                code="token",
            )
        return cls(match[1], match[2])


def is_enrolled(store: ReadStore, name: str, url: str) -> bool:
    """Whether that device has a row, however its URL is spelt; then nobody need ask for a token.

    Raises:
        UsageError: The URL is none.
    """
    spelt = Endpoint.parse(url).url
    return any(device.name == name and device.url == spelt for device in store.devices())


def add_over_https(addition: Addition, token: str | None) -> AddResult:
    """Enrol the agent that listens at an `https` address; one that is enrolled already needs no token.

    Raises:
        UsageError: A token is needed and there is none, or it is no token.
        TrustError: Another key answers than the token's or the row's, or the token does not hold.
        FedctlError: As `devices.add` says.
    """
    parsed = EnrolmentToken.parse(token) if token else None
    url = addition.endpoint.url
    existing = check_free(addition.store, addition.name, url)
    pin = _pin(addition, existing, parsed)
    identity = operator_identity(addition.home)
    with connect(device=addition.name, url=url, pin=pin, identity=identity) as client:
        enrolled = _check_shown(client, pin)
        if not enrolled and parsed is None:
            raise _no_token(addition, f"device {addition.name} is not enrolled any more, so it wants a token")
        return addition.join(client, url, Known(), existing, token=parsed.secret if parsed else None)


def _pin(addition: Addition, existing: Device | None, token: EnrolmentToken | None) -> str:
    """Whose key must answer: a token is younger than a row, after a device was set up anew."""
    if token is not None:
        return token.pin
    known = existing.identity_key if existing else addition.store.removed_identity(addition.name)
    if known is not None:  # its agent, and so its enrolment, outlives a removal
        return key_id(known)
    raise _no_token(addition, f"device {addition.name} needs a token to be enrolled over HTTPS")


def _no_token(addition: Addition, why: str) -> UsageError:
    return UsageError(
        why, hint=f"{_AT_THE_DEVICE}; give it by --token-file", subject=addition.name, code="token"
    )


def _check_shown(client: AgentClient, pin: str) -> bool:
    """Whether the device is enrolled; the key that it will be known by is the one that TLS proved.

    Raises:
        TrustError: It says that its identity is another one.
    """
    identity = client.identity()
    try:
        said = key_id(identity.identity_key)
    except WireError:
        said = ""
    if said != pin:
        raise TrustError(
            f"device {client.device} proves one identity key and says that it has another",
            hint="what answers there is no agent of fedctl, or it is broken",
            subject=client.device,
            code="identity",
        )
    return identity.enrolled

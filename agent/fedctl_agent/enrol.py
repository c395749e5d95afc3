"""`fedctl-agent enrol`: opens this device to one enrolment over HTTPS, and says how to do it.

A process of its own, run by somebody at the device. It makes what is missing of key and certificate, has
`agent.toml` say where to listen, opens a one-time token, and tells the running daemon. Run by root it
becomes the owner of the state directory first, so that the daemon can read what it leaves there.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from fedctl_agent.keygen import keygen
from fedctl_agent.processes import lock_holder
from fedctl_agent.settings import ANYWHERE, Address, https_address, write_https
from fedctl_agent.state import StateDir
from fedctl_agent.tokens import LIFETIME_S, TRIES, open_token
from fedctl_wire.errors import WireError

SYSTEM_STATE = Path("/var/lib/fedctl-agent")
USER_STATE = Path(".local/share/fedctl/state")  # below the home directory
_LISTENING_S = 10.0  # for the daemon to take up what it was told
_POLL_S = 0.05
_HELLO_S = 2.0
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - an address to call, for one to listen at
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class Opened:
    """A device that waits for its enrolment."""

    token: str
    explanation: str  # what to do with it, for people
    warning: str = ""  # why it cannot be done yet


def default_state_dir() -> Path:
    """The system's installation where this user may write to it, else the user's own."""
    own = Path.home() / USER_STATE
    return SYSTEM_STATE if os.access(SYSTEM_STATE, os.W_OK) else own


def enrol(state: StateDir, listen: Address | None) -> Opened:
    """Open the device to one enrolment over HTTPS.

    Args:
        state: Its state directory.
        listen: Where the daemon shall listen; default as `agent.toml` says, else port 7443 everywhere.

    Raises:
        WireError: When the device is enrolled already, or a file is not what it should be.
        OSError: When the state directory cannot be used.
    """
    become_owner(state.path)
    if state.root_key.exists():
        raise WireError(
            "this device is enrolled already; to take it into another fleet stop the agent and remove "
            f"{state.identity}",
            code="enrolled",
        )
    public = keygen(state)
    configured = https_address(state)
    address = listen or configured or ANYWHERE
    if address != configured:
        write_https(state, address)
    token = open_token(state)
    return Opened(token, _explain(address), _tell_daemon(state, address, public))


def become_owner(path: Path) -> None:
    """As root, give up root for the owner of `path`, where that is somebody else."""
    with contextlib.suppress(FileNotFoundError):
        owner = path.stat()
        if os.geteuid() == 0 and owner.st_uid != 0:
            os.setgroups([])
            os.setgid(owner.st_gid)
            os.setuid(owner.st_uid)


def _tell_daemon(state: StateDir, address: Address, public: str) -> str:
    """Have the running daemon read `agent.toml`; what is to be said when it does not listen then."""
    pid = lock_holder(state.run_lock)
    if pid is None:
        return "the agent does not run: start it before the token expires"
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        return f"the agent, process {pid}, cannot be told to listen ({error.strerror}): restart it"
    deadline = time.monotonic() + _LISTENING_S
    while time.monotonic() < deadline:
        if _shown_key(address) == public:
            return ""
        time.sleep(_POLL_S)
    return f"the agent does not listen at {address}: see {state.log}"


def _shown_key(address: Address) -> str | None:
    """The public key of whoever answers TLS at an address, or None."""
    from cryptography import x509

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is looked at below
    where = (_LOOPBACK.get(address.host, address.host), address.port)
    try:
        with (
            socket.create_connection(where, timeout=_HELLO_S) as plain,
            context.wrap_socket(plain) as tls,
        ):
            shown = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
            return shown.public_key().public_bytes_raw().hex()  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError):  # AttributeError: another kind of key
        return None


def _explain(address: Address) -> str:
    name = socket.gethostname().partition(".")[0].lower()
    host = address.host if address.host not in _LOOPBACK else (_own_address() or socket.gethostname())
    url = f"https://{Address(host, address.port)}"
    return (
        f"The token above holds for {LIFETIME_S / 60:g} minutes, {TRIES} tries and one enrolment. "
        "On the workstation type\n"
        f"    fedctl devices add {name if _NAME.fullmatch(name) else 'NAME'} {url}\n"
        "and paste the token when it asks for it."
    )


def _own_address() -> str | None:
    """This device's address on the network that leads elsewhere; nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # reserved for documentation, RFC 5737
        return str(probe.getsockname()[0])
    return None

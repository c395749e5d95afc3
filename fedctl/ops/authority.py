"""The root key of a command that enrols, removes or makes the fleet, and what it leaves behind while at hand.

The operator's certificate is signed by the root and used without it, by every call over HTTPS: so it is
made whenever the root key is there, also for a home that is older than HTTPS.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedctl.core.durable import write_file
from fedctl.core.errors import ConfigError
from fedctl.core.home import Home
from fedctl.core.records import Fleet
from fedctl.release.keys import load_operator, load_root, operator_certificate_path, operator_path
from fedctl.release.trust import operator_certificate
from fedctl.transport import ClientIdentity

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def fleet_root(home: Home, fleet: Fleet, root_key: Path | None) -> Ed25519PrivateKey:
    """Load the fleet's root key, and make the operator's certificate where it is missing.

    Raises:
        ConfigError: The key is missing or no usable one, or the disk refuses.
        TrustError: It is another fleet's.
    """
    root = load_root(home, root_key, expected=fleet.root_key)
    path, wanted = operator_certificate_path(home), operator_certificate(fleet.uuid, fleet.operator_key, root)
    if not path.exists() or path.read_bytes() != wanted.pem.encode():
        write_file(path, wanted.pem.encode())
    return root


def operator_identity(home: Home) -> ClientIdentity:
    """What the workstation shows a device over HTTPS.

    Raises:
        ConfigError: The key is missing or others can read it, or there is no certificate yet.
    """
    load_operator(home)
    path = operator_certificate_path(home)
    if not path.exists():
        raise ConfigError(
            f"the operator's certificate {path} is missing: without it no device answers over HTTPS",
            hint="`fedctl init` makes it, with --root-key PATH where the root key is not in the home",
            subject=str(path),
            code="no_certificate",
        )
    return ClientIdentity(path, operator_path(home))

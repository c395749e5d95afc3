"""The device's identity key, made once, by a process of its own: the daemon loads no cryptography."""

from __future__ import annotations

from fedctl_agent.state import StateDir, write_durably
from fedctl_wire.signing import generate_key, private_key_from_pem, private_key_to_pem, public_key


def keygen(state: StateDir) -> str:
    """Make the Ed25519 identity key unless there is one; return its public half in hex.

    Raises:
        WireError: When the key file holds no such key.
        OSError: When the state directory cannot be written.
    """
    state.create()
    if state.identity_key.exists():
        key = private_key_from_pem(state.identity_key.read_bytes(), what=str(state.identity_key))
    else:
        key = generate_key()
        write_durably(state.identity_key, private_key_to_pem(key))
    public = public_key(key)
    if not state.identity_public.exists():
        write_durably(state.identity_public, public.encode())
    return public

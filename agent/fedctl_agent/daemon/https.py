"""Whether and where the agent listens for HTTPS: follows `agent.toml` at the start and on request.

A mistake there, or a port that is taken, is logged and shown in `GET /v1/status`; the agent goes on
serving its socket. TLS is loaded only where it is asked for.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from fedctl_agent.daemon.agent import Agent
from fedctl_agent.daemon.connection import Deadlines
from fedctl_agent.daemon.listener import Places
from fedctl_agent.daemon.routes import Router
from fedctl_agent.processes import agent_command, child_environment
from fedctl_agent.settings import Address, https_address
from fedctl_agent.state import StateDir
from fedctl_wire.errors import WireError

if TYPE_CHECKING:
    from fedctl_agent.daemon.tls import Contexts, TlsListener


class Https:
    """The agent's HTTPS listener, while it has one. For the main thread only.

    Args:
        state: The agent's state directory.
        agent: Is told what became of it.
        places: Shared with the other listeners.
        deadlines: How long callers may take.

    Attributes:
        listener: Where connections arrive, or None.
    """

    def __init__(
        self, state: StateDir, agent: Agent, *, places: Places, deadlines: Deadlines | None = None
    ) -> None:
        self.listener: TlsListener | None = None
        self._state = state
        self._agent = agent
        self._places = places
        self._deadlines = deadlines
        self._address: Address | None = None
        self._contexts: Contexts | None = None

    def follow_settings(self) -> None:
        """Listen where `agent.toml` says now, or no longer. Open connections stay."""
        log, error = self._agent.log, None
        try:
            wanted = https_address(self._state)
            if wanted != self._address or (wanted and self.listener is None):
                self.close()
                if wanted is not None:
                    self.listener = self._listen(wanted)
                    log.write("info", "listens for HTTPS", address=str(wanted))
                self._address = wanted
        except (OSError, WireError) as failure:
            error = str(failure)
            log.write("error", f"does not listen for HTTPS: {error}")
        if error is None and self._contexts is not None:
            error = self._contexts.error
        self._agent.https = {"address": str(self._address) if self.listener else None, "error": error}

    def close(self) -> None:
        """Stop listening."""
        if self.listener is not None:
            self.listener.remove()
        self.listener = self._address = self._contexts = None

    def _tell(self, error: str | None) -> None:
        """Key or certificates changed for the worse, or are well again; from a connection's thread."""
        if self.listener is None:  # what is wrong at the start, who starts it says
            return
        if error is None:
            self._agent.log.write("info", "HTTPS: key and certificates are well again")
        else:
            self._agent.log.write("error", f"HTTPS goes on with what was good before: {error}")
        self._agent.https = {"address": str(self._address), "error": error}

    def _listen(self, address: Address) -> TlsListener:
        from fedctl_agent.daemon.tls import Contexts, TlsListener

        if not self._state.certificate.exists():
            make_identity(self._state)  # the state directory of an agent that had no TLS yet
        contexts = Contexts(self._state, self._agent.trust, tell=self._tell)
        contexts.current()  # what is wrong with key or certificate is better known now
        self._contexts = contexts
        return TlsListener(
            address,
            Router(self._agent),
            contexts=contexts,
            trust=self._agent.trust,
            places=self._places,
            deadlines=self._deadlines,
        )


def make_identity(state: StateDir) -> None:
    """Make what is missing of key and certificate in another process, which loads what the daemon must not.

    Raises:
        OSError: When that process fails.
    """
    made = subprocess.run(
        agent_command("keygen", "--state-dir", str(state.path)),
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise OSError(f"no identity key could be made: {made.stderr.strip()}")

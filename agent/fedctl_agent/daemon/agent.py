"""One agent: its parts, put together once at start, and what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedctl_agent import __version__
from fedctl_agent.daemon.blobs import Blobs
from fedctl_agent.daemon.data import Data
from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.daemon.logs import AgentLog, utc_now
from fedctl_agent.daemon.policy import PolicyStore
from fedctl_agent.daemon.slots import Slots
from fedctl_agent.daemon.tasks import Tasks
from fedctl_agent.daemon.telemetry import Telemetry
from fedctl_agent.daemon.trust import Trust
from fedctl_agent.daemon.workerlink import WORKER_COMMAND, WorkerLink
from fedctl_agent.state import StateDir
from fedctl_agent.tokens import Tokens
from fedctl_wire.codec import Json
from fedctl_wire.messages import Health


class Agent:
    """The daemon's state and parts; routes are the only ones who ask.

    Args:
        state: An existing state directory whose lock the caller holds, with an identity key.
        worker_command: What to start as worker.

    Raises:
        WorkerGoneError: When an earlier daemon's worker or job does not end.
    """

    def __init__(self, state: StateDir, *, worker_command: Sequence[str] = WORKER_COMMAND) -> None:
        self.log = AgentLog(state.log)
        self.worker = WorkerLink(state, worker_command, self.log)
        self.trust = Trust(state, self.worker, self.log)
        self.tokens = Tokens(state)
        self.https: Json = {"address": None, "error": None}  # where it listens, and why it does not
        self.policy = PolicyStore(state)
        self.blobs = Blobs(state.blobs)
        self.slots = Slots(state.models, self.blobs)
        self.telemetry = Telemetry(state.path)
        self.data = Data(state, self.log)
        self.tasks = Tasks(
            state,
            worker=self.worker,
            trust=self.trust,
            slots=self.slots,
            policy=self.policy,
            data=self.data,
            log=self.log,
        )
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.tasks.recover()

    def close(self) -> None:
        """End the worker and its job; a task at work runs again at the next start."""
        self.worker.close()

    def health(self) -> Health:
        """Version, time and boot id: what an operator sees of a device that is not enrolled, too."""
        identity = self.trust.identity
        return Health(__version__, utc_now(), self._boot_id, identity.device, identity.roster_serial)

    def status(self) -> Json:
        """Resources, slots, current task, policy. `resources` is null when the policy keeps telemetry."""
        identity = self.trust.identity
        return {
            "version": __version__,
            "time": utc_now(),
            "boot_id": self._boot_id,
            "device": identity.device,
            "fleet": identity.fleet,
            "roster_serial": identity.roster_serial,
            "agent": {**self.telemetry.agent(), "worker_pid": self.worker.pid},
            "limits": self.telemetry.limits(),
            "https": self.https,
            "models": self.slots.listing(),
            "task": self.tasks.current(),
            "spool": self.tasks.spool(),
            **self._policy_and_resources(),
        }

    def _policy_and_resources(self) -> dict[str, Json]:
        try:
            policy = self.policy.effective()
        except ApiError as error:  # a policy that cannot be read shares nothing, and says so
            return {"policy": {"digest": None, "error": error.body.message}, "resources": None}
        return {
            "policy": {
                "digest": policy.digest,
                "allow": list(policy.allow),
                "min_examples": policy.min_examples,
                "share": list(policy.share),
                "access": policy.access,
            },
            "resources": self.telemetry.read() if "telemetry" in policy.share else None,
        }

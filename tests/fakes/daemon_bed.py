"""What tests of the daemon stand on: a signed fleet's messages, spoken over the agent's socket."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedctl_agent.daemon.agent import Agent
from fedctl_agent.daemon.connection import Deadlines
from fedctl_agent.daemon.exchange import Role
from fedctl_agent.daemon.listener import Places, UnixListener
from fedctl_agent.daemon.routes import Router
from fedctl_agent.state import StateDir
from fedctl_wire.codec import encode
from fedctl_wire.manifest import GOLDEN_FILE, GRAPH_FILE, WEIGHTS_FILE, BundleFile, Manifest, TensorSpec
from fedctl_wire.messages import BaseModel, TaskKind, TaskRequest, TrainSettings, task_id
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope, PayloadType, public_key, sign
from fedctl_wire.tensors import header_bytes, layout
from tests.fakes import worker_program
from tests.fakes.unix_http import Answer, Client
from tests.unit.worker.signed_fleet import DEVICE, SignedFleet, new_fleet

FAKE_WORKER = (sys.executable, str(Path(worker_program.__file__)))


class Bed:
    """A state directory, the keys of its fleet, and a client for whatever serves it."""

    def __init__(self, path: Path) -> None:
        self.fleet: SignedFleet = new_fleet(path)
        self.state: StateDir = self.fleet.state
        self.state.identity_public.write_text(public_key(self.fleet.identity))
        self.client = Client(self.state.socket)
        self.behaviour: dict[str, Any] = {}

    def behave(self, **behaviour: Any) -> None:
        """Tell the fake worker what to do from now on; see its module."""
        temporary = self.state.path / "fake-worker.new"
        temporary.write_text(json.dumps(behaviour))
        temporary.replace(self.state.path / "fake-worker.json")

    def asked(self, verb: str) -> list[dict[str, Any]]:
        """What the fake worker was asked, in order."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.state.path / "fake-worker.jsonl").read_text().splitlines()
            return [request for line in lines if (request := json.loads(line))["verb"] == verb]
        return []

    def runs(self) -> list[str]:
        """What the fake jobs did, in order."""
        with contextlib.suppress(FileNotFoundError):
            return [line.split()[2] for line in (self.state.path / "fake-runs.log").read_text().splitlines()]
        return []

    def enrol(self) -> Answer:
        return self.client("PUT", "/enrolment", encode(self.fleet.request()))

    def bundle(self, version: int = 1, *, filling: int = 0) -> tuple[Envelope, dict[str, bytes]]:
        """A signed bundle and its files by hash; `filling` makes other weights, the rest is the same."""
        tensor = TensorSpec("w", (1024,))
        weights = header_bytes(layout([(tensor.name, "F32", tensor.shape)])) + bytes([filling]) * 4096
        contents = {GRAPH_FILE: b'{"version":1}', GOLDEN_FILE: b"golden", WEIGHTS_FILE: weights}
        manifest = Manifest(
            model=Name("har"),
            model_version=version,
            builder="mlp",
            input_shape=(3,),
            classes=2,
            tensors=(tensor,),
            files={n: BundleFile(hashlib.sha256(d).hexdigest(), len(d)) for n, d in contents.items()},
            operators=("MatMul",),
            defaults=TrainSettings(lr=0.1),
            scale="none",
        )
        envelope = sign(manifest.to_bytes(), PayloadType.BUNDLE, self.fleet.operator)
        return envelope, {hashlib.sha256(data).hexdigest(): data for data in contents.values()}

    def put_model(self, envelope: Envelope, version: int = 1, query: str = "") -> Answer:
        return self.client("PUT", f"/models/har/{version}{query}", envelope.to_bytes())

    def upload(self, sha256: str, data: bytes, *, offset: int = 0, total: int | None = None) -> Answer:
        path = f"/blobs/{sha256}?bytes={len(data) if total is None else total}"
        return self.client("PATCH", path, data[offset:], {"Upload-Offset": str(offset)})

    def push(self, version: int = 1, *, filling: int = 0, query: str = "") -> str:
        """Upload what is missing and install; returns the bundle's name."""
        envelope, contents = self.bundle(version, filling=filling)
        first = self.put_model(envelope, version, query)
        if first.status == 409:
            for missing in first.json["missing"]:
                assert self.upload(missing["sha256"], contents[missing["sha256"]]).status == 200
            assert self.put_model(envelope, version, query).status == 200
        return envelope.sha256

    def request(
        self, bundle: str, kind: TaskKind = TaskKind.TRAIN, *, round_id: str = "", **changes: Any
    ) -> TaskRequest:
        """A task of a fresh round unless one is given."""
        base = changes.pop("base", bundle)
        attempt, device = changes.pop("attempt", 1), changes.pop("device", DEVICE)
        plan = self.fleet.plan(round=round_id or str(uuid.uuid4()), base=BaseModel(1, base), **changes)
        name = task_id(
            round_id=json.loads(plan.payload)["round"],
            attempt=attempt,
            device=device,
            plan=plan.sha256,
            kind=kind,
            bundle=bundle,
        )
        return TaskRequest(name, attempt, device, kind, bundle, plan.to_json())

    def put_task(self, request: TaskRequest) -> Answer:
        return self.client("PUT", f"/tasks/{request.task_id}", encode(request))

    def final(self, request: TaskRequest) -> dict[str, Any]:
        """Wait for the end of a task."""
        for _ in range(20):
            status: dict[str, Any] = self.client("GET", f"/tasks/{request.task_id}?wait=10&seen=99").json
            if status["state"] not in {"queued", "running"}:
                return status
        raise AssertionError(f"the task is still {status['state']}")


@contextlib.contextmanager
def served(
    bed: Bed,
    *,
    worker: Sequence[str] = FAKE_WORKER,
    deadlines: Deadlines | None = None,
    connections: int = 16,
    role: Role | None = None,
) -> Iterator[Agent]:
    """Serve the bed's state directory from a thread of this process, with a fake worker process."""
    agent = Agent(bed.state, worker_command=worker)
    listener = UnixListener(bed.state.socket, Router(agent), places=Places(connections), deadlines=deadlines)
    if role is not None:
        listener.role = role  # type: ignore[misc]
    stopping = threading.Event()

    def accept() -> None:
        while not stopping.is_set():
            listener.accept()

    listener.socket.settimeout(0.02)  # of the test's own loop; the daemon waits in a selector
    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield agent
    finally:
        stopping.set()
        thread.join()
        listener.remove()
        agent.close()

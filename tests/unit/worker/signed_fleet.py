"""A fleet of one device with real keys, and the state directory that enrolment leaves behind."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedctl_agent.state import StateDir
from fedctl_wire.codec import dump_bytes, encode
from fedctl_wire.manifest import (
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    BundleFile,
    Manifest,
    TensorSpec,
)
from fedctl_wire.messages import (
    BaseModel,
    Cohort,
    Enrolment,
    EnrolmentRequest,
    Plan,
    Policy,
    Roster,
    RosterDevice,
    RosterOperator,
    TaskKind,
    TaskRequest,
    TrainSettings,
    task_id,
)
from fedctl_wire.names import Name
from fedctl_wire.signing import (
    Envelope,
    PayloadType,
    generate_key,
    private_key_to_pem,
    public_key,
    sign,
)
from fedctl_wire.tensors import header_bytes, layout

FLEET = "0f4dbc5e-7a3e-4f6e-9b5c-6d1f6a1f2b3c"
OTHER_FLEET = "9c0a1f8e-2b7d-4d53-8a56-0c9e5d7b1a2f"
ROUND = "5b9d2a50-1d7c-4a43-9a37-1c6d0e8f7a11"
DEVICE = Name("wrist-01")
AT = "2024-05-01T12:00:00Z"
SETTINGS = TrainSettings(lr=0.1)


@dataclass(frozen=True)
class Model:
    """What a bundle is made of: the contents of each file, and what the manifest says of them."""

    contents: dict[str, bytes]
    tensors: tuple[TensorSpec, ...]
    operators: tuple[str, ...]


def opaque_model() -> Model:
    """A model whose graph and golden batch nothing can read."""
    weights = header_bytes(layout([("w", "F32", (12,))])) + bytes(48)
    contents = {WEIGHTS_FILE: weights, GRAPH_FILE: b"{}", GOLDEN_FILE: b"golden"}
    return Model(contents, (TensorSpec("w", (12,)),), ("MatMul",))


@dataclass
class SignedFleet:
    """Messages of the fleet, signed by the right key unless another is given."""

    state: StateDir
    root: Ed25519PrivateKey = field(default_factory=generate_key)
    operator: Ed25519PrivateKey = field(default_factory=generate_key)
    identity: Ed25519PrivateKey = field(default_factory=generate_key)
    model: Model = field(default_factory=opaque_model)

    def enrolment(self, *, key: Ed25519PrivateKey | None = None, **changes: Any) -> Envelope:
        fields = {
            "fleet": FLEET,
            "device": DEVICE,
            "identity_key": public_key(self.identity),
            "serial": 1,
            "enrolled_at": AT,
        }
        message = Enrolment(**(fields | changes))
        return sign(encode(message), PayloadType.ENROLMENT, key or self.root)

    def roster(self, *, key: Ed25519PrivateKey | None = None, **changes: Any) -> Envelope:
        fields = {
            "fleet": FLEET,
            "serial": 3,
            "issued_at": AT,
            "operators": (RosterOperator(Name("alice"), public_key(self.operator)),),
            "devices": (RosterDevice(DEVICE, public_key(self.identity), 1, AT),),
        }
        return sign(encode(Roster(**(fields | changes))), PayloadType.ROSTER, key or self.root)

    def policy(self, *, key: Ed25519PrivateKey | None = None, **changes: Any) -> Envelope:
        fields = {"fleet": FLEET, "device": DEVICE, "serial": 5}
        return sign(encode(Policy(**(fields | changes))), PayloadType.POLICY, key or self.root)

    def plan(self, *, key: Ed25519PrivateKey | None = None, **changes: Any) -> Envelope:
        fields = {
            "fleet": FLEET,
            "round": ROUND,
            "model": Name("har"),
            "base": BaseModel(1, "0" * 64),
            "kinds": tuple(TaskKind),
            "seed": 7,
            "cohort": Cohort.of([DEVICE]),
            "holdout": Cohort.of([]),
            "train": SETTINGS,
        }
        return sign(encode(Plan(**(fields | changes))), PayloadType.PLAN, key or self.operator)

    def request(self, **changes: Any) -> EnrolmentRequest:
        fields = {
            "root_key": public_key(self.root),
            "enrolment": as_received(self.enrolment()),
            "roster": as_received(self.roster()),
            "policy": as_received(self.policy()),
        }
        return EnrolmentRequest(**(fields | changes))

    def write_bundle(self, directory: Path, *, model_version: int = 1) -> Manifest:
        """The files of `model`, and the manifest that the operator signs for them."""
        contents = self.model.contents
        manifest = Manifest(
            model=Name("har"),
            model_version=model_version,
            builder="mlp",
            input_shape=(3,),
            classes=2,
            tensors=self.model.tensors,
            files={n: BundleFile(hashlib.sha256(d).hexdigest(), len(d)) for n, d in contents.items()},
            operators=self.model.operators,
            defaults=SETTINGS,
            scale="none",
        )
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            (directory / name).write_bytes(data)
        envelope = sign(manifest.to_bytes(), PayloadType.BUNDLE, self.operator)
        (directory / MANIFEST_FILE).write_bytes(envelope.to_bytes())
        return manifest

    def write_task(self, kind: TaskKind = TaskKind.TRAIN, *, attempt: int = 1, seed: int = 7) -> Path:
        """A task directory as the daemon leaves it for the worker."""
        staging = self.state.path / f"staging-{attempt}-{kind}"
        manifest = self.write_bundle(staging)
        base = sha256(manifest)
        if kind is TaskKind.EVALUATE:
            candidate = staging.with_name(staging.name + "-candidate")
            bundle = sha256(self.write_bundle(candidate, model_version=2))
        else:
            candidate, bundle = staging, base
        plan = self.plan(base=BaseModel(1, base), seed=seed)
        name = task_id(
            round_id=ROUND, attempt=attempt, device=DEVICE, plan=plan.sha256, kind=kind, bundle=bundle
        )
        task_dir = self.state.tasks / name
        candidate.rename(task_dir)
        if kind is TaskKind.EVALUATE:
            staging.rename(task_dir / "base")
        request = TaskRequest(name, attempt, DEVICE, kind, bundle, plan.to_json())
        (task_dir / "task.json").write_bytes(encode(request))
        return task_dir

    def enrol(self) -> None:
        """Write what the daemon writes once the worker accepted `request()`."""
        self.write_identity()
        self.state.roster.write_bytes(self.roster().to_bytes())
        self.state.policy.write_bytes(self.policy().to_bytes())
        self.state.enrolment.write_bytes(self.enrolment().to_bytes())
        self.state.root_key.write_bytes(dump_bytes({"root_key": public_key(self.root)}))

    def write_identity(self) -> None:
        self.state.identity_key.write_bytes(private_key_to_pem(self.identity))


def new_fleet(path: Path) -> SignedFleet:
    """An empty state directory with an identity key, and the keys of a fleet it is not yet in."""
    fleet = SignedFleet(StateDir(path))
    fleet.state.create()
    fleet.write_identity()
    return fleet


def as_received(envelope: Envelope) -> Any:
    """The envelope's JSON as the other side parses it."""
    return json.loads(envelope.to_bytes())


def sha256(manifest: Manifest) -> str:
    return hashlib.sha256(manifest.to_bytes()).hexdigest()

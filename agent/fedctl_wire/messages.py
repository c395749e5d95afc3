"""The messages of the protocol, one frozen class each; `docs/protocol/` describes them in prose.

A class with an `extra` field keeps what a newer peer added; policy, plan and what the root signs
refuse unknown fields, because a device must never act on half an instruction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from fedctl_wire.codec import Json
from fedctl_wire.names import Name


class TaskKind(StrEnum):
    """A unit of work on a device."""

    GOLDEN = "golden"
    STATS = "stats"
    TRAIN = "train"
    EVALUATE = "evaluate"


class TaskState(StrEnum):
    """Where a task stands on its device; the last four are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether the device will not work on the task again."""
        return self not in {TaskState.QUEUED, TaskState.RUNNING}


# ------------------------------------------------------------------ trust: signed by the fleet root


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Gives a device its identity in a fleet. Signed by the root."""

    fleet: str  # uuid
    device: Name
    identity_key: str  # raw Ed25519 public key, hex
    serial: int
    enrolled_at: str  # RFC 3339, UTC
    version: int = 1


@dataclass(frozen=True, slots=True)
class RosterOperator:
    """Who may sign plans and bundles."""

    name: Name
    key: str  # raw Ed25519 public key, hex
    certificate: str = ""  # SHA-256 of its DER, hex; "" when there is none


@dataclass(frozen=True, slots=True)
class RosterDevice:
    """A member of the fleet as the root knows it; no longer listed means revoked."""

    name: Name
    key: str
    serial: int
    enrolled_at: str
    certificate: str = ""  # SHA-256 of its DER, hex; "" when there is none


@dataclass(frozen=True, slots=True)
class Roster:
    """Everyone in the fleet. Signed by the root; a device refuses a lower `serial` than it holds."""

    fleet: str
    serial: int
    issued_at: str
    operators: tuple[RosterOperator, ...]
    devices: tuple[RosterDevice, ...]
    version: int = 1


@dataclass(frozen=True, slots=True)
class Policy:
    """What a device agrees to, enforced by the device even against its operator. Signed by the root.

    `policy.local.json` has the same keys, unsigned and all optional, and can only tighten.
    """

    fleet: str
    device: Name
    serial: int
    allow: tuple[TaskKind, ...] = (TaskKind.GOLDEN, TaskKind.STATS, TaskKind.TRAIN, TaskKind.EVALUATE)
    min_examples: int = 20
    share: tuple[str, ...] = ("metrics", "telemetry", "logs", "data")
    access: str = "none"
    version: int = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Answer of `GET /v1/identity`: who the device is, before and after enrolment."""

    identity_key: str
    enrolled: bool
    fleet: str | None = None
    device: str | None = None
    root_key: str | None = None
    roster_serial: int = 0
    extra: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EnrolmentRequest:
    """Body of `PUT /v1/enrolment`: the root to pin and three envelopes that it signed.

    A device that is to be reached over HTTPS also gets its certificate and the root's: both or neither.
    """

    root_key: str
    enrolment: Json  # Envelope
    roster: Json  # Envelope
    policy: Json  # Envelope
    certificate: str = ""  # the device's, PEM; the roster has its hash
    authority: str = ""  # the root's, PEM
    extra: dict[str, Json] = field(default_factory=dict)


# ------------------------------------------------------------------ work: signed by the operator


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model version a plan starts from: `sha256` of its manifest bytes names it."""

    version: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Cohort:
    """How many devices take part and the hash of their names, so that the names stay private."""

    size: int
    names_sha256: str

    @classmethod
    def of(cls, names: Iterable[str]) -> Cohort:
        """The cohort of these device names, in any order."""
        ordered = sorted(names)
        return cls(len(ordered), hashlib.sha256("\n".join(ordered).encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The effective hyper-parameters of local training; a device reads no others."""

    lr: float
    momentum: float = 0.0
    local_epochs: int = 1
    batch_size: int = 32
    optimizer: str = "sgd"  # or "adam"
    max_examples: int | None = None  # cap on a device's weight in the mean
    weight_decay: float = 0.0  # times each parameter, added to its gradient
    proximal_mu: float = 0.0  # FedProx: mu / 2 * |parameters - base|^2 is added to the loss
    max_gradient_norm: float | None = None  # L2 over all gradients of a step; longer ones are shortened
    class_weights: tuple[float, ...] | None = None  # of the loss, one a class
    balance_classes: bool = False  # the same, from how often the device's training part has each class


@dataclass(frozen=True, slots=True)
class RoundRules:
    """When collection ends and what may be published; read by the workstation."""

    quorum: int
    deadline_s: float = 600.0
    tolerance: float = 0.05  # candidate loss <= base loss * (1 + tolerance)
    strategy: str = "fedavg"
    until: str | None = None
    max_update_norm: float | None = None  # L2; a larger update is a dropped device


@dataclass(frozen=True, slots=True)
class DataNeeds:
    """What a plan asks of a device's data; a device whose source does not fit declines: `schema`."""

    input_shape: tuple[int, ...]  # of one example; a sampled signal's is (channels, samples)
    classes: int
    features: tuple[str, ...] = ()  # names of the columns, in the model's order; (): any so many


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a round, or one task outside a round, computes. Signed by the operator.

    Its name is the SHA-256 of its payload bytes. `train` and `rules` are None outside rounds.
    """

    fleet: str
    round: str  # uuid
    model: Name
    base: BaseModel
    kinds: tuple[TaskKind, ...]
    seed: int
    cohort: Cohort
    holdout: Cohort
    train: TrainSettings | None = None
    rules: RoundRules | None = None
    needs: DataNeeds | None = None  # None: the bundle says it, so only a device that has it can tell
    version: int = 1


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """Body of `PUT /v1/tasks/{task_id}`."""

    task_id: str
    attempt: int
    device: Name
    kind: TaskKind
    bundle: str  # manifest sha256: the base's, or the candidate's for `evaluate`
    plan: Json  # Envelope
    extra: dict[str, Json] = field(default_factory=dict)


def task_id(*, round_id: str, attempt: int, device: str, plan: str, kind: TaskKind, bundle: str) -> str:
    """The one name of a task: the same work asked for twice is the same task."""
    text = f"fedctl-task-v1\n{round_id}\n{attempt}\n{device}\n{plan}\n{kind.value}\n{bundle}"
    return hashlib.sha256(text.encode()).hexdigest()


def job_seed(plan_seed: int, device: str, kind: TaskKind) -> int:
    """The random seed of a job, without the attempt: same seed, same data, same bytes."""
    digest = hashlib.sha256(f"{plan_seed}\n{device}\n{kind.value}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a task, device or request did not succeed: a stable word and a sentence."""

    code: str
    message: str
    extra: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job is; `seq` grows with every line of progress."""

    seq: int = 0
    epoch: int = 0
    epochs: int = 0
    examples: int = 0
    loss: float | None = None
    extra: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a job cost the device, over all its runs."""

    cpu_ms: int = 0
    wall_ms: int = 0
    peak_rss_bytes: int = 0
    extra: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """Answer of `PUT` and `GET /v1/tasks/{task_id}`."""

    task_id: str
    kind: TaskKind
    round: str
    state: TaskState
    runs: int = 0
    acked: bool = False
    progress: Progress = field(default_factory=Progress)
    reason: Reason | None = None
    result: Json | None = None  # Envelope of a Result, once state is `done`
    usage: Usage = field(default_factory=Usage)
    extra: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model version measured on one device's data; sums, so that a fleet's can be added."""

    examples: int
    loss_sum: float
    correct: int
    # Two classes only: (bin of 1,024, count of class 0, count of class 1) of the bins that hold a score.
    histogram: tuple[tuple[int, ...], ...] | None = None
    # (class, its examples, how many were taken for it, how many of those rightly) of classes that occur.
    classes: tuple[tuple[int, ...], ...] | None = None
    extra: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished task says of itself. Signed by the device's identity key."""

    task_id: str
    round: str
    attempt: int
    device: Name
    kind: TaskKind
    plan: str  # sha256
    bundle: str  # sha256
    examples: int
    agent_version: str
    runtime: str  # e.g. "numpy 2.1.0"
    result_sha256: str | None = None  # of result.safetensors: train and stats
    result_bytes: int | None = None
    loss: float | None = None  # train: mean loss of the last local epoch
    base: Evaluation | None = None  # evaluate
    candidate: Evaluation | None = None  # evaluate
    version: int = 1
    extra: dict[str, Json] = field(default_factory=dict)


# ------------------------------------------------------------------ answers of the agent


@dataclass(frozen=True, slots=True)
class Health:
    """Answer of `GET /v1/health`."""

    version: str  # of the agent
    time: str  # RFC 3339, UTC, by the device's clock
    boot_id: str
    device: str | None = None
    roster_serial: int = 0
    extra: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the policy's word `data` lets out of one source: counts and times, never a reading."""

    first: str | None  # time of the oldest row in use, RFC 3339, UTC; None: the source has no times
    last: str | None
    spacing_s: float | None  # between neighbouring rows, the median
    gaps: int | None  # pauses longer than `gap_s`
    gap_s: float | None
    longest_gap_s: float | None
    missing: dict[str, int]  # missing cells of each feature, where there are any
    unreadable_rows: int
    old_rows: int
    unlabelled_rows: int
    labels: dict[str, int] | None  # examples of each class; None below the policy's `min_examples`
    extra: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One source of a device: how it would look to a model."""

    source: str  # its file's name without .toml
    kind: str | None = None  # None: the file cannot be read
    features: tuple[str, ...] = ()  # columns; npz: the array's name
    label: str | None = None  # column or array
    shape: tuple[int, ...] | None = None  # of one example
    classes: tuple[str, ...] = ()  # words of the label column, if it holds words
    rows: int = 0
    examples: int = 0
    training: int = 0  # of the examples
    facts: SourceFacts | None = None  # None: the policy keeps them, or the data could not be read
    error: Reason | None = None
    extra: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataReport:
    """Answer of `GET /v1/data`."""

    time: str  # by the device's clock, when its files were looked at
    min_examples: int
    sources: tuple[SourceReport, ...]
    extra: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MissingBlob:
    """A file that a bundle needs and the device lacks; the upload goes on at `offset`."""

    sha256: str
    bytes: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class ModelInstalled:
    """Answer of `PUT /v1/models/{name}/{version}`; `missing` is empty once the slot holds the bundle."""

    model: str
    version: int
    bundle: str  # manifest sha256
    slot: str | None = None  # "A" or "B"
    active: bool = False
    missing: tuple[MissingBlob, ...] = ()
    extra: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """Body of every error answer."""

    code: str
    message: str
    hint: str = ""
    subject: str = ""
    extra: dict[str, Json] = field(default_factory=dict)

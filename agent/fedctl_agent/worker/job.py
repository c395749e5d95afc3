"""What runs in a job: from a task directory to a signed `result.json` in it, or a `failure.json`.

Nothing is trained on bytes that differ from the signed manifest: plan and bundle are verified at each
run, because a task may have waited through a restart, and the job hashes every file that it reads.
`result.json` is written last and durably: it means done. A job that leaves neither file was cut short
and is the daemon's to run again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import resource
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl_agent import __version__
from fedctl_agent.daemon.policy import EffectivePolicy, LocalPolicy, intersect
from fedctl_agent.sources import choose_source
from fedctl_agent.state import NO_ROOM, PRIVATE_FILE, StateDir, read_json, sync_directory, write_durably
from fedctl_agent.trainers import JobContext, JobError, Outcome
from fedctl_agent.worker.jobs import set_limit
from fedctl_agent.worker.trust import Trust
from fedctl_wire.codec import dump_bytes, encode, from_json
from fedctl_wire.errors import WireError
from fedctl_wire.limits import KIB, LIMITS
from fedctl_wire.manifest import (
    BUNDLE_FILES,
    GRAPH_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    BundleFile,
    Manifest,
)
from fedctl_wire.messages import Plan, Policy, Progress, Result, TaskKind, TaskRequest, TaskState, job_seed
from fedctl_wire.names import Name
from fedctl_wire.signing import Envelope, PayloadType, sign

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_RESULT_FILE = "result.safetensors"
_BASE = "base"  # directory of the bundle to compare with; the files of the one at work are the task's own
_BLOCK_BYTES = 32 * KIB
_WITH_RESULT_FILE = {TaskKind.TRAIN, TaskKind.STATS}


@dataclass(frozen=True, slots=True)
class _File:
    """A bundle's file, and what the signed manifest says of it."""

    name: str
    path: str
    listed: BundleFile
    bundle: str  # for messages


@dataclass(frozen=True, slots=True)
class _Task:
    """A task as verified: what was asked, in which files, and for which context of a trainer."""

    directory: Path
    request: TaskRequest
    device: Name
    files: tuple[_File, ...]
    context: JobContext
    key: Ed25519PrivateKey


def prepare_job(
    state: StateDir, task_dir: Path, *, trust: Trust, run: Callable[[JobContext], Outcome]
) -> Callable[[], None]:
    """Verify the task in `task_dir` and return what its forked job does: see `run_job`.

    All that needs no file of a model is done here, in the worker, which remembers what it has verified
    and parsed; each page of memory that a job touches costs it a copy. What goes wrong here is the
    job's to report.
    """
    try:
        task = _read_task(state, task_dir, trust)
        _prepare(state, task)
    except Exception as error:  # noqa: BLE001 - raised again by the job, whose boundary it then meets
        return functools.partial(_fail, task_dir, error)
    return functools.partial(_work, state, task, run)


def run_job(state: StateDir, task_dir: Path, *, trust: Trust, run: Callable[[JobContext], Outcome]) -> None:
    """Do the task in `task_dir` and leave `result.json` or `failure.json` there.

    `failure.json` is `{"code", "message", "state"}`. Its codes are those of `JobError` and `WireError`,
    and `policy`, `identity`, `memory`, `disk`, `settings` and `internal`.

    Raises:
        OSError: When not even `failure.json` could be written.
    """
    prepare_job(state, task_dir, trust=trust, run=run)()


def _work(state: StateDir, task: _Task, run: Callable[[JobContext], Outcome]) -> None:
    try:
        _limit_memory(state)
        for file in task.files:
            _check_file(file)
        outcome = run(task.context)
        sealed = _seal(task.context.output) if task.request.kind in _WITH_RESULT_FILE else None
        envelope = sign(encode(_result(task, outcome, sealed)), PayloadType.RESULT, task.key)
        write_durably(f"{task.directory}/result.json", envelope.to_bytes())
    except Exception as error:  # noqa: BLE001 - the boundary: whatever went wrong is this job's answer
        _fail(task.directory, error)


def _fail(task_dir: Path, error: Exception) -> None:
    (task_dir / _RESULT_FILE).unlink(missing_ok=True)  # on a full disk this makes room for the next lines
    with contextlib.suppress(OSError):
        traceback.print_exception(error)  # into the job's log
    write_durably(task_dir / "failure.json", dump_bytes(_failure(error)))


def _limit_memory(state: StateDir) -> None:
    if not state.settings.exists():
        return
    import tomllib

    try:
        value = tomllib.loads(state.settings.read_text(encoding="utf-8")).get("job_memory_bytes")
    except ValueError as error:
        raise JobError("settings", f"{state.settings.name} is not valid TOML: {error}") from error
    if value is None:
        return
    if type(value) is not int or value <= 0:
        raise JobError("settings", f"{state.settings.name}: job_memory_bytes is not a positive integer")
    set_limit(resource.RLIMIT_AS, value)


def _read_task(state: StateDir, task_dir: Path, trust: Trust) -> _Task:
    request = from_json(TaskRequest, read_json(task_dir / "task.json"), what="task.json")
    envelope = Envelope.from_json(request.plan, what="plan")
    plan = trust.plan(envelope)
    anchors = trust.anchors()
    kind, policy = request.kind, _effective_policy(state, anchors.policy)
    if kind not in policy.allow:
        raise JobError(
            "policy", f"this device's policy does not allow {kind.value!r} tasks", state=TaskState.REFUSED
        )
    bundles = {task_dir: _manifest(task_dir, request.bundle, trust)}
    if kind is TaskKind.EVALUATE:
        bundles[task_dir / _BASE] = _manifest(task_dir / _BASE, plan.base.sha256, trust)
    return _Task(
        directory=task_dir,
        request=request,
        device=anchors.device,
        files=tuple(_files(kind, bundles)),
        context=_context(state, anchors.device, envelope.sha256, (request, plan), policy, bundles),
        key=_identity_key(trust),
    )


def _files(kind: TaskKind, bundles: Mapping[Path, Manifest]) -> Iterator[_File]:
    """The files that the job reads, to be held against the signed manifests before it does."""
    # Only `golden` reads the golden batch, which is twice the size of the weights.
    names = BUNDLE_FILES if kind is TaskKind.GOLDEN else (GRAPH_FILE, WEIGHTS_FILE)
    for directory, manifest in bundles.items():
        for name in names:
            bundle = f"{manifest.model}@{manifest.model_version}"
            yield _File(name, f"{directory}/{name}", manifest.files[name], bundle)


def _identity_key(trust: Trust) -> Ed25519PrivateKey:
    try:
        return trust.identity_key()
    except OSError as error:
        raise JobError("identity", f"this device's identity key cannot be read: {error.strerror}") from error


def _prepare(state: StateDir, task: _Task) -> None:
    """Have small files parsed here, where the parsed form stays; whatever is wrong the job will find."""
    from fedctl_agent.trainers.model import prepare_graph  # loads NumPy

    context = task.context
    prepare_graph(context.model_dir, context.manifest)
    if context.base_dir is not None and context.base_manifest is not None:
        prepare_graph(context.base_dir, context.base_manifest)
    with contextlib.suppress(JobError):
        choose_source(state.sources, str(context.manifest.model))


def _context(
    state: StateDir,
    device: Name,
    plan_sha256: str,
    asked: tuple[TaskRequest, Plan],
    policy: EffectivePolicy,
    bundles: Mapping[Path, Manifest],
) -> JobContext:
    request, plan = asked
    (model_dir, manifest), *base = bundles.items()
    return JobContext(
        kind=request.kind,
        plan=plan,
        plan_sha256=plan_sha256,
        manifest=manifest,
        model_dir=model_dir,
        base_dir=base[0][0] if base else None,
        base_manifest=base[0][1] if base else None,
        policy_min_examples=policy.min_examples,
        share_metrics="metrics" in policy.share,
        sources_dir=state.sources,
        seed=job_seed(plan.seed, device, request.kind),
        output=model_dir / _RESULT_FILE,
        progress=_ProgressFile(f"{model_dir}/progress.jsonl"),
    )


def _effective_policy(state: StateDir, signed: Policy) -> EffectivePolicy:
    """The signed policy as verified by this process, tightened by the local one."""
    try:
        local = from_json(LocalPolicy, read_json(state.policy_local), what=state.policy_local.name)
    except FileNotFoundError:
        local = LocalPolicy()
    except (OSError, WireError) as error:
        raise JobError(
            "policy", f"this device refuses everything: {error}", state=TaskState.REFUSED
        ) from error
    return intersect(signed, local)


def _manifest(directory: Path, sha256: str, trust: Trust) -> Manifest:
    """The signed manifest in `directory`, which has to be that of the bundle `sha256`."""
    try:
        data = (directory / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise _unreadable(MANIFEST_FILE, error) from error
    envelope = Envelope.from_bytes(data, what=MANIFEST_FILE)
    manifest = trust.bundle(envelope)
    if envelope.sha256 != sha256:
        raise WireError(
            f"the slot holds bundle {envelope.sha256}, the task asks for {sha256}",
            code="hash",
            subject=sha256,
        )
    return manifest


def _check_file(file: _File) -> None:
    """Refuse to work on a file that is not the one that the signed manifest lists."""
    try:
        found = _digest(file.path)
    except OSError as error:
        raise _unreadable(file.name, error) from error
    if found != (file.listed.sha256, file.listed.bytes):
        raise WireError(
            f"{file.name} differs from the manifest of {file.bundle}", code="hash", subject=file.name
        )


def _unreadable(name: str, error: OSError) -> WireError:
    """A bundle's file is gone, or on a failing disk: as bad as one with other bytes."""
    return WireError(f"{name} of the bundle cannot be read: {error.strerror}", code="hash", subject=name)


def _digest(path: Path | str, *, sync: bool = False) -> tuple[str, int]:
    """SHA-256 and size; by smaller blocks than `hashlib.file_digest`, whose buffer is all new memory."""
    digest, block = hashlib.sha256(), bytearray(_BLOCK_BYTES)
    view = memoryview(block)
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - see `load_trainers` on what a job touches
        if sync:
            os.fsync(stream.fileno())
        while count := stream.readinto(block):
            digest.update(view[:count])
        return digest.hexdigest(), os.fstat(stream.fileno()).st_size


def _seal(output: Path) -> tuple[str, int]:
    """Make the result file durable, before `result.json` vouches for it; return its hash and size."""
    sealed = _digest(output, sync=True)
    sync_directory(output.parent)
    return sealed


class _ProgressFile:
    """Appends lines of progress to a file that the first of them opens; the job's end closes it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._seq = 0

    def __call__(self, progress: Progress) -> None:
        """Append a line; `seq` goes on where the last run of the task stopped."""
        if self._descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, PRIVATE_FILE)
            self._seq = os.read(self._descriptor, os.fstat(self._descriptor).st_size).count(b"\n")
        self._seq += 1
        os.write(self._descriptor, encode(replace(progress, seq=self._seq)) + b"\n")


def _result(task: _Task, outcome: Outcome, sealed: tuple[str, int] | None) -> Result:
    import numpy as np

    return Result(
        task_id=task.request.task_id,
        round=task.context.plan.round,
        attempt=task.request.attempt,
        device=task.device,
        kind=task.request.kind,
        plan=task.context.plan_sha256,
        bundle=task.request.bundle,
        examples=outcome.examples,
        agent_version=__version__,
        runtime=f"numpy {np.__version__}",
        result_sha256=sealed[0] if sealed else None,
        result_bytes=sealed[1] if sealed else None,
        loss=outcome.loss,
        base=outcome.base,
        candidate=outcome.candidate,
    )


def _failure(error: Exception) -> dict[str, str]:
    """Say what went wrong without quoting an unknown exception: its text may hold a training value."""
    code, message, state = "internal", f"{type(error).__name__}, see the job's log", TaskState.FAILED
    if isinstance(error, JobError):
        code, message, state = error.code, error.message, error.state
    elif isinstance(error, WireError):
        code, message = error.code, str(error)
    elif isinstance(error, MemoryError):
        code, message = "memory", "the job ran out of memory"
    elif isinstance(error, OSError):
        code = "disk" if error.errno in NO_ROOM else "internal"
        message = f"{error.strerror or type(error).__name__}: {Path(str(error.filename or 'job')).name}"
    return {"code": code, "message": message[: LIMITS.message_chars], "state": state.value}

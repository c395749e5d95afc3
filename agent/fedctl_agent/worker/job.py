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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl_agent import __version__
from fedctl_agent.daemon.policy import EffectivePolicy, LocalPolicy, intersect
from fedctl_agent.sources import choose_source
from fedctl_agent.state import NO_ROOM, StateDir, read_json, sync_directory, write_durably
from fedctl_agent.trainers import JobContext, JobError, Outcome
from fedctl_agent.worker.jobs import set_limit
from fedctl_agent.worker.trust import Trust
from fedctl_wire.codec import dump_bytes, encode, from_json
from fedctl_wire.errors import WireError
from fedctl_wire.limits import KIB, LIMITS
from fedctl_wire.manifest import BUNDLE_FILES, GRAPH_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest
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
class _Task:
    """A task as verified: what was asked, by which plan and on which bundles, and what the device allows."""

    directory: Path
    request: TaskRequest
    plan: Plan
    plan_sha256: str
    device: Name
    policy: EffectivePolicy
    manifest: Manifest
    base_manifest: Manifest | None
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
    output = task.directory / _RESULT_FILE
    try:
        _limit_memory(state)
        with _progress(task.directory / "progress.jsonl") as progress:
            _check_files(task)
            outcome = run(_context(state, task, output, progress))
        result = _result(task, outcome, _seal(output) if task.request.kind in _WITH_RESULT_FILE else None)
        envelope = sign(encode(result), PayloadType.RESULT, task.key)
        write_durably(task.directory / "result.json", envelope.to_bytes())
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
    has_base = kind is TaskKind.EVALUATE
    return _Task(
        directory=task_dir,
        request=request,
        plan=plan,
        plan_sha256=envelope.sha256,
        device=anchors.device,
        policy=policy,
        manifest=_manifest(task_dir, request.bundle, trust),
        base_manifest=_manifest(task_dir / _BASE, plan.base.sha256, trust) if has_base else None,
        key=_identity_key(trust),
    )


def _identity_key(trust: Trust) -> Ed25519PrivateKey:
    try:
        return trust.identity_key()
    except OSError as error:
        raise JobError("identity", f"this device's identity key cannot be read: {error.strerror}") from error


def _prepare(state: StateDir, task: _Task) -> None:
    """Have small files parsed here, where the parsed form stays; whatever is wrong the job will find."""
    from fedctl_agent.trainers.model import prepare_graph  # loads NumPy

    prepare_graph(task.directory, task.manifest)
    if task.base_manifest is not None:
        prepare_graph(task.directory / _BASE, task.base_manifest)
    with contextlib.suppress(JobError):
        choose_source(state.sources, str(task.manifest.model))


def _context(state: StateDir, task: _Task, output: Path, progress: Callable[[Progress], None]) -> JobContext:
    return JobContext(
        kind=task.request.kind,
        plan=task.plan,
        plan_sha256=task.plan_sha256,
        manifest=task.manifest,
        model_dir=task.directory,
        base_dir=task.directory / _BASE if task.base_manifest else None,
        base_manifest=task.base_manifest,
        policy_min_examples=task.policy.min_examples,
        share_metrics="metrics" in task.policy.share,
        sources_dir=state.sources,
        seed=job_seed(task.plan.seed, task.device, task.request.kind),
        output=output,
        progress=progress,
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


def _check_files(task: _Task) -> None:
    """Refuse to work on files that are not the ones that the signed manifests list."""
    # Only `golden` reads the golden batch, which is twice the size of the weights.
    names = BUNDLE_FILES if task.request.kind is TaskKind.GOLDEN else (GRAPH_FILE, WEIGHTS_FILE)
    bundles = [(task.directory, task.manifest)]
    if task.base_manifest is not None:
        bundles.append((task.directory / _BASE, task.base_manifest))
    for directory, manifest in bundles:
        for name in names:
            _check_file(directory / name, manifest)


def _check_file(path: Path, manifest: Manifest) -> None:
    listed = manifest.files[path.name]
    try:
        found = _digest(path)
    except OSError as error:
        raise _unreadable(path.name, error) from error
    if found != (listed.sha256, listed.bytes):
        raise WireError(
            f"{path.name} differs from the manifest of {manifest.model}@{manifest.model_version}",
            code="hash",
            subject=path.name,
        )


def _unreadable(name: str, error: OSError) -> WireError:
    """A bundle's file is gone, or on a failing disk: as bad as one with other bytes."""
    return WireError(f"{name} of the bundle cannot be read: {error.strerror}", code="hash", subject=name)


def _digest(path: Path, *, sync: bool = False) -> tuple[str, int]:
    """SHA-256 and size; by smaller blocks than `hashlib.file_digest`, whose buffer is all new memory."""
    digest, block = hashlib.sha256(), bytearray(_BLOCK_BYTES)
    view = memoryview(block)
    with path.open("rb", buffering=0) as stream:
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


@contextlib.contextmanager
def _progress(path: Path) -> Iterator[Callable[[Progress], None]]:
    """A function that appends lines to `path`; `seq` goes on where the last run of the task stopped."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+b", buffering=0) as stream:  # noqa: PTH123 - of a descriptor
        seq = stream.read().count(b"\n")

        def append(progress: Progress) -> None:
            nonlocal seq
            seq += 1
            stream.write(encode(replace(progress, seq=seq)) + b"\n")

        yield append


def _result(task: _Task, outcome: Outcome, sealed: tuple[str, int] | None) -> Result:
    import numpy as np

    return Result(
        task_id=task.request.task_id,
        round=task.plan.round,
        attempt=task.request.attempt,
        device=task.device,
        kind=task.request.kind,
        plan=task.plan_sha256,
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

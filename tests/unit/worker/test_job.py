"""What a job leaves in its task directory: signed results, its own failures, nothing half done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedctl_agent.trainers import JobContext, Outcome
from fedctl_agent.worker.job import run_job
from fedctl_agent.worker.trust import Trust
from fedctl_wire.manifest import GOLDEN_FILE, GRAPH_FILE, MANIFEST_FILE, WEIGHTS_FILE
from fedctl_wire.messages import Evaluation, TaskKind, job_seed
from fedctl_wire.signing import Envelope, generate_key
from tests.unit.worker.job_files import failure_of, outcome, result_of
from tests.unit.worker.signed_fleet import DEVICE, ROUND, SignedFleet
from tests.unit.worker.small_trainers import evaluate, leak, policy, refuse, train

RunJob = Callable[[Path, Callable[[JobContext], Outcome]], None]


@pytest.fixture
def run(fleet: SignedFleet) -> RunJob:
    """What a forked child does, in this process."""
    trust = Trust(fleet.state)
    return lambda task_dir, trainer: run_job(fleet.state, task_dir, trust=trust, run=trainer)


# ---------------------------------------------------------------- done


def test_a_result_is_signed_and_vouches_for_its_file(fleet: SignedFleet, run: RunJob) -> None:
    task_dir = fleet.write_task()
    run(task_dir, train)
    result = result_of(fleet, task_dir)
    update = (task_dir / "result.safetensors").read_bytes()
    request = json.loads((task_dir / "task.json").read_bytes())

    assert result.result_sha256 == hashlib.sha256(update).hexdigest()
    assert result.result_bytes == len(update)
    assert (result.task_id, result.bundle) == (task_dir.name, request["bundle"])
    assert result.plan == Envelope.from_json(request["plan"]).sha256
    assert (result.round, result.attempt, result.device) == (ROUND, 1, DEVICE)
    assert (result.kind, result.examples, result.loss) == (TaskKind.TRAIN, 40, 0.5)
    assert result.runtime.startswith("numpy ")
    assert not list(task_dir.glob(".*")), "no temporary file is left"


def test_evaluation_gets_both_versions(fleet: SignedFleet, run: RunJob) -> None:
    task_dir = fleet.write_task(TaskKind.EVALUATE)
    run(task_dir, evaluate)
    result = result_of(fleet, task_dir)
    assert (result.base, result.candidate) == (Evaluation(9, 1.0, 4), Evaluation(9, 2.0, 5))
    assert result.result_sha256 is None


def test_same_seed_same_bytes(fleet: SignedFleet, run: RunJob) -> None:
    updates = []
    for attempt, seed in ((1, 7), (2, 7), (3, 8)):
        task_dir = fleet.write_task(attempt=attempt, seed=seed)
        run(task_dir, train)
        # The header holds the plan's hash, which differs by seed: compare the numbers.
        updates.append((task_dir / "result.safetensors").read_bytes()[-48:])
    assert updates[0] == updates[1] != updates[2]
    assert job_seed(7, DEVICE, TaskKind.TRAIN) != job_seed(8, DEVICE, TaskKind.TRAIN)


def test_progress_goes_on_over_a_second_run(fleet: SignedFleet, run: RunJob) -> None:
    task_dir = fleet.write_task()
    run(task_dir, train)
    (task_dir / "result.json").unlink()
    run(task_dir, train)
    lines = [json.loads(line) for line in (task_dir / "progress.jsonl").read_bytes().splitlines()]
    assert [(line["seq"], line["epoch"]) for line in lines] == [(1, 1), (2, 2), (3, 1), (4, 2)]


def test_a_job_is_held_to_both_policies(fleet: SignedFleet, run: RunJob) -> None:
    run(first := fleet.write_task(TaskKind.GOLDEN), policy)
    assert (result_of(fleet, first).examples, result_of(fleet, first).loss) == (20, 1.0)

    fleet.state.policy_local.write_text('{"min_examples": 50, "share": []}', encoding="utf-8")
    run(second := fleet.write_task(TaskKind.GOLDEN, attempt=2), policy)
    assert (result_of(fleet, second).examples, result_of(fleet, second).loss) == (50, 0.0)


# ---------------------------------------------------------------- failed by its own decision


def test_a_jobs_own_error_is_final_and_leaves_no_update(fleet: SignedFleet, run: RunJob) -> None:
    task_dir = fleet.write_task()
    run(task_dir, refuse)
    assert failure_of(task_dir) == {
        "code": "no_data",
        "message": "source har has no test part",
        "state": "refused",
    }


def test_an_unforeseen_error_says_nothing_of_the_data(
    fleet: SignedFleet, run: RunJob, capsys: pytest.CaptureFixture[str]
) -> None:
    task_dir = fleet.write_task()
    run(task_dir, leak)
    failure = failure_of(task_dir)
    assert outcome(failure) == ("internal", "failed")
    assert "ValueError" in failure["message"]
    assert "72.5" not in failure["message"]
    assert "ValueError: could not convert" in capsys.readouterr().err, "the job's log stays on the device"


@pytest.mark.parametrize("text", ["job_memory_bytes = 'all'\n", "job_memory_bytes = -1\n", "job_memory"])
def test_unusable_settings_are_named(fleet: SignedFleet, run: RunJob, text: str) -> None:
    fleet.state.settings.write_text(text, encoding="utf-8")
    task_dir = fleet.write_task()
    run(task_dir, train)
    failure = failure_of(task_dir)
    assert outcome(failure) == ("settings", "failed")
    assert "agent.toml" in failure["message"]


def test_other_settings_are_left_to_others(fleet: SignedFleet, run: RunJob) -> None:
    fleet.state.settings.write_text("log_level = 'debug'\n", encoding="utf-8")
    task_dir = fleet.write_task()
    run(task_dir, train)
    assert result_of(fleet, task_dir).examples == 40


# ---------------------------------------------------------------- what changed since the verdict


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (TaskKind.TRAIN, WEIGHTS_FILE),
        (TaskKind.TRAIN, GRAPH_FILE),
        (TaskKind.GOLDEN, GOLDEN_FILE),
        (TaskKind.EVALUATE, "base/" + WEIGHTS_FILE),
    ],
)
def test_nothing_is_computed_on_bytes_that_differ(
    fleet: SignedFleet, run: RunJob, kind: TaskKind, name: str
) -> None:
    task_dir = fleet.write_task(kind)
    data = bytearray((task_dir / name).read_bytes())
    data[-1] ^= 1
    (task_dir / name).write_bytes(data)
    run(task_dir, train)
    failure = failure_of(task_dir)
    assert outcome(failure) == ("hash", "failed")
    assert Path(name).name in failure["message"]
    assert not (task_dir / "progress.jsonl").exists()


def test_a_file_that_grew_is_refused(fleet: SignedFleet, run: RunJob) -> None:
    task_dir = fleet.write_task()
    with (task_dir / WEIGHTS_FILE).open("ab") as stream:
        stream.write(b"\0")
    run(task_dir, train)
    assert outcome(failure_of(task_dir)) == ("hash", "failed")


def test_another_bundle_than_was_asked_for_is_refused(fleet: SignedFleet, run: RunJob) -> None:
    for task_dir in (fleet.write_task(), fleet.write_task(TaskKind.EVALUATE)):
        other = task_dir / "base" if (task_dir / "base").exists() else task_dir
        fleet.write_bundle(other, model_version=9)
        run(task_dir, train)
        assert outcome(failure_of(task_dir)) == ("hash", "failed")


def test_signatures_are_checked_again(fleet: SignedFleet, run: RunJob) -> None:
    forged, revoked = fleet.write_task(), fleet.write_task(attempt=2)
    stranger = SignedFleet(fleet.state, operator=generate_key())
    stranger.write_bundle(forged)
    run(forged, train)
    assert outcome(failure_of(forged)) == ("signature", "failed")

    fleet.state.roster.write_bytes(fleet.roster(serial=4, operators=()).to_bytes())
    run(revoked, train)
    assert outcome(failure_of(revoked)) == ("signature", "failed")


def test_a_policy_that_changed_while_the_task_waited_counts(fleet: SignedFleet, run: RunJob) -> None:
    task_dir, other = fleet.write_task(), fleet.write_task(attempt=2)
    fleet.state.policy_local.write_text('{"allow": ["golden"]}', encoding="utf-8")
    run(task_dir, train)
    assert outcome(failure_of(task_dir)) == ("policy", "refused")

    fleet.state.policy_local.write_text('{"alow": ["train"]}', encoding="utf-8")
    run(other, train)
    failure = failure_of(other)
    assert outcome(failure) == ("policy", "refused")
    assert "alow" in failure["message"]


def test_a_broken_task_directory_fails_with_its_cause(fleet: SignedFleet, run: RunJob) -> None:
    run(garbled := broken(fleet, 1, "task.json", b"{"), train)
    assert outcome(failure_of(garbled)) == ("malformed", "failed")
    run(unsigned := broken(fleet, 2, MANIFEST_FILE, b"{}"), train)
    assert outcome(failure_of(unsigned)) == ("malformed", "failed")
    for attempt, name in enumerate((WEIGHTS_FILE, GRAPH_FILE, MANIFEST_FILE), start=3):
        run(missing := broken(fleet, attempt, name, None), train)
        failure = failure_of(missing)
        assert outcome(failure) == ("hash", "failed")
        assert failure["message"] == f"{name} of the bundle cannot be read: No such file or directory"


def broken(fleet: SignedFleet, attempt: int, name: str, data: bytes | None) -> Path:
    task_dir = fleet.write_task(attempt=attempt)
    (task_dir / name).unlink()
    if data is not None:
        (task_dir / name).write_bytes(data)
    return task_dir


def test_a_missing_identity_key_is_named(fleet: SignedFleet, run: RunJob) -> None:
    fleet.state.identity_key.unlink()
    run(task_dir := fleet.write_task(), train)
    failure = failure_of(task_dir)
    assert outcome(failure) == ("identity", "failed")
    assert "identity key cannot be read" in failure["message"]


def test_a_wrong_identity_file_signs_nothing(fleet: SignedFleet, run: RunJob) -> None:
    task_dir = fleet.write_task()
    fleet.state.identity_key.write_bytes(b"not a key")
    run(task_dir, train)
    assert outcome(failure_of(task_dir)) == ("malformed", "failed")

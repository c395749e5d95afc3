"""What only a real job shows: limits, exit codes, and the agent's own trainers."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedctl.models import build
from fedctl_agent.state import DISK_FULL_EXIT
from fedctl_wire.manifest import GOLDEN_FILE, GRAPH_FILE, WEIGHTS_FILE
from fedctl_wire.messages import TaskKind
from fedctl_wire.tensors import header_bytes, layout
from tests.integration.worker.conftest import StartWorker
from tests.unit.worker.job_files import failure_of, outcome, result_of
from tests.unit.worker.signed_fleet import Model, SignedFleet


def write_source(fleet: SignedFleet) -> None:
    """Thirty examples, the last six of them for testing."""
    np.savez(fleet.state.sources / "day.npz", x=np.ones((30, 3), np.float32), y=np.arange(30) % 2)
    (fleet.state.sources / "har.toml").write_text(
        'kind = "npz"\npath = "day.npz"\nfeatures = "x"\nlabel = "y"\n', encoding="utf-8"
    )


def real_model() -> Model:
    """A model that the agent's own trainers can train."""
    built = build("mlp", input_shape=(3,), hidden=(2,), classes=2, seed=0)
    contents = {WEIGHTS_FILE: tensor_file(built.weights), GOLDEN_FILE: tensor_file(built.golden)}
    return Model({**contents, GRAPH_FILE: built.graph}, built.tensors, built.operators)


def tensor_file(arrays: dict[str, NDArray[Any]]) -> bytes:
    dtypes = {"float32": "F32", "float64": "F64", "int64": "I64"}
    infos = layout([(name, dtypes[str(array.dtype)], array.shape) for name, array in arrays.items()])
    return header_bytes(infos) + b"".join(array.tobytes() for array in arrays.values())


def test_the_agents_own_trainers_run_unless_told_otherwise(fleet: SignedFleet, start: StartWorker) -> None:
    write_source(fleet)
    task_dir = fleet.write_task(TaskKind.STATS)
    assert start(None).run(task_dir)["exit"] == 0
    result = result_of(fleet, task_dir)
    sums = (task_dir / "result.safetensors").read_bytes()
    assert result.examples == 24
    assert result.result_sha256 == hashlib.sha256(sums).hexdigest()
    assert np.frombuffer(sums[-72:]).tolist() == [24.0] * 9, "count, sum, sumsq of three features"


@pytest.mark.parametrize("kind", list(TaskKind))
def test_a_job_finds_everything_imported(fleet: SignedFleet, kind: TaskKind) -> None:
    """An import in the job is paid by every task; in the worker, once."""
    write_source(fleet)
    fleet.model = real_model()
    task_dir = fleet.write_task(kind)
    program = Path(__file__).with_name("list_imports.py")
    ended = subprocess.run(
        [sys.executable, str(program), str(fleet.state.path), str(task_dir)],
        capture_output=True,
        check=True,
        text=True,
    )
    assert result_of(fleet, task_dir).kind is kind, ended.stderr
    assert ended.stdout == ""


def test_what_a_job_prints_goes_to_its_log(fleet: SignedFleet, start: StartWorker) -> None:
    done, refused = fleet.write_task(), fleet.write_task(attempt=2)
    start("train").run(done)
    assert (done / "log").read_text(encoding="utf-8") == "trained\n"
    start("refuse").run(refused)
    assert "JobError: source har has no test part" in (refused / "log").read_text(encoding="utf-8")


def test_a_result_beyond_the_file_limit_fails(fleet: SignedFleet, start: StartWorker) -> None:
    task_dir = fleet.write_task()
    start("fill_disk").run(task_dir)
    assert outcome(failure_of(task_dir)) == ("disk", "failed")


def test_a_disk_without_room_for_the_failure_is_told_by_the_exit_code(
    fleet: SignedFleet, start: StartWorker
) -> None:
    task_dir = fleet.write_task()
    assert start("fill_disk_for_good").run(task_dir)["exit"] == DISK_FULL_EXIT
    assert not (task_dir / "failure.json").exists()


def test_a_job_beyond_the_memory_limit_fails(fleet: SignedFleet, start: StartWorker) -> None:
    fleet.state.settings.write_text(f"job_memory_bytes = {2**30}\n", encoding="utf-8")
    task_dir = fleet.write_task()
    start("allocate").run(task_dir)
    assert outcome(failure_of(task_dir)) == ("memory", "failed")


def test_a_failure_that_cannot_be_written_is_for_the_daemon_to_see(
    fleet: SignedFleet, start: StartWorker
) -> None:
    task_dir = fleet.write_task()
    (task_dir / "failure.json").mkdir()
    (task_dir / "failure.json" / "in-the-way").touch()
    assert start("refuse").run(task_dir)["exit"] == 1

"""Devices that lie or are tampered with: each is dropped with its reason, and nothing of it is counted."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fedctl.core.errors import ConfigError, FedctlError, TrustError
from fedctl.core.round_records import RoundPhase
from fedctl.core.selector import Selector
from fedctl.ops import rounds
from fedctl.ops.session import FleetSession
from fedctl.ops.training import exchange, site
from fedctl_wire.messages import TaskKind, TaskStatus
from fedctl_wire.signing import Envelope, PayloadType, generate_key, private_key_from_pem, sign
from tests.fleet import MODEL, WISHES, TestFleet, fleet

EVERYONE = Selector.parse((), ())
LIAR = "dev-2"
Tamper = Callable[[TestFleet, exchange.Assignment, TaskStatus], TaskStatus]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[TestFleet]:
    with fleet(tmp_path) as ready:
        yield ready


def spooled(small: TestFleet, assignment: exchange.Assignment) -> Path:
    return small.agents[LIAR].state / "spool" / assignment.task_id / "result.safetensors"


def truncated(small: TestFleet, assignment: exchange.Assignment, status: TaskStatus) -> TaskStatus:
    path = spooled(small, assignment)
    path.write_bytes(path.read_bytes()[:-40])
    return status


def longer(small: TestFleet, assignment: exchange.Assignment, status: TaskStatus) -> TaskStatus:
    path = spooled(small, assignment)
    path.write_bytes(path.read_bytes() + bytes(4096))
    return status


def other_values(small: TestFleet, assignment: exchange.Assignment, status: TaskStatus) -> TaskStatus:
    path = spooled(small, assignment)
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(1.5).tobytes()
    path.write_bytes(bytes(data))
    return status


def unsigned(_: TestFleet, __: exchange.Assignment, status: TaskStatus) -> TaskStatus:
    payload = Envelope.from_json(status.result).payload
    forged = sign(payload, PayloadType.RESULT, generate_key())
    return replace(status, result=json.loads(forged.to_bytes()))


def signed_as_a_plan(_: TestFleet, __: exchange.Assignment, status: TaskStatus) -> TaskStatus:
    return replace(status, result={**status.result, "payloadType": PayloadType.PLAN.value})


def resigned(
    small: TestFleet, assignment: exchange.Assignment, status: TaskStatus, **claims: object
) -> TaskStatus:
    """What a device with its own key can claim about a file of its choice."""
    pem = (small.agents[LIAR].state / "identity" / "key.pem").read_bytes()
    key = private_key_from_pem(pem, what="key")
    result = json.loads(Envelope.from_json(status.result).payload)
    data = spooled(small, assignment).read_bytes()
    result |= {"result_sha256": hashlib.sha256(data).hexdigest(), "result_bytes": len(data), **claims}
    return replace(
        status, result=json.loads(sign(json.dumps(result).encode(), PayloadType.RESULT, key).to_bytes())
    )


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    with safe_open(path, "np") as opened:
        metadata = opened.metadata()
    save_file(change(load_file(path)), path, metadata)


def full_of_nan(small: TestFleet, assignment: exchange.Assignment, status: TaskStatus) -> TaskStatus:
    path = spooled(small, assignment)
    path.write_bytes(path.read_bytes()[:-8] + np.full(2, np.nan, np.float32).tobytes())
    return resigned(small, assignment, status)


def wrong_shape(small: TestFleet, assignment: exchange.Assignment, status: TaskStatus) -> TaskStatus:
    rewrite(spooled(small, assignment), lambda t: {name: v[:1].copy() for name, v in t.items()})
    return resigned(small, assignment, status)


def of_another_round(small: TestFleet, assignment: exchange.Assignment, status: TaskStatus) -> TaskStatus:
    return resigned(small, assignment, status, round="another")


def of_nobody(small: TestFleet, assignment: exchange.Assignment, status: TaskStatus) -> TaskStatus:
    return resigned(small, assignment, status, examples=0)


def enormous(small: TestFleet, assignment: exchange.Assignment, status: TaskStatus) -> TaskStatus:
    return resigned(small, assignment, status, result_bytes=2**40)


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (truncated, "truncated"),
        (longer, "more than"),
        (other_values, "hash"),
        (unsigned, "not signed by"),
        (signed_as_a_plan, "signed as"),
        (full_of_nan, "not finite"),
        (wrong_shape, "in place of"),
        (of_another_round, "another task: round"),
        (of_nobody, "names no update"),
        (enormous, "allows"),
    ],
)
def test_a_bad_update_drops_its_device_and_nothing_else(
    small: TestFleet, monkeypatch: pytest.MonkeyPatch, tamper: Tamper, reason: str
) -> None:
    honest = site.carry_out

    def carry_out(client: object, assignment: exchange.Assignment, **arguments: object) -> TaskStatus:
        status = honest(client, assignment, **arguments)  # type: ignore[arg-type]
        lies = assignment.device.name == LIAR and assignment.kind is TaskKind.TRAIN
        return tamper(small, assignment, status) if lies else status

    monkeypatch.setattr(site, "carry_out", carry_out)
    wishes = replace(WISHES, deadline_s=10.0)
    with small.store() as store:
        (summary,) = rounds.start(store, small.home, MODEL, EVERYONE, wishes=wishes).rounds
    assert summary.phase is RoundPhase.PUBLISHED
    assert [row.device for row in summary.dropped] == [LIAR]
    assert re.search(reason, summary.dropped[0].reason or ""), summary.dropped[0].reason
    assert summary.contributors == 2


def test_an_update_above_the_plans_norm_is_dropped(small: TestFleet) -> None:
    with small.store() as store:
        wishes = replace(WISHES, max_update_norm=1e-9, quorum=1)
        (summary,) = rounds.start(store, small.home, MODEL, EVERYONE, wishes=wishes).rounds
    assert summary.phase is RoundPhase.FAILED
    assert all("norm" in (row.reason or "") for row in summary.dropped if row.role == "train")


def test_another_device_at_the_address_is_not_spoken_to(small: TestFleet) -> None:
    first, second = small.agents["dev-1"], small.agents["dev-2"]
    first.kill()
    first.socket.unlink()
    first.socket.symlink_to(second.socket)
    with (
        small.store() as store,
        FleetSession(store, small.home) as session,
        pytest.raises(TrustError, match="dev-2"),
    ):
        session.client(store.device("dev-1"))
    first.socket.unlink()


def test_a_device_without_an_enrolment_is_an_error_that_names_it(small: TestFleet, tmp_path: Path) -> None:
    agent = small.agents["dev-1"]
    agent.kill()
    for path in (agent.state / "identity").iterdir():
        path.unlink()
    subprocess.run(
        [sys.executable, "-m", "fedctl_agent.main", "keygen", "--state-dir", str(agent.state)],
        check=True,
        capture_output=True,
    )
    agent.start()
    with (
        small.store() as store,
        FleetSession(store, small.home) as session,
        pytest.raises(FedctlError, match="dev-1"),
    ):
        session.client(store.device("dev-1"))


def test_a_broken_file_of_the_workstation_drops_no_device(small: TestFleet) -> None:
    with small.store() as store:
        rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES)
        (small.home.path / "roster.dsse").write_text("garbage")
        store.set_roster_serial(99)
        with pytest.raises(ConfigError, match="roster"):
            rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES)
        unfinished = store.unfinished_round(MODEL)
        assert unfinished is not None
        assert not [row for row in store.round_devices(unfinished.id) if row.reason]

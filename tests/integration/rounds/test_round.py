"""Whole rounds over real agents: what is published, what a failing device does, what a kill leaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedctl.core.durable import PartFile
from fedctl.core.errors import ConfigError, LockedError, NotFoundError, NotMetError, UsageError
from fedctl.core.model_records import VersionState
from fedctl.core.progress import DeviceProgress, Event, Note
from fedctl.core.round_records import RoundPhase, Stage
from fedctl.core.selector import Selector
from fedctl.core.until import METRICS
from fedctl.ops import rounds
from fedctl.store.lock import hold_lock
from tests.fleet import MODEL, WISHES, TestFleet, fleet

EVERYONE = Selector.parse((), ())


@pytest.fixture
def small(tmp_path: Path) -> Iterator[TestFleet]:
    with fleet(tmp_path) as ready:
        yield ready


def test_rounds_scale_train_evaluate_and_publish(small: TestFleet) -> None:
    with small.store() as store:
        run = rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES, rounds=3)
        assert [s.phase for s in run.rounds] == [RoundPhase.PUBLISHED] * 3
        assert store.model(MODEL).published_version == 5  # 1 draft, 2 scaled, 3 to 5 by rounds
        losses = [summary.loss or 9.0 for summary in run.rounds]
        assert losses == sorted(losses, reverse=True)
        assert (run.rounds[-1].auroc or 0) > 0.9
        detail = rounds.show(store, run.rounds[0].id)
        stages = {row.device: row.stage for row in detail.devices}
        assert stages == {
            "dev-1": "aggregated",
            "dev-2": "aggregated",
            "dev-3": "aggregated",
            "dev-4": "evaluated",
        }
        assert all(row.bytes_up > 0 and row.bytes_down > 0 and row.cpu_ms > 0 for row in detail.devices)
        assert not any(store.lingering_tasks(name) for name in small.agents)
    assert not list((small.home.path / "rounds").glob("*"))  # updates are not kept after the round


def test_a_full_disk_here_drops_no_device_and_is_resumed(
    small: TestFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, full = PartFile.write, threading.Event()

    def refuse(part: PartFile, block: bytes) -> None:
        if full.is_set():
            raise ConfigError("cannot write the update: no space left on device")
        write(part, block)

    monkeypatch.setattr(PartFile, "write", refuse)
    with small.store() as store:
        rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES)
        full.set()
        with pytest.raises(ConfigError, match="no space left"):
            rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES)
        full.clear()
        (summary,) = rounds.resume(store, small.home)
    assert (summary.phase, summary.contributors, summary.dropped) == (RoundPhase.PUBLISHED, 3, ())


def test_a_bundle_that_a_device_lost_in_the_middle_is_pushed_again(small: TestFleet) -> None:
    lost: list[str] = []

    def lose(event: Event) -> None:
        if isinstance(event, DeviceProgress) and event.stage == "collected":
            active = small.agents[event.device].state / "models" / MODEL / "active"
            (active.with_name(active.read_text()) / "weights.safetensors").unlink()
            lost.append(event.device)

    for name in ("dev-1", "dev-2"):
        (source,) = (small.agents[name].state / "sources").glob("*.toml")
        source.write_text(source.read_text().replace("test_fraction = 0.0", "test_fraction = 0.5"))
    with small.store() as store:
        trainers = Selector.parse(("dev-1", "dev-2"), ())
        run = rounds.start(store, small.home, MODEL, trainers, wishes=WISHES, observer=lose)
        (summary,) = run.rounds
        assert (sorted(lost), summary.phase) == (["dev-1", "dev-2"], RoundPhase.PUBLISHED)
        assert summary.evaluated == 2


def test_the_plan_that_travels_holds_no_names_and_is_hashed(small: TestFleet) -> None:
    with small.store() as store:
        (summary,) = rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES).rounds
        envelope = store.plan(summary.plan)
    assert envelope.sha256 == summary.plan
    assert b"dev-1" not in envelope.payload
    assert json.loads(envelope.payload)["cohort"]["size"] == 3


def test_a_dead_device_is_a_dropped_device(small: TestFleet) -> None:
    small.agents["dev-2"].kill()
    wishes = replace(WISHES, deadline_s=3.0)
    with small.store() as store:
        (summary,) = rounds.start(store, small.home, MODEL, EVERYONE, wishes=wishes).rounds
    assert summary.phase is RoundPhase.PUBLISHED
    assert [(row.device, row.stage) for row in summary.dropped] == [("dev-2", Stage.DROPPED)]
    assert summary.dropped[0].reason
    assert summary.contributors == 2


def test_too_few_updates_fail_the_round_and_the_base_stays(small: TestFleet) -> None:
    with small.store() as store:
        rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES)
        published = store.model(MODEL).published_version
        small.agents["dev-2"].kill()
        wishes = replace(WISHES, deadline_s=2.0, quorum=3)
        (summary,) = rounds.start(store, small.home, MODEL, EVERYONE, wishes=wishes).rounds
        assert summary.phase is RoundPhase.FAILED
        assert "quorum 3 not met: 2 of 3" in (summary.reason or "")
        assert store.model(MODEL).published_version == published


def test_a_refusal_by_a_device_is_final_and_named(small: TestFleet) -> None:
    (small.agents["dev-3"].state / "policy.local.json").write_text('{"allow": ["golden", "stats"]}')
    with small.store() as store:
        (summary,) = rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES).rounds
    assert summary.phase is RoundPhase.PUBLISHED
    assert [row.device for row in summary.dropped] == ["dev-3"]
    assert "policy" in (summary.dropped[0].reason or "")


def test_a_model_that_got_worse_is_rejected(small: TestFleet) -> None:
    with small.store() as store:
        rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES, rounds=3)
        wishes = replace(WISHES, lr=8.0, momentum=0.9, tolerance=0.0)
        (summary,) = rounds.start(store, small.home, MODEL, EVERYONE, wishes=wishes).rounds
        assert summary.phase is RoundPhase.REJECTED, summary
        assert summary.gate == "failed"
        assert summary.reason
        assert summary.result_version is not None
        assert store.version(MODEL, summary.result_version).state is VersionState.REJECTED
        assert store.model(MODEL).published_version == summary.base_version


def test_without_hold_out_data_the_gate_says_none(tmp_path: Path) -> None:
    with fleet(tmp_path, train=2, holdout=0) as pair, pair.store() as store:  # test_fraction is 0
        (summary,) = rounds.start(store, pair.home, MODEL, EVERYONE, wishes=WISHES).rounds
    assert (summary.phase, summary.gate) == (RoundPhase.PUBLISHED, "none")


def test_a_hold_out_device_that_is_down_is_warned_of(small: TestFleet) -> None:
    small.agents["dev-4"].kill()
    words = ("round", "start", MODEL, "--deadline", "4s", "--seed", "7", "-q")
    done = small.cli(*words)
    assert (done.returncode, done.stdout) == (0, "")
    said = " ".join(done.stderr.split())
    assert said == (
        f"warning: {MODEL}@3 is published unmeasured: its only hold-out device did not answer "
        "(round 1, gate none)"
    )
    assert small.cli(*words, "--strict").returncode == 3


def test_a_model_that_does_not_fit_the_devices_is_named_and_not_the_devices(small: TestFleet) -> None:
    words = ("--builder", "mlp", "--input", "8", "--hidden", "4", "--classes", "2")
    assert small.cli("model", "create", "wide", *words).returncode == 0
    done = small.cli("round", "start", "wide")
    assert done.returncode == 6, done.stderr
    said = " ".join(done.stderr.split())
    assert "wide takes --input 8 and --classes 2" in said
    assert "fedctl model create NAME --input N" in said
    assert "mend the devices" not in said


def test_until_ends_a_run_early(small: TestFleet) -> None:
    wishes = replace(WISHES, until="auroc>=0.6")
    with small.store() as store:
        run = rounds.start(store, small.home, MODEL, EVERYONE, wishes=wishes, rounds=9)
        assert run.until_met is True
        assert len(run.rounds) < 9
        unmet = replace(WISHES, until="auroc>=1.0")
        assert rounds.start(store, small.home, MODEL, EVERYONE, wishes=unmet).until_met is False


def test_a_target_that_the_model_cannot_have_trains_nothing(small: TestFleet) -> None:
    words = ("--builder", "mlp", "--input", "6", "--hidden", "4", "--classes", "3")
    assert small.cli("model", "create", "three", *words).returncode == 0
    done = small.cli("round", "start", "three", "--until", "auroc>=0.85")
    assert done.returncode == 2, done.stderr
    assert "macro_f1 or accuracy" in done.stderr
    assert "no rounds yet" in small.cli("round", "list").stderr + small.cli("round", "list").stdout


def test_the_help_of_a_target_names_every_metric(small: TestFleet) -> None:
    shown = small.cli("round", "start", "--help").stdout
    assert all(metric in shown for metric in METRICS)


def test_same_seed_same_data_same_bytes(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        with fleet(tmp_path / name) as same, same.store() as store:
            rounds.start(store, same.home, MODEL, EVERYONE, wishes=WISHES, rounds=2)
            found.append(same.weights_sha256(4))
    assert found[0] == found[1]


def test_a_second_run_is_told_that_the_model_is_held(small: TestFleet) -> None:
    with small.store() as store, hold_lock(small.home, model=MODEL):
        with pytest.raises(LockedError, match="held by pid"):
            rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES)
        assert rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES, skip_if_running=True).skipped


def test_wishes_out_of_range_change_nothing(small: TestFleet) -> None:
    with small.store() as store:
        with pytest.raises(UsageError, match="--lr"):
            rounds.start(store, small.home, MODEL, EVERYONE, wishes=replace(WISHES, lr=-1.0))
        with pytest.raises(UsageError, match="quorum 9"):
            rounds.start(store, small.home, MODEL, EVERYONE, wishes=replace(WISHES, quorum=9))
        with pytest.raises(NotFoundError):
            rounds.start(store, small.home, "pulsee", EVERYONE, wishes=WISHES)
        assert store.rounds() == ()


def test_scaling_needs_its_quorum(small: TestFleet) -> None:
    for name in ("dev-1", "dev-2"):
        small.agents[name].kill()
    with small.store() as store:
        with pytest.raises(NotMetError, match="dev-1"):
            rounds.start(store, small.home, MODEL, EVERYONE, wishes=replace(WISHES, deadline_s=1.0))
        assert store.model(MODEL).latest_version == 1


def test_missing_cells_and_scaling_reach_the_bundle(small: TestFleet) -> None:
    path = small.agents["dev-1"].state / "data.npz"
    with np.load(path) as arrays:
        x, y = arrays["x"].copy(), arrays["y"]
    x[:40, 2] = np.nan
    np.savez(path, x=x, y=y)
    with small.store() as store:
        (summary,) = rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES).rounds
    assert summary.phase is RoundPhase.PUBLISHED


def test_cancel_ends_a_round_that_another_thread_drives(small: TestFleet) -> None:
    with small.store() as store:
        rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES)
    small.agents["dev-2"].kill()  # so that the next round waits for its deadline
    started = threading.Event()

    def observe(event: Event) -> None:
        if isinstance(event, DeviceProgress) and event.stage == "collected":
            started.set()

    outcome: list[RoundPhase] = []

    def run() -> None:
        with small.store() as store:
            result = rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES, observer=observe)
            outcome.extend(summary.phase for summary in result.rounds)

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(20)
    with small.store() as store:
        summary = rounds.cancel(store, small.home)
    thread.join(20)
    assert summary.phase is RoundPhase.CANCELLED
    assert outcome == [RoundPhase.CANCELLED]


def test_a_rejected_candidate_is_nobodys_starting_point(small: TestFleet) -> None:
    wishes = replace(WISHES, lr=8.0, momentum=0.9, tolerance=0.0)
    with small.store() as store:
        (rejected,) = rounds.start(store, small.home, MODEL, EVERYONE, wishes=wishes).rounds
        assert rejected.phase is RoundPhase.REJECTED
        (after,) = rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES).rounds
    assert after.base_version == rejected.base_version


def test_a_round_leaves_devices_and_slots_as_they_are_known(small: TestFleet) -> None:
    with small.store() as store:
        before = {device.name: device.last_seen or "" for device in store.devices()}
        (summary,) = rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES).rounds
        assert all((device.last_seen or "") > before[device.name] for device in store.devices())
        slots = {(d.device, d.version, d.active) for d in store.deployments()}
    assert ("dev-1", summary.base_version, True) in slots
    assert ("dev-4", summary.result_version, False) in slots


def test_a_device_that_does_not_answer_is_named_while_it_is_waited_for(small: TestFleet) -> None:
    small.agents["dev-2"].kill()
    notes: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    wishes = replace(WISHES, deadline_s=2.0)
    with small.store() as store:
        rounds.start(store, small.home, MODEL, EVERYONE, wishes=wishes, observer=observe)
    assert sum("dev-2 does not answer; waiting until" in note for note in notes) == 1


def test_an_interrupted_round_lets_go_at_once_and_is_resumed(small: TestFleet) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, DeviceProgress) and event.stage == "collected":
            raise KeyboardInterrupt

    with small.store() as store:
        rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES)
        small.agents["dev-2"].kill()
        with pytest.raises(KeyboardInterrupt):
            rounds.start(store, small.home, MODEL, EVERYONE, wishes=WISHES, observer=interrupt)
        small.agents["dev-2"].start()
        (summary,) = rounds.resume(store, small.home)
    assert (summary.phase, summary.contributors) == (RoundPhase.PUBLISHED, 3)


def test_a_candidate_whose_loss_is_not_finite_is_rejected(small: TestFleet) -> None:
    """One step so large that the weights are finite and what the model computes with them is not."""
    wishes = replace(WISHES, lr=1e25, batch_size=512, local_epochs=1)
    with small.store() as store:
        (summary,) = rounds.start(store, small.home, MODEL, EVERYONE, wishes=wishes).rounds
    assert summary.contributors == 3
    assert (summary.phase, summary.gate, summary.evaluated) == (RoundPhase.REJECTED, "failed", 0)
    assert "not finite on dev-4" in (summary.reason or "")

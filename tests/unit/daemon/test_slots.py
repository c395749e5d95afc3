"""Slots on disk: which one is replaced, what a crash leaves, what an unreadable one is worth."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fedctl_agent.daemon.blobs import Blobs
from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.daemon.slots import Slots, link_bundle
from fedctl_wire.messages import ModelInstalled
from tests.fakes.daemon_bed import Bed


class Shelf:
    def __init__(self, path: Path) -> None:
        self.bed = Bed(path)
        self.blobs = Blobs(self.bed.state.blobs)
        self.slots = self.reopened()

    def reopened(self) -> Slots:
        return Slots(self.bed.state.models, self.blobs)

    def install(self, version: int, *, filling: int | None = None, activate: bool = False) -> ModelInstalled:
        envelope, contents = self.bed.bundle(version, filling=version if filling is None else filling)
        for missing in self.slots.install(envelope, activate=activate).missing:
            data = contents[missing.sha256]
            self.blobs.append(missing.sha256, offset=0, total=len(data), blocks=[data])
        return self.slots.install(envelope, activate=activate)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "state")


def held(slots: Slots) -> dict[str, int]:
    return {entry["slot"]: entry["version"] for entry in slots.listing()}


def test_the_active_slot_is_never_replaced(shelf: Shelf) -> None:
    shelf.install(1, activate=True)
    for version in (2, 3, 4):
        assert shelf.install(version).slot == "B"
    assert held(shelf.slots) == {"A": 1, "B": 4}
    assert shelf.slots.activate("har", 4).active
    assert shelf.install(5).slot == "A"


def test_without_an_active_slot_the_older_version_goes(shelf: Shelf) -> None:
    for version in (1, 2, 3):
        shelf.install(version)
    assert held(shelf.slots) == {"A": 3, "B": 2}


def test_slots_are_found_again_after_a_restart(shelf: Shelf) -> None:
    shelf.install(1, activate=True)
    shelf.install(2)
    assert shelf.reopened().listing() == shelf.slots.listing()


def test_what_a_crash_left_is_no_slot_and_is_removed(shelf: Shelf) -> None:
    shelf.install(1)
    home = shelf.bed.state.models / "har"
    shutil.copytree(home / "A", home / "B.part")
    (home / ".active.1-2.part").write_text("B")
    assert held(shelf.reopened()) == {"A": 1}
    assert sorted(p.name for p in home.iterdir()) == ["A"]


def test_a_slot_whose_manifest_is_damaged_is_empty(shelf: Shelf) -> None:
    shelf.install(1)
    (shelf.bed.state.models / "har" / "A" / "manifest.dsse").write_text("{}")
    shelf.slots = shelf.reopened()
    assert held(shelf.slots) == {}
    assert shelf.install(1).slot == "A"


def test_the_version_installed_last_is_the_one_activated(shelf: Shelf) -> None:
    shelf.install(1, filling=1, activate=True)
    again = shelf.install(1, filling=2)
    assert shelf.slots.activate("har", 1).bundle == again.bundle


def test_a_task_keeps_its_files_when_the_slot_is_replaced(shelf: Shelf, tmp_path: Path) -> None:
    bundle = shelf.install(1).bundle
    with shelf.slots.holding("har", bundle) as slot:
        link_bundle(slot, str(tmp_path))
    weights = (tmp_path / "weights.safetensors").read_bytes()
    shelf.install(2)
    shelf.install(3)
    with pytest.raises(ApiError), shelf.slots.holding("har", bundle):
        pass
    assert (tmp_path / "weights.safetensors").read_bytes() == weights


def damage(path: Path) -> None:
    """Change one byte in place, as a failing disk does: every link to the file shows it."""
    stamp = path.stat()
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def missing(shelf: Shelf, version: int) -> set[int]:
    """Bytes of each blob that a push of this version would have to send."""
    envelope, _ = shelf.bed.bundle(version, filling=version)
    return {blob.bytes for blob in shelf.slots.install(envelope, activate=False).missing}


@pytest.mark.parametrize("name", ["train.json", "weights.safetensors", "golden.safetensors", "manifest.dsse"])
def test_healing_empties_damaged_slots_and_a_push_fills_them(shelf: Shelf, name: str) -> None:
    shelf.install(1, activate=True)
    shelf.install(2)
    home = shelf.bed.state.models / "har"
    damage(home / "A" / name)  # train.json and the golden batch are the same files in both slots
    shared = name in {"train.json", "golden.safetensors"}
    assert {slot.version for slot in shelf.slots.heal("har")} == ({1, 2} if shared else {1})
    assert held(shelf.slots) == ({} if shared else {"B": 2})
    installed = shelf.install(1, activate=True)
    assert installed.active
    assert shelf.slots.heal("har") == []


def test_a_healthy_slot_is_left_alone(shelf: Shelf) -> None:
    shelf.install(1, activate=True)
    assert shelf.slots.heal("har") == []
    assert held(shelf.slots) == {"A": 1}
    assert shelf.reopened().heal("har") == []


@pytest.mark.parametrize("reopen", [False, True])
def test_damage_does_not_spread_to_the_next_version(shelf: Shelf, *, reopen: bool) -> None:
    shelf.install(1, activate=True)
    path = shelf.bed.state.models / "har" / "A" / "train.json"
    damage(path)
    os.utime(path)
    if reopen:
        shelf.slots = shelf.reopened()
    slot = shelf.install(2).slot
    assert (shelf.bed.state.models / "har" / str(slot) / "train.json").read_bytes() == b'{"version":1}'
    assert shelf.slots.heal("har") == []


@pytest.mark.parametrize("name", ["train.json", "weights.safetensors"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_slot_without_all_its_files_is_reported_as_missing(shelf: Shelf, name: str, *, cut: bool) -> None:
    shelf.install(1, activate=True)
    path = shelf.bed.state.models / "har" / "A" / name
    path.write_bytes(b"") if cut else path.unlink()
    assert len(missing(shelf, 1)) == 3
    assert shelf.install(1, activate=True).active
    with pytest.raises(ApiError, match="no slot holds"):
        shelf.slots.activate("har", 2)


def test_a_version_that_lost_a_file_cannot_be_activated(shelf: Shelf) -> None:
    shelf.install(1)
    (shelf.bed.state.models / "har" / "A" / "train.json").unlink()
    with pytest.raises(ApiError, match="no slot holds"):
        shelf.slots.activate("har", 1)


def test_models_that_somebody_removed_are_installed_anew(shelf: Shelf) -> None:
    shelf.install(1, activate=True)
    shelf.install(2)
    shutil.rmtree(shelf.bed.state.models)
    assert shelf.install(2, activate=True).active
    assert held(shelf.slots) == held(shelf.reopened()) == {"A": 2}

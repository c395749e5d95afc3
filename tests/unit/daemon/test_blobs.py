"""Uploads: resumed, superseded, too long, and what a failing disk leaves."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedctl_agent.daemon import blobs as daemon_blobs
from fedctl_agent.daemon.blobs import Blobs
from fedctl_agent.daemon.errors import ApiError
from fedctl_wire.limits import LIMITS

DATA = bytes(range(256)) * 8
NAME = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path)


def cut_after(*blocks: bytes) -> Iterator[bytes]:
    yield from blocks
    raise ConnectionAbortedError


def test_a_blob_appears_when_all_its_bytes_are_here(blobs: Blobs, tmp_path: Path) -> None:
    with pytest.raises(ConnectionAbortedError):
        blobs.append(NAME, offset=0, total=len(DATA), blocks=cut_after(DATA[:700], DATA[700:900]))
    assert blobs.offset(NAME) == (900, False)
    assert blobs.append(NAME, offset=900, total=len(DATA), blocks=[DATA[900:]]) == len(DATA)
    assert blobs.offset(NAME) == (len(DATA), True)
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
    assert blobs.append(NAME, offset=len(DATA), total=len(DATA), blocks=[]) == len(DATA)


def test_what_an_earlier_daemon_received_is_hashed_once_more(tmp_path: Path) -> None:
    Blobs(tmp_path).append(NAME, offset=0, total=len(DATA), blocks=[DATA[:10]])
    after_restart = Blobs(tmp_path)
    assert after_restart.append(NAME, offset=10, total=len(DATA), blocks=[DATA[10:]]) == len(DATA)
    assert after_restart.path(NAME).read_bytes() == DATA


def test_what_the_power_cut_damaged_is_noticed_and_deleted(tmp_path: Path) -> None:
    Blobs(tmp_path).append(NAME, offset=0, total=len(DATA), blocks=[DATA[:10]])
    (tmp_path / f"{NAME}.part").write_bytes(bytes(10))
    blobs = Blobs(tmp_path)
    with pytest.raises(ApiError) as caught:
        blobs.append(NAME, offset=10, total=len(DATA), blocks=[DATA[10:]])
    assert caught.value.code == "hash"
    assert blobs.offset(NAME) == (0, False)
    assert blobs.append(NAME, offset=0, total=len(DATA), blocks=[DATA]) == len(DATA)


def test_whoever_goes_on_waits_for_what_had_arrived_before_the_cut(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_blobs, "_SETTLE_S", 20.0)
    told: list[tuple[int, bool]] = []
    asker = threading.Thread(target=lambda: told.append(blobs.offset(NAME)))

    def cut() -> Iterator[bytes]:
        yield DATA[:700]
        asker.start()
        asker.join(0.2)  # it is waiting
        yield DATA[700:900]  # was in the kernel already
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        blobs.append(NAME, offset=0, total=len(DATA), blocks=cut())
    asker.join()
    assert told == [(900, False)]


def test_an_upload_that_somebody_else_is_sending_keeps_nobody_waiting_for_its_end(blobs: Blobs) -> None:
    def busy() -> Iterator[bytes]:
        yield DATA[:700]
        assert blobs.offset(NAME) == (700, False)
        yield DATA[700:]

    assert blobs.append(NAME, offset=0, total=len(DATA), blocks=busy()) == len(DATA)


def test_the_newer_of_two_uploads_wins(blobs: Blobs) -> None:
    def hijacked() -> Iterator[bytes]:
        yield DATA[:100]
        assert blobs.append(NAME, offset=100, total=len(DATA), blocks=[DATA[100:200]]) == 200
        yield DATA[100:]

    with pytest.raises(ApiError) as caught:
        blobs.append(NAME, offset=0, total=len(DATA), blocks=hijacked())
    assert caught.value.code == "superseded"
    assert blobs.append(NAME, offset=200, total=len(DATA), blocks=[DATA[200:]]) == len(DATA)


@pytest.mark.parametrize(("offset", "total"), [(5, len(DATA)), (0, LIMITS.blob_bytes + 1)])
def test_wrong_offsets_and_sizes_are_refused(blobs: Blobs, offset: int, total: int) -> None:
    with pytest.raises(ApiError):
        blobs.append(NAME, offset=offset, total=total, blocks=[])


def test_more_bytes_than_announced_are_refused(blobs: Blobs) -> None:
    with pytest.raises(ApiError) as caught:
        blobs.append(NAME, offset=0, total=10, blocks=[DATA])
    assert caught.value.status == 413
    assert blobs.offset(NAME) == (0, False)


def test_a_disk_that_fails_in_mid_upload_leaves_nothing(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_descriptor: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    def blocks() -> Iterator[bytes]:
        yield DATA[:10]
        monkeypatch.setattr(os, "write", no_room)
        yield DATA[10:]

    with pytest.raises(OSError, match="no space"):
        blobs.append(NAME, offset=0, total=len(DATA), blocks=blocks())
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_cannot_fit_is_refused_before_its_first_byte(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    full = os.statvfs_result([*real[:4], 0, *real[5:]])
    monkeypatch.setattr(os, "fstatvfs", lambda _descriptor: full)
    with pytest.raises(OSError) as caught:
        blobs.append(NAME, offset=0, total=len(DATA), blocks=[DATA])
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_uploads_that_nobody_came_back_for_make_room(blobs: Blobs, tmp_path: Path) -> None:
    names = [hashlib.sha256(bytes([n])).hexdigest() for n in range(40)]
    for age, name in enumerate(names):
        blobs.append(name, offset=0, total=9, blocks=[b"x"])
        os.utime(tmp_path / f"{name}.part", (age, age))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{n}.part" for n in names[-32:])


def test_an_empty_blob_is_one(blobs: Blobs) -> None:
    name = hashlib.sha256(b"").hexdigest()
    assert blobs.append(name, offset=0, total=0, blocks=[]) == 0
    assert blobs.offset(name) == (0, True)

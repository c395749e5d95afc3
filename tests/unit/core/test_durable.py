"""Durable files: whole or absent, and a full or read-only disk is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedctl.core import durable
from fedctl.core.errors import ConfigError


def test_a_file_gets_its_mode_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    durable.write_file(path, b"old", mode=0o600)
    durable.write_file(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_refuses_is_named_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    durable.write_file(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="no space left on device") as error:
        durable.write_file(path, b"new")
    assert str(path) in error.value.message
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_staged_directory_appears_at_once_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"

    def interrupted() -> None:
        with durable.staged_directory(target) as staging:
            (staging / "half").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(target.parent.iterdir()) == []
    with durable.staged_directory(target) as staging:
        (staging / "whole").write_text("x")
        assert not target.exists()
    assert (target / "whole").read_text() == "x"


def test_a_parent_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        durable.make_directory(tmp_path / "file" / "below")

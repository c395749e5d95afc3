"""The steps that run on a device, run here in a home directory of their own."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedctl.ops.enrolment.ondevice import files as device_files

LINE = 'restrict,command="/p/bin/fedctl-agent dial-stdio --socket /s" ssh-ed25519 AAAAOURS fedctl'
OTHERS = b'# mine\nssh-ed25519 AAAAOTHER me@desk\r\nfrom="10.0.0.1" ssh-rsa AAAARSA x'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def keys(home: Path) -> Path:
    path = home / ".ssh" / "authorized_keys"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(OTHERS)
    path.chmod(0o640)
    return path


def feed(monkeypatch: pytest.MonkeyPatch, *archives: dict[str, str]) -> list[int]:
    data = []
    for files in archives:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        data.append(buffer.getvalue())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"".join(data))))
    return [len(part) for part in data]


# ------------------------------------------------------------------ authorized_keys


def test_the_key_line_is_appended_once_and_the_rest_is_untouched(keys: Path) -> None:
    assert device_files.add_key(LINE)
    assert not device_files.add_key(LINE)
    assert keys.read_bytes() == OTHERS + b"\n" + LINE.encode() + b"\n"
    assert keys.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in keys.parent.iterdir()] == ["authorized_keys"]


def found_keys(home: Path) -> str | None:
    before: str | None = device_files.inspect_key(LINE)["authorized_keys"]
    return before


def test_undoing_gives_back_the_very_bytes(keys: Path, home: Path) -> None:
    before = found_keys(home)
    device_files.add_key(LINE)
    for _ in range(2):
        device_files.undo_key(LINE, before)
        assert keys.read_bytes() == OTHERS


def test_undoing_keeps_what_somebody_else_added_meanwhile(keys: Path, home: Path) -> None:
    before = found_keys(home)
    device_files.add_key(LINE)
    with keys.open("ab") as lines:
        lines.write(b"ssh-ed25519 AAAATHIRD new\n")
    device_files.undo_key(LINE, before)
    assert keys.read_bytes() == OTHERS + b"\nssh-ed25519 AAAATHIRD new\n"


def test_without_ssh_directory_one_is_made_and_undone(home: Path) -> None:
    before = found_keys(home)
    device_files.add_key(LINE)
    path = home / ".ssh" / "authorized_keys"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    device_files.undo_key(LINE, before)
    assert not path.parent.exists()


def test_an_outdated_line_of_the_same_key_is_replaced(keys: Path) -> None:
    keys.write_bytes(b"ssh-ed25519 AAAAOURS fedctl\n" + OTHERS)  # unrestricted, and sshd takes the first
    device_files.add_key(LINE)
    assert keys.read_bytes() == OTHERS + b"\n" + LINE.encode() + b"\n"


def test_removing_takes_only_our_key(keys: Path) -> None:
    device_files.add_key(LINE)
    assert device_files.remove_key(LINE)
    assert not device_files.remove_key(LINE)
    assert keys.read_bytes() == OTHERS + b"\n"


def test_a_symbolic_link_stays_one(keys: Path, home: Path) -> None:
    real = home / "real_keys"
    keys.rename(real)
    keys.symlink_to(real)
    device_files.add_key(LINE)
    assert keys.is_symlink()
    assert LINE.encode() in real.read_bytes()


def test_bytes_that_are_no_utf8_survive(keys: Path) -> None:
    keys.write_bytes(b"ssh-rsa AAAA caf\xe9\n")
    device_files.add_key(LINE)
    assert keys.read_bytes().startswith(b"ssh-rsa AAAA caf\xe9\n")


# ------------------------------------------------------------------ the agent's files


def test_unpacking_points_the_launcher_at_a_complete_tree(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = home / "a" / "agent"
    sizes = feed(monkeypatch, {"one/x.py": "X = 1\n"}, {"one/__pycache__/x.pyc": "c"})
    device_files.unpack(str(prefix), "1-a", "#!/bin/sh\n# versions/1-a\n", sizes, byte_compile=False)
    tree = prefix / "versions" / "1-a"
    assert sorted(p.name for p in tree.rglob("*") if p.is_file()) == ["x.py", "x.pyc"]
    assert os.access(prefix / "bin" / "fedctl-agent", os.X_OK)
    device_files.undo_unpack(str(prefix), "1-a", None)
    assert list(home.iterdir()) == []


def test_a_device_with_another_python_compiles_for_itself(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = feed(monkeypatch, {"one/x.py": "X = 1\n"})
    device_files.unpack(str(home / "agent"), "1-a", "", sizes, byte_compile=True)
    (compiled,) = (home / "agent").rglob("*.pyc")
    assert int.from_bytes(compiled.read_bytes()[4:8], "little") == 1  # hash-based, unchecked


def test_an_upload_that_ends_early_leaves_the_old_version(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = str(home / "agent")
    device_files.unpack(
        prefix, "1-a", "old versions/1-a", feed(monkeypatch, {"a.py": ""}), byte_compile=False
    )
    sizes = feed(monkeypatch, {"a.py": ""})
    with pytest.raises(OSError, match="ended early"):
        device_files.unpack(prefix, "2-b", "new", [*sizes, 10], byte_compile=False)
    assert (home / "agent/bin/fedctl-agent").read_text() == "old versions/1-a"
    assert [path.name for path in (home / "agent/versions").iterdir()] == ["1-a"]


def test_undoing_an_upgrade_returns_to_the_version_before(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, old = str(home / "agent"), "exec versions/1-a"
    for version, launcher in (("1-a", old), ("2-b", "exec versions/2-b")):
        device_files.unpack(prefix, version, launcher, feed(monkeypatch, {"a.py": ""}), byte_compile=False)
    device_files.undo_unpack(prefix, "2-b", old)
    assert (home / "agent/bin/fedctl-agent").read_text() == old
    assert [path.name for path in (home / "agent/versions").iterdir()] == ["1-a"]


# ------------------------------------------------------------------ state and sources


def test_a_source_is_written_only_where_there_is_none(home: Path) -> None:
    state = home / "state"
    assert device_files.add_source(str(state), "recorder.toml", "kind = 'npz'\n")
    assert not device_files.add_source(str(state), "other.toml", "")
    assert [path.name for path in (state / "sources").iterdir()] == ["recorder.toml"]


def test_undoing_the_state_removes_only_what_this_run_added(home: Path) -> None:
    state = home / "state"
    for name in ("identity/key.pem", "identity/root.json", "sources/mine.toml", "sources/new.toml"):
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_text("")
    device_files.undo_state(str(state), ["identity/key.pem"], existed=True, source="new.toml")
    left = sorted(str(path.relative_to(state)) for path in state.rglob("*") if path.is_file())
    assert left == ["identity/key.pem", "sources/mine.toml"]
    device_files.undo_state(str(state), [], existed=False, source=None)
    assert not state.exists()


def test_purging_never_touches_the_data_that_sources_name(home: Path) -> None:
    state, prefix = home / "fedctl" / "state", home / "fedctl" / "agent"
    inside, beside, outside = state / "recordings/deep", state / "sources/data", home / "elsewhere"
    for directory in (inside, beside, outside, state / "spool/x", prefix):
        directory.mkdir(parents=True)
        (directory / "day.npz").write_text("data")
    (state / "sources/a.toml").write_text(f'path = "{inside}"\n')
    (state / "sources/b.toml").write_text('path = "data"\n')
    (state / "sources/c.toml").write_text("not = toml = at all")
    (state / "link").symlink_to(outside)
    kept = device_files.delete(str(prefix), str(state), purge=True)["kept"]
    assert sorted(kept) == [str(state / "recordings"), str(state / "sources")]
    files = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    assert files == [
        "elsewhere/day.npz",
        "fedctl/state/recordings/deep/day.npz",
        "fedctl/state/sources/data/day.npz",
    ]


def test_without_purge_the_state_stays_and_with_it_nothing_stays(home: Path) -> None:
    state, prefix = home / "fedctl" / "state", home / "fedctl" / "agent"
    for directory in (state / "identity", prefix / "bin"):
        directory.mkdir(parents=True)
    assert device_files.delete(str(prefix), str(state), purge=False)["kept"] == []
    assert (state / "identity").exists()
    assert not prefix.exists()
    device_files.delete(str(prefix), str(state), purge=True)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("text", ['kind = "npz"\n', "path = 3\n", "no TOML", 'path = "/proc/self/\\u0000"\n'])
def test_a_source_that_names_no_data_does_not_stop_a_purge(home: Path, text: str) -> None:
    state = home / "fedctl" / "state"
    (state / "sources").mkdir(parents=True)
    (state / "sources" / "bad.toml").write_text(text)
    assert device_files.delete(str(home / "fedctl" / "agent"), str(state), purge=True)["kept"] == []
    assert list(home.iterdir()) == []

"""Which wheels a device needs, and where they come from; pip itself runs, without the internet."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError
from fedctl.release import wheels
from fedctl.release.wheels import Platform

PI = Platform((3, 11), "aarch64", (2, 36))


def make_wheel(directory: Path, name: str, version: str, tag: str = "py3-none-any") -> Path:
    path = directory / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "")
        metadata = f"{name}-{version}.dist-info"
        archive.writestr(f"{metadata}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{metadata}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{metadata}/RECORD", "")
    return path


def test_tags_reach_from_the_devices_glibc_down_to_the_oldest_manylinux() -> None:
    tags = PI.tags
    assert tags[0] == "manylinux_2_36_aarch64"
    assert {"manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"} < set(tags)
    assert "manylinux_2_16_aarch64" not in tags
    assert {"manylinux2010_x86_64", "manylinux1_x86_64"} < set(Platform((3, 12), "x86_64", (2, 31)).tags)


def test_what_the_device_can_import_new_enough_is_not_sent() -> None:
    everything = {"psutil": "5.9.4", "numpy": "1.24.2", "cryptography": "43.0.0", "h11": "0.14.0"}
    assert wheels.missing(everything) == ()
    assert wheels.missing({**everything, "numpy": "1.23.5"}) == ("numpy",)
    assert wheels.missing({**everything, "numpy": "2.0.0rc1"}) == ()
    bookworm = {"psutil": "5.9.4", "numpy": "1.24.2", "cryptography": "38.0.4", "h11": "0.14.0"}
    assert wheels.missing(bookworm) == ()


def test_an_old_cryptography_travels_with_its_own_cffi() -> None:
    found = wheels.missing(
        {"psutil": "6", "numpy": "2", "h11": "0.16", "cryptography": "3.4.8", "cffi": "1.15"}
    )
    assert found == ("cryptography", "cffi", "pycparser")


def test_a_directory_of_wheels_replaces_the_internet(tmp_path: Path) -> None:
    wanted = make_wheel(tmp_path, "h11", "0.14.0")
    make_wheel(tmp_path, "h11", "0.13.0")
    numpy = make_wheel(tmp_path, "numpy", "2.1.0", "cp311-cp311-manylinux_2_17_aarch64")
    make_wheel(tmp_path, "numpy", "2.2.0", "cp311-cp311-manylinux_2_39_aarch64")  # too new a glibc
    found = wheels.fetch(["numpy", "h11"], PI, tmp_path / "cache", offline=tmp_path)
    assert found == (numpy, wanted)
    assert not (tmp_path / "cache").exists()


def test_a_directory_without_a_fitting_wheel_says_what_and_for_whom(tmp_path: Path) -> None:
    make_wheel(tmp_path, "numpy", "2.1.0", "cp311-cp311-manylinux_2_17_x86_64")
    with pytest.raises(ConfigError, match=r"numpy for cp311-aarch64-glibc2\.36") as error:
        wheels.fetch(["numpy"], PI, tmp_path / "cache", offline=tmp_path)
    assert "--wheels DIR" in error.value.hint
    with pytest.raises(ConfigError, match="nowhere"):
        wheels.fetch(["numpy"], PI, tmp_path / "cache", offline=tmp_path / "nowhere")


def test_cached_wheels_need_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent")
    directory = tmp_path / PI.label
    directory.mkdir()
    make_wheel(directory, "h11", "0.9.0")  # older than needed: not taken
    old, new = (make_wheel(directory, "h11", v) for v in ("0.14.0", "0.16.0"))
    assert wheels.fetch(["h11"], PI, tmp_path) == (new,)
    assert old != new


def test_a_download_fills_the_cache_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    make_wheel(index, "h11", "0.16.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    (found,) = wheels.fetch(["h11"], PI, tmp_path / "cache")
    assert found == tmp_path / "cache" / PI.label / "h11-0.16.0-py3-none-any.whl"
    assert list(found.parent.iterdir()) == [found]
    with pytest.raises(ConfigError, match="psutil"):
        wheels.fetch(["h11", "psutil"], PI, tmp_path / "cache")
    assert list(found.parent.iterdir()) == [found]

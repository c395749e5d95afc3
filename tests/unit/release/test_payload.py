"""The agent's payload: complete, deterministic, importable on a device without this installation."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError
from fedctl.release import payload

TAG = sys.implementation.cache_tag


def make_wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_the_payload_is_the_same_every_time_and_holds_no_byte_code_unless_asked() -> None:
    plain = payload.build_payload()
    assert plain == payload.build_payload()
    names = zipfile.ZipFile(io.BytesIO(plain.archive)).namelist()
    assert {name.split("/")[0] for name in names} == set(payload.PACKAGES)
    assert not [name for name in names if name.endswith(".pyc")]
    assert payload.build_payload(TAG).digest == plain.digest


def test_another_process_makes_the_same_bytes() -> None:
    program = (
        "import hashlib, json, sys; from fedctl.release.payload import build_payload; "
        "print(hashlib.sha256(build_payload(sys.implementation.cache_tag).archive).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ours = hashlib.sha256(payload.build_payload(TAG).archive).hexdigest()
    assert done.stdout.strip() == ours


def test_the_unpacked_agent_runs_from_its_byte_code_alone(tmp_path: Path) -> None:
    zipfile.ZipFile(io.BytesIO(payload.build_payload(TAG).archive)).extractall(tmp_path)
    program = "import sys; sys.path.insert(0, sys.argv[1]); import fedctl_agent as a; print(a.__cached__)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-v", "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    cached = tmp_path / "fedctl_agent" / "__pycache__" / f"__init__.{TAG}.pyc"
    assert done.stdout.strip() == str(cached)
    assert f"matches {tmp_path}/fedctl_agent/__init__.py" in done.stderr
    assert int.from_bytes(cached.read_bytes()[4:8], "little") == 1  # hash-based, unchecked


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    payload.build_payload.cache_clear()
    monkeypatch.setattr(payload, "PACKAGES", ("fedctl_nowhere",))
    with pytest.raises(ConfigError, match="fedctl_nowhere"):
        payload.build_payload()


def test_collecting_the_agent_does_not_import_it() -> None:
    program = (
        "import sys; from fedctl.release.payload import build_payload; build_payload(); "
        "sys.exit('fedctl_agent' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_wheels_byte_code_leaves_out_tests_and_what_does_not_compile(tmp_path: Path) -> None:
    files = {
        "p/__init__.py": "A = 1\n",
        "p/tests/test_a.py": "B = 1\n",
        "p/template.py": "{{ no }}:\n",
        "p/d.txt": "",
    }
    wheel = make_wheel(tmp_path / "p-1-py3-none-any.whl", files)
    data = payload.wheel_bytecode(wheel, "cpython-311", tmp_path / "cache")
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.namelist() == ["p/__pycache__/__init__.cpython-311.pyc"]
    assert archive.read(archive.namelist()[0])[:4] == importlib.util.MAGIC_NUMBER
    wheel.unlink()
    assert payload.wheel_bytecode(wheel, "cpython-311", tmp_path / "cache") == data


def test_a_damaged_wheel_is_named(tmp_path: Path) -> None:
    wheel = tmp_path / "p-1-py3-none-any.whl"
    wheel.write_bytes(b"no zip")
    with pytest.raises(ConfigError, match="p-1-py3"):
        payload.wheel_bytecode(wheel, "cpython-311", tmp_path)

"""The units of agent/packaging: systemd accepts them, a wheel has them, their paths are the installer's."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError
from fedctl.ops.enrolment.survey import ACCOUNT, Places
from fedctl.release.payload import unit_text

ROOT = Path(__file__).parents[3]
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze, which comes with systemd"
)


@needs_systemd
@pytest.mark.parametrize(("placement", "mode"), [("system", "--system"), ("user", "--user")])
def test_systemd_accepts_the_unit(tmp_path: Path, placement: str, mode: str) -> None:
    lines = unit_text(placement).splitlines()
    # The program is not installed here, and that is the one thing about which it may complain.
    command = [
        f"ExecStart={shutil.which('true')}" if line.startswith("ExecStart=") else line for line in lines
    ]
    path = tmp_path / "fedctl-agent.service"
    path.write_text("\n".join(command))
    words = ["systemd-analyze", mode, "verify", str(path)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    complaints = [line for line in done.stderr.splitlines() if path.name in line]
    assert (done.returncode, complaints) == (0, []), done.stderr


@needs_systemd
def test_the_systems_unit_is_well_confined() -> None:
    path = ROOT / "agent/packaging/system/fedctl-agent.service"
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "offline" in done.stderr:
        pytest.skip(f"this systemd cannot rate a file: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_the_units_say_where_the_installer_puts_things() -> None:
    system, user = Places("%h", system=True), Places("%h")
    command = f"{system.launcher} serve --state-dir {system.state} --socket {system.socket} --group"
    assert f"ExecStart={command}\n" in unit_text("system")
    assert f"User={ACCOUNT}\n" in unit_text("system")
    assert f"ExecStart={user.launcher} serve --state-dir {user.state}\n" in unit_text("user")


def test_a_wheel_carries_the_units() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for placement in ("system", "user"):
        name = f"{placement}/fedctl-agent.service"
        assert included[f"agent/packaging/{name}"] == f"fedctl/release/units/{name}"
        assert (ROOT / "agent/packaging" / name).read_text() == unit_text(placement)


def test_an_installation_without_the_units_says_so() -> None:
    with pytest.raises(ConfigError, match="lacks the unit other/fedctl-agent"):
        unit_text("other")

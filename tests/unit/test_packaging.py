"""The two wheels own the same files and versions; the README's tables say what the code says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import fedctl
import fedctl_agent
from fedctl.cli.app import NOUNS
from fedctl.core.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]


def project(path: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / path / "pyproject.toml").read_text())


def test_both_wheels_have_the_version_of_the_code() -> None:
    versions = {project(".")["project"]["version"], project("agent")["project"]["version"]}
    assert versions == {fedctl.__version__} == {fedctl_agent.__version__}


def test_the_superset_wheel_holds_what_the_slim_one_does() -> None:
    superset, slim = project("."), project("agent")
    packages = superset["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    agents = slim["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {Path(name).name for name in packages} == {"fedctl", *agents}
    assert set(slim["project"]["dependencies"]) <= set(superset["project"]["dependencies"])


def test_the_slim_wheel_needs_nothing_of_the_workstations() -> None:
    needed = " ".join(project("agent")["project"]["dependencies"])
    for package in ("typer", "rich", "paramiko", "httpx", "sqlite-utils"):
        assert package not in needed


def test_the_readme_lists_every_exit_code() -> None:
    listed = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert [int(code) for code in listed] == [int(code) for code in ExitCode]


def test_the_readme_names_every_noun() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [noun for noun in NOUNS if f"`fedctl {noun}" not in readme] == []

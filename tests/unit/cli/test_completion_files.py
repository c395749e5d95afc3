"""The completion files are what `completions/generate.py` would write; a TAB is answered without Typer."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fedctl.core.home import Home
from fedctl.ops.fleet import init
from fedctl.ops.models import create
from fedctl.store.names import KINDS, names
from tests.fleet import new_model

COMPLETIONS = Path(__file__).resolve().parents[3] / "completions"
PROGRAM = [sys.executable, "-X", "importtime", "-c", "from fedctl.cli.main import main; main()"]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", COMPLETIONS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its data classes look for their module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def home(tmp_path: Path) -> Home:
    from fedctl.store import Store

    home = Home(tmp_path / "home")
    init(home)
    with Store.open(home) as store:
        create(store, home, new_model())
    connection = sqlite3.connect(home.database)
    with connection:
        for name, state in {"a": "enrolled", "b": "enrolled", "gone": "removed"}.items():
            connection.execute(
                "INSERT INTO device (name, url, identity_key, serial, state, enrolled_at, facts, notes) "
                "VALUES (?, 'ssh://' || ?, 'k', 1, ?, 't', '{}', '')",
                [name, name, state],
            )
        for device, key, value in (("a", "ward", "3"), ("b", "ward", "4"), ("gone", "ward", "9")):
            connection.execute("INSERT INTO device_label VALUES (?, ?, ?)", [device, key, value])
        connection.execute("INSERT INTO plan VALUES ('p', x'', NULL)")
        for number in (1, 2):
            connection.execute(
                "INSERT INTO round (uuid, model, base_version, plan, phase, attempt, started_at, deadline_at,"
                " metrics) VALUES (?, 'pulse', 1, 'p', 'published', 1, 't', 't', '{}')",
                [f"u{number}"],
            )
        connection.execute("UPDATE model SET published_version = 1")
    connection.close()
    return home


@pytest.mark.parametrize(
    ("shell", "name"), {"bash": "fedctl.bash", "zsh": "_fedctl", "fish": "fedctl.fish"}.items()
)
def test_the_files_are_not_stale(generate: ModuleType, shell: str, name: str) -> None:
    found = list(generate.levels(generate.root()))
    stale = generate.render(shell, found) != (COMPLETIONS / name).read_text()
    assert not stale, "run: python completions/generate.py"


def test_every_kind_that_a_file_asks_for_has_an_answer(generate: ModuleType) -> None:
    found = list(generate.levels(generate.root()))
    kinds = {o.kind for level in found for o in level.options if o.kind}
    kinds |= {part for level in found for place in level.places for part in place.kind.split("+")}
    asked = {kind for kind in kinds if not kind.startswith("words:")} - {"none", "files", "directories"}
    assert asked <= KINDS


def test_bash_says_nothing_against_its_file() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        ["shellcheck", COMPLETIONS / "fedctl.bash"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("kind", "prefix", "expected"),
    [
        ("devices", "", ["a", "b"]),
        ("devices", "b", ["b"]),
        ("models", "", ["pulse"]),
        ("models", "pulse@", ["pulse@published", "pulse@1"]),
        ("model-names", "pulse@", []),
        ("rounds", "", ["2", "1"]),
        ("labels", "", ["ward=3", "ward=4"]),
        ("labels", "ward!", ["ward!=3", "ward!=4"]),
        ("labels", "role=train,ward=4", ["role=train,ward=4"]),
        ("nonsense", "", []),
    ],
)
def test_names_come_from_the_database(home: Home, kind: str, prefix: str, expected: list[str]) -> None:
    assert [name for name, _ in names(home.database, kind, prefix)] == expected


def test_without_a_fleet_or_with_a_damaged_one_there_are_no_names(tmp_path: Path) -> None:
    assert names(tmp_path / "fedctl.db", "devices") == []
    (tmp_path / "fedctl.db").write_bytes(b"not a database" * 100)
    assert names(tmp_path / "fedctl.db", "devices") == []


def test_a_tab_imports_no_typer_and_waits_for_no_writer(home: Home) -> None:
    writer = sqlite3.connect(home.database, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE device SET url = 'x' WHERE name = 'a'")
    done = subprocess.run(
        [*PROGRAM, "__complete", "devices", ""],
        env={**os.environ, "FEDCTL_HOME": str(home.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    writer.close()
    assert (done.returncode, done.stdout) == (0, "a\tssh://a\nb\tssh://b\n")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sqlite3" in loaded
    assert not loaded & {"typer", "click", "rich", "sqlite_utils", "numpy", "httpx", "paramiko"}


@pytest.mark.parametrize("words", [[], ["devices"], ["nonsense", "x"], ["devices", "", "more"]])
def test_a_tab_never_shows_an_error(tmp_path: Path, words: list[str]) -> None:
    done = subprocess.run(
        [*PROGRAM[:1], *PROGRAM[3:], "__complete", *words],
        env={**os.environ, "FEDCTL_HOME": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

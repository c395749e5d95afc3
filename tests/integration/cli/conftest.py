"""The installed `fedctl`, run as a person or a script runs it."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedctl.cli.app import run as run_here

PROGRAM = Path(sys.executable).with_name("fedctl")
PATIENCE_S = 60

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "FEDCTL_HOME": str(home), "LC_ALL": "C.UTF-8"}


@pytest.fixture
def fedctl(environment: dict[str, str]) -> Run:
    """Run `fedctl WORDS...`; keywords are added to the environment."""

    def run(*words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *words],
            env={**environment, **extra},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    return run


@pytest.fixture
def inside(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same within this process, for the many cases that differ only in their words."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_here(words)
        return subprocess.CompletedProcess(["fedctl", *words], code, out.getvalue(), err.getvalue())

    return run

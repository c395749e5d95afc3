"""The run lock: one holder, whoever dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError, ExitCode, LockedError
from fedctl.core.home import Home
from fedctl.store import hold_lock
from fedctl.store.lock import holder

HOLDER = """
import sys, time
from pathlib import Path
from fedctl.core.home import Home
from fedctl.store import hold_lock
with hold_lock(Home(Path(sys.argv[1])), model="har"):
    print("held", flush=True)
    time.sleep(60)
"""


def take_and_release(home: Home, model: str | None = None) -> None:
    with hold_lock(home, model=model):
        pass


def test_a_second_run_is_told_who_holds_the_lock_until_the_holder_dies(tmp_path: Path) -> None:
    home = Home(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=rf"model har is held by pid {run.pid} since 20") as caught:
            take_and_release(home, "har")
        assert caught.value.exit_code is ExitCode.LOCKED
        # `round resume` says it too and has no such flag: the hint names the command that does.
        assert "`fedctl round start --skip-if-running`" in caught.value.hint
        assert holder(home, model="har") == run.pid
        run.kill()
    take_and_release(home, "har")


def test_the_holder_is_known_without_taking_the_lock(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert holder(home, model="har") is None
    with hold_lock(home, model="har"), hold_lock(home, model="other"):
        assert holder(home, model="har") == os.getpid()
    assert holder(home, model="har") is None  # although the file still says who it was


def test_models_and_the_fleet_are_locked_apart(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with (
        hold_lock(home),
        hold_lock(home, model="a"),
        hold_lock(home, model="b"),
        pytest.raises(LockedError, match=f"the fleet is held by pid {os.getpid()}"),
    ):
        take_and_release(home)
    take_and_release(home)


def test_a_holder_that_has_not_said_its_name_yet(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with hold_lock(home):
        (home.locks / "fleet.lock").write_text("")
        with pytest.raises(LockedError, match="another process"), hold_lock(home):
            pass


def test_an_error_inside_releases_the_lock(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(RuntimeError), hold_lock(home):
        raise RuntimeError
    take_and_release(home)


def test_a_home_that_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/locks/fleet\.lock"), hold_lock(Home(tmp_path / "file")):
        pass

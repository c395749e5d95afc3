"""Words and streams that no command expects: an answer that names them, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError, ExitCode, NotFoundError, UsageError
from fedctl.core.home import Home
from fedctl.core.plan import RoundWishes, check_wishes
from fedctl.core.selector import Selector
from fedctl.ops.fleet import init
from fedctl.ops.models import NewModel, create, resolve
from fedctl.ops.rounds import start
from fedctl.store import Store

PROGRAM = [sys.executable, "-c", "from fedctl.cli.main import main; main()"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    init(home)
    return home


def run(home: Home, *words: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirect}', "bash", *PROGRAM, *words],
        env={**os.environ, "FEDCTL_HOME": str(home.path), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("redirect", [">&-", "2>&-", "<&- >&- 2>&-", "| true"])
@pytest.mark.parametrize("words", ["--version", "--help", "devices list", "devices ping", "model list"])
def test_a_closed_stream_ends_no_command(home: Home, words: str, redirect: str) -> None:
    ended = run(home, *words.split(), redirect=redirect)
    said = [line for line in ended.stderr.splitlines() if not line.startswith("no ")]  # nothing is here yet
    assert (ended.returncode, said) == (ExitCode.OK, [])


@pytest.mark.parametrize("words", ["--version", "--help", "devices list -o json"])
def test_a_full_disk_under_the_output_is_said(home: Home, words: str) -> None:
    ended = run(home, *words.split(), redirect=">/dev/full")
    assert ended.returncode == ExitCode.CONFIG
    assert "no space left" in ended.stderr.lower()
    assert "Traceback" not in ended.stderr


def test_characters_that_the_output_cannot_hold_are_replaced(home: Home) -> None:
    ended = run(home, "round", "start", "--help", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (ExitCode.OK, "")


def test_a_word_that_is_no_text_is_named(home: Home) -> None:
    ended = run(home, "devices", "show", os.fsdecode(b"watch-\xff"))
    assert ended.returncode == ExitCode.USAGE
    assert "not text in this locale's encoding" in ended.stderr


@pytest.mark.parametrize(
    "words",
    [
        f"round show {10**30}",
        f"round resume {10**30}",
        f"round list --limit {10**30}",
        "devices ping --timeout nan",
        "devices ping --timeout inf",
        "devices ping --timeout 1e300",
    ],
)
def test_numbers_out_of_all_range_are_usage_errors(home: Home, words: str) -> None:
    ended = run(home, *words.split(), "-o", "json")
    assert ended.returncode == ExitCode.USAGE
    assert json.loads(ended.stderr)["error"]["code"] == "usage"


@pytest.mark.parametrize(
    "wishes",
    [
        RoundWishes(batch_size=10**20),
        RoundWishes(local_epochs=10**20),
        RoundWishes(max_examples=10**20),
        RoundWishes(deadline_s=1e16),
    ],
)
def test_a_wish_that_no_plan_can_hold_is_refused_before_a_round_is_recorded(wishes: RoundWishes) -> None:
    with pytest.raises(UsageError, match="it must be at most"):
        check_wishes(wishes)


def test_a_version_number_of_any_length_is_looked_for(home: Home) -> None:
    with Store.open(home) as store:
        create(store, home, NewModel(name="m", builder="mlp", input_shape=(2,), hidden=(2,), classes=2))
        for number in ("9" * 30, "9" * 5000):
            with pytest.raises(NotFoundError, match="there is no version"):
                resolve(store, f"m@{number}")


def test_an_empty_name_is_not_the_only_model(home: Home) -> None:
    with Store.open(home) as store:
        create(store, home, NewModel(name="m", builder="mlp", input_shape=(2,), hidden=(2,), classes=2))
        with pytest.raises(NotFoundError, match="there is no model ''"):
            start(store, home, "", Selector.parse((), ()))


def test_a_terminated_command_ends_like_an_interrupted_one(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(home.path / "silent.sock"))
        silent.listen()
        command = subprocess.Popen(
            [*PROGRAM, "devices", "add", "watch", f"unix://{home.path / 'silent.sock'}"],
            env={**os.environ, "FEDCTL_HOME": str(home.path)},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with silent.accept()[0]:  # it waits for an answer now
            command.send_signal(signal.SIGTERM)
            _, said = command.communicate(timeout=30)
    assert (command.returncode, said) == (ExitCode.INTERRUPTED, "fedctl: interrupted; what is done is kept\n")


def test_a_home_of_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCTL_HOME", "~no-such-user/fleet")
    with pytest.raises(ConfigError, match="~no-such-user is nobody's home directory"):
        Home.from_environment()

"""TAB in three real shells: words and options from the files, names from the fleet's database."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedctl.core.home import Home
from fedctl.core.records import Device, DeviceState
from fedctl.ops.fleet import init
from fedctl.store import Store
from tests.fleet import new_model
from tests.integration.cli.conftest import PROGRAM
from tests.shells import COMPLETIONS, SHELLS, Terminal, shell_program

TABS = {  # what is typed, and how the line stands after TAB; a space says that the word is complete
    "fedctl dev": "fedctl devices ",
    "fedctl devices pi": "fedctl devices ping ",
    "fedctl devices show wat": "fedctl devices show watch-01 ",
    "fedctl devices ping watch-01 o": "fedctl devices ping watch-01 old-7 ",
    "fedctl devices list -l wa": "fedctl devices list -l ward=3 ",
    "fedctl devices list -l ward=": "fedctl devices list -l ward=3 ",
    "fedctl devices list --label=ward=": "fedctl devices list --label=ward=3 ",
    "fedctl devices list -l ward=3,ro": "fedctl devices list -l ward=3,role=holdout ",
    "fedctl devices list -ql ro": "fedctl devices list -ql role=holdout ",
    "fedctl devices label watch-01 ro": "fedctl devices label watch-01 role=holdout ",
    "fedctl devices show -- w": "fedctl devices show -- watch-01 ",
    "fedctl devices add new ss": "fedctl devices add new ssh://",
    "fedctl devices add new ssh://x --sou": "fedctl devices add new ssh://x --source ",
    "fedctl devices add new ssh://x --source rec": "fedctl devices add new ssh://x --source recorder.toml ",
    "fedctl devices add new ssh://x --source 'rec": (
        "fedctl devices add new ssh://x --source 'recorder.toml' "
    ),
    "fedctl devices add n": "fedctl devices add n",
    "fedctl -q model sh": "fedctl -q model show ",
    "fedctl model show pu": "fedctl model show pulse ",
    "fedctl model show pulse@": "fedctl model show pulse@1 ",
    "fedctl model show pulse -o jsonl -v --he": "fedctl model show pulse -o jsonl -v --help ",
    "fedctl model push pulse@1 wa": "fedctl model push pulse@1 watch-01 ",
    "fedctl round start pulse w": "fedctl round start pulse watch-01 ",
    "fedctl devices maintenance watch-01 of": "fedctl devices maintenance watch-01 off ",
    "fedctl devices rekey watch-01 --via ss": "fedctl devices rekey watch-01 --via ssh://",
    "fedctl data check --model pul": "fedctl data check --model pulse ",
    "fedctl devices list -o ta": "fedctl devices list -o table ",
    "fedctl completion z": "fedctl completion zsh ",
    "fedctl nothing w": "fedctl nothing w",
}


@pytest.fixture(scope="module")
def fleet_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = Home(tmp_path_factory.mktemp("fleet") / "home")
    init(home)
    with Store.open(home) as store:
        with store.transaction():
            for number, (name, label) in enumerate(
                {"watch-01": ("ward", "3"), "old-7": ("role", "holdout")}.items()
            ):
                store.add_device(device(name, number, dict([label])))
        from fedctl.ops.models import create

        create(store, home, new_model())
    return home.path


def device(name: str, serial: int, labels: dict[str, str]) -> Device:
    return Device(
        name=name,
        url=f"unix:///run/{name}.sock",
        host_key=None,
        identity_key=f"{serial:064x}",
        serial=serial + 1,
        arch="aarch64",
        python="3.11.2",
        agent_version="0.1.0",
        state=DeviceState.ENROLLED,
        enrolled_at="2026-03-01T08:00:00.000Z",
        last_seen=None,
        facts={},
        labels=labels,
    )


@pytest.fixture(scope="module", params=SHELLS)
def terminal(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fleet_home: Path
) -> Iterator[Terminal]:
    directory = tmp_path_factory.mktemp(request.param)
    (directory / "recorder.toml").touch()
    with contextlib.closing(Terminal(request.param, directory, PROGRAM, fleet_home)) as opened:
        yield opened


@pytest.mark.parametrize(("typed", "line"), TABS.items(), ids=TABS)
def test_tab_completes(terminal: Terminal, typed: str, line: str) -> None:
    assert terminal.after_tab(typed).replace("--source=", "--source ") == line


@pytest.mark.parametrize("shell", SHELLS)
def test_a_file_can_be_read_by_its_shell(shell: str) -> None:
    names = {"bash": "fedctl.bash", "zsh": "_fedctl", "fish": "fedctl.fish"}
    started = shell_program(shell)
    subprocess.run([started.path, "-n", COMPLETIONS / names[shell]], check=True, env=started.environment)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_prints_the_file(fedctl: object, shell: str) -> None:
    names = {"bash": "fedctl.bash", "zsh": "_fedctl", "fish": "fedctl.fish"}
    done = fedctl("completion", shell)  # type: ignore[operator]
    assert (done.returncode, done.stdout) == (0, (COMPLETIONS / names[shell]).read_text())

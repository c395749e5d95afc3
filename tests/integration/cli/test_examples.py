"""What lies in `examples/` runs as it is written, against real agents."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from fedctl.core.errors import ExitCode
from fedctl.ops.fleet_file import read_fleet_file
from fedctl_wire.sources import SourceSpec, parse_source
from tests.fleet import MODEL, TestAgent, TestFleet, fleet

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
PROGRAM = Path(sys.executable).with_name("fedctl")
DAYS = 120


class Machine:
    """A workstation with `fedctl` and `mail` on its path; what was mailed is kept."""

    def __init__(self, directory: Path, home: Path) -> None:
        self.directory = directory
        self.mailed = directory / "mailed"
        self.home = home
        tools = directory / "bin"
        tools.mkdir(parents=True)
        (tools / "fedctl").symlink_to(PROGRAM)
        mail = tools / "mail"
        mail.write_text(f'#!/bin/sh\n{{ echo "$@"; cat; }} >> {self.mailed}\n')
        mail.chmod(0o755)
        self.environment = {
            "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(directory),
            "FEDCTL_HOME": str(home),
            "LC_ALL": "C.UTF-8",
        }

    def run(self, *words: object, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in words],
            cwd=self.directory,
            env={**self.environment, **extra},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def models(self) -> list[str]:
        return sorted(path.name for path in self.directory.glob("*.safetensors"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[TestFleet]:
    with fleet(tmp_path, train=2, holdout=1) as ready:
        yield ready


def test_a_night_without_trouble_is_silent_and_leaves_a_model(small: TestFleet, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine", small.home.path)
    night = (EXAMPLES / "nightly.sh", MODEL, machine.directory, "--tolerance", "1")
    first = machine.run(*night)
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    with small.store() as store:
        published = store.model(MODEL).published_version
    assert machine.models() == [f"{MODEL}-{published}.safetensors"]
    assert machine.run(*night).returncode == 0
    assert len(machine.models()) == 2
    assert not machine.mailed.exists()


def test_a_night_with_trouble_is_mailed(small: TestFleet, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine", small.home.path)
    for agent in small.agents.values():
        agent.kill()
    words = (EXAMPLES / "nightly.sh", MODEL, machine.directory, "--deadline", "2s")
    done = machine.run(*words, MAIL_TO="admin@example.org")
    assert done.returncode in {ExitCode.UNREACHABLE, ExitCode.NOT_MET}, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    subject, *text = machine.mailed.read_text().splitlines()
    assert subject == f"-s fedctl: the round of {MODEL} failed admin@example.org"
    assert "dev-1" in "\n".join(text)
    assert machine.models() == []


def test_a_night_without_a_mailer_says_it_itself(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine", tmp_path / "home")
    (machine.directory / "bin" / "mail").write_text("#!/bin/sh\nexit 127\n")
    done = machine.run(EXAMPLES / "nightly.sh", MODEL, machine.directory)
    assert done.returncode == ExitCode.CONFIG
    assert "fedctl init" in done.stderr


def test_a_night_wants_to_know_model_and_directory(tmp_path: Path) -> None:
    done = Machine(tmp_path / "machine", tmp_path / "home").run(EXAMPLES / "nightly.sh", MODEL)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage" in done.stderr


def test_the_lines_for_cron_run(small: TestFleet, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine", small.home.path)
    lines = [line for line in (EXAMPLES / "crontab").read_text().splitlines() if line and line[0] != "#"]
    settings = [line for line in lines if re.fullmatch(r"[A-Z_]+=\S+", line)]
    jobs = [line.split(maxsplit=5) for line in lines if line not in settings]
    assert {line.partition("=")[0] for line in settings} >= {"PATH", "FEDCTL_HOME"}
    assert len(jobs) == 2
    for *when, command in jobs:
        assert all(re.fullmatch(r"\*|\d+", field) for field in when)
        assert "%" not in command  # which is a line's end to cron
        here = command.replace("/opt/fedctl/examples", str(EXAMPLES)).replace("/srv/models", ".")
        done = machine.run("sh", "-c", here.replace(" health ", f" {MODEL} "))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(machine.models()) == 1


def test_the_health_scenario_trains_on_csv_files(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine", tmp_path / "home")
    agents = [TestAgent(f"watch-{number}", tmp_path / f"w{number}") for number in range(4)]
    try:
        for number, agent in enumerate(agents):
            prepare_person(agent.state, seed=number)
            agent.start()
        table = tmp_path / "fleet.csv"
        rows = [
            f"{a.name},unix://{a.socket},role={'train' if a is not agents[-1] else 'holdout'}" for a in agents
        ]
        table.write_text("\n".join(["name,url,labels", *rows, ""]))
        done = machine.run(EXAMPLES / "health" / "health.sh", table)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "3/3" in done.stdout
        assert machine.models() == ["health.safetensors"]
        again = machine.run(EXAMPLES / "health" / "health.sh", table)
        assert again.returncode == 0, again.stdout + again.stderr
    finally:
        for agent in agents:
            agent.kill()


def test_the_fleet_file_can_be_read() -> None:
    rows = read_fleet_file(EXAMPLES / "health" / "fleet.csv")
    assert [row.device.labels["role"] for row in rows.rows] == ["train", "train", "train", "holdout"]


@pytest.mark.parametrize("script", ["nightly.sh", "health/health.sh"])
def test_the_scripts_are_for_every_shell(script: str) -> None:
    subprocess.run(["sh", "-n", EXAMPLES / script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", EXAMPLES / script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert os.access(EXAMPLES / script, os.X_OK)


def prepare_person(state: Path, *, seed: int) -> None:
    """An agent with the example's source file, whose days lie beside it."""
    text = (EXAMPLES / "health" / "recorder.toml").read_text()
    sources, days = state / "sources", state / "days"
    sources.mkdir(parents=True)
    days.mkdir()
    (sources / "recorder.toml").write_text(text.replace('"/home/pi/health"', f'"{days}"'))
    write_days(days / "days.csv", parse_source(text.encode()), np.random.default_rng(seed))
    keygen = [sys.executable, "-m", "fedctl_agent.main", "keygen", "--state-dir", str(state)]
    subprocess.run(keygen, check=True, stdout=subprocess.DEVNULL)


def write_days(path: Path, source: SourceSpec, rng: np.random.Generator) -> None:
    """Days of one person until yesterday; on one in eight the heart is quick, and some cells are missing."""
    today = datetime.now(UTC).date()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([source.time, *source.features, source.label])
        for day in range(DAYS, 0, -1):
            ill = day % 8 == 0
            cells = rng.normal(60 + 20 * ill, 4, len(source.features)).round(1).tolist()
            cells[day % len(cells)] = -1 if day % 5 == 0 else ""
            writer.writerow([(today - timedelta(days=day)).isoformat(), *cells, source.classes[ill]])

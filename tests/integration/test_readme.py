"""Every command, file and table of the README, as somebody who follows it from top to bottom meets them.

The commands run in their order, by a shell, in a fresh home, with what `pip install .` put there. What is
made up in the README is made true here: a login at a real sshd stands for each SSH device, a running agent
for the one with HTTPS, and the files that are named lie in the directory where the commands are typed.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import re
import select
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from fedctl.cli.app import root, run
from fedctl.cli.command import Session
from fedctl_agent import enrol
from fedctl_wire.sources import parse_source
from tests.fleet import MODEL, TestAgent, fleet
from tests.system import HOW_TO_ENABLE, Sshd, free_port, make_key, ssh_bed, system_tests_enabled

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
PATIENCE_S = 300  # for the slowest, which fetches packages

# What the README names and no machine has; `Workstation.stands_for` says what stands for a URL.
FIRST, LISTENING = "ssh://pi@192.0.2.41", "https://192.0.2.43"
DATA, SIGNAL = "/home/pi/health", "/var/lib/recorder/signal.db"
DAYS = 300  # that each person's data hold

# Commands that do not run where the others do: who runs them, and the line that says so there.
ELSEWHERE = {
    "make demo": ("tests/integration/test_readme.py", "def test_the_demo("),
    "make test": (".ci/run", "make test"),
}
# What the story runs; another program wants a thought before a test runs it with a person's rights.
PROGRAMS = {"fedctl", "fedctl-agent", "mkdir", "ln", "python3", "~/.local/share/fedctl-venv/bin/pip"}


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences."""

    line: int  # of its first line in the README
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class CommandLine:
    """One command of the README, without the comment behind it."""

    line: int
    text: str

    @property
    def program(self) -> str:
        return self.text.split()[0]


def blocks(kind: str | None = None) -> list[Block]:
    found = re.finditer(r"(?ms)^```(\w*)\n(.*?)^```$", README)
    every = [Block(README.count("\n", 0, m.start()) + 2, m[1], m[2]) for m in found]
    return [block for block in every if kind in {None, block.kind}]


def command_lines() -> list[CommandLine]:
    """Every line of every `sh` block."""
    found = []
    for block in blocks("sh"):
        for number, line in enumerate(block.text.splitlines(), block.line):
            text = re.sub(r"(^|\s+)#\s.*", "", line)
            found += [CommandLine(number, text)] if text else []
    return found


def cron_commands() -> list[str]:
    """What cron would hand to the shell."""
    jobs = [line for block in blocks("cron") for line in block.text.splitlines()]
    assert all(re.match(r"([*\d]+ ){5}", job) and "%" not in job for job in jobs)  # % is a line's end to cron
    return [job.split(maxsplit=5)[5] for job in jobs]


def prose_codes(text: str | None = None) -> list[str]:
    """What stands in backticks outside of the blocks."""
    prose = re.sub(r"(?ms)^```.*?^```$", "", README) if text is None else text
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def as_id(line: CommandLine) -> str:
    return line.text


# ---------------------------------------------------------------------- what the command line knows


@cache
def commands() -> dict[str, Any]:
    """Every command by its words, e.g. "devices add"."""

    def below(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "list_commands"):
            yield path, command
            return
        context = typer.Context(command)
        for name in command.list_commands(context):
            _, loaded, _ = command.resolve_command(context, [name])
            yield from below(loaded, f"{path} {name}".strip())

    return dict(below(root(), ""))


def options_of(command: Any) -> set[str]:
    params = command.get_params(typer.Context(command))
    return {name for p in params for name in (*p.opts, *p.secondary_opts)}


def find(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command that words begin with, and the rest of them."""
    for count in (2, 1):
        path = " ".join(words[:count])
        if path in commands():
            return path, list(words[count:])
    raise AssertionError(f"no such command: {shlex.join(words)}")


def fedctl_words(text: str) -> list[list[str]]:
    """The words behind each `fedctl` of a shell line: what one sees between pipes and redirections."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    calls: list[list[str]] = []
    inside = False
    for word in lexer:
        if word in {"fedctl", "~/.local/bin/fedctl"} and not inside:
            calls.append([])
            inside = True
        elif set(word) <= set("|&;<>()"):
            inside = False
        elif inside:
            calls[-1].append(word)
    return calls


PARSED = [
    *(words for line in command_lines() if line.program == "fedctl" for words in fedctl_words(line.text)),
    *(words for text in cron_commands() for words in fedctl_words(text)),
]


@pytest.mark.parametrize("words", PARSED, ids=shlex.join)
def test_a_command_can_be_parsed(words: list[str]) -> None:
    path, rest = find(words)
    commands()[path].make_context(path, rest, obj=Session())


@pytest.mark.parametrize("words", commands())
def test_each_has_help_with_examples(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words.split(), "--help"]) == 0
    _, _, examples = capsys.readouterr().out.partition("Examples:\n")
    assert f"fedctl {words}" in examples


def test_commands_in_the_prose_exist() -> None:
    codes = [code for code in prose_codes() if re.match(r"(\.venv/bin/)?fedctl [a-z]", code)]
    assert len(codes) > 10
    for code in codes:
        path, rest = find(shlex.split(code)[1:])
        context = typer.Context(commands()[path], obj=Session())
        commands()[path].make_parser(context).parse_args(args=rest)


def test_options_in_the_prose_exist() -> None:
    known = {name for command in (root(), *commands().values()) for name in options_of(command)}
    words = [word for code in prose_codes() if code.startswith("-") for word in shlex.split(code)]
    options = {word for word in words if re.fullmatch(r"-[a-zA-Z]|--[a-z][a-z-]+", word)}
    assert len(options) > 20
    assert options <= known


def test_the_table_of_commands_is_whole() -> None:
    """`fedctl devices list`, `show` in one cell are two commands of one noun."""
    listed = []
    for cell, about in re.findall(r"(?m)^\| (`fedctl .*?) \| (.*) \|$", section("Commands")):
        first, *others = prose_codes(cell)
        path = first.removeprefix("fedctl ")
        noun = path.split()[0]
        listed += [path, *(f"{noun} {other}" for other in others)]
        options = {code for code in prose_codes(about) if code.startswith("-")}
        assert options <= options_of(commands()[path])
    assert sorted(listed) == sorted(commands())


def test_files_and_targets_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    scripts = re.findall(r"`(\w+\.py)`", section("Figures"))
    assert [name for name in scripts if not (ROOT / "benchmarks" / name).exists()] == []
    makefile = (ROOT / "Makefile").read_text()
    targets = [code.split()[1] for code in prose_codes() if code.startswith("make ")]
    assert [name for name in targets if f"\n{name}:" not in makefile] == []


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {block.kind for block in blocks()} <= {"sh", "json", "toml", "cron"}


@pytest.mark.parametrize("line", command_lines(), ids=as_id)
def test_every_command_is_run(line: CommandLine) -> None:
    """By `test_the_story`, or elsewhere."""
    if line.text in ELSEWHERE:
        path, words = ELSEWHERE[line.text]
        assert re.search(rf"(?m)^{re.escape(words)}", (ROOT / path).read_text())
    else:
        assert line.program in PROGRAMS, f"README.md:{line.line} is run by no test: {line.text}"


def test_what_runs_elsewhere_is_still_there() -> None:
    assert set(ELSEWHERE) <= {line.text for line in command_lines()}


# ---------------------------------------------------------------------- what needs no sshd


@dataclass
class Workstation:
    """A person's fresh home, a directory to type commands in, and what the README's names stand for."""

    directory: Path
    stands_for: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in (self.home, self.work):
            path.mkdir(parents=True)
        of_network = re.compile(r"(?i)PIP_\w+|\w+_proxy|SSL_CERT_\w+")
        network = {name: value for name, value in os.environ.items() if of_network.fullmatch(name)}
        self.environment = {
            "PIP_CACHE_DIR": str(Path.home() / ".cache" / "pip"),  # a fresh home would fetch all of it again
            **network,
            "HOME": str(self.home),
            "PATH": f"{self.home}/.local/bin:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
        }

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def work(self) -> Path:
        return self.directory / "work"

    def here(self, text: str) -> str:
        """A text of the README with what its names stand for."""
        for name, meant in self.stands_for.items():
            text = text.replace(name, meant)
        return text

    def shell(self, text: str, *, where: Path | None = None, **extra: str) -> str:
        """What a command line prints; it must succeed."""
        done = subprocess.run(
            ["sh", "-c", self.here(text)],
            cwd=where or self.work,
            env=self.environment | extra,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{text}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def fedctl_of_the_tests(self) -> None:
        """The `fedctl` that the tests run with, in place of an installed one."""
        tools = self.home / ".local" / "bin"
        tools.mkdir(parents=True)
        (tools / "fedctl").symlink_to(BIN / "fedctl")


@pytest.fixture
def workstation(tmp_path: Path) -> Workstation:
    return Workstation(tmp_path)


@pytest.fixture
def person(workstation: Workstation) -> Workstation:
    workstation.fedctl_of_the_tests()
    return workstation


def test_the_demo(person: Workstation) -> None:
    """`make demo` with the environment that runs the tests, for which no other is built."""
    try:
        shown = person.shell(f"make -o .venv/.installed BIN={BIN} demo", where=ROOT)
        assert "federated, no data left a device" in shown
        tried = re.findall(r"(?m)^ +\S*(fedctl (?!demo).*)$", shown)
        assert len(tried) >= 3
        for command in tried:
            person.shell(command)
    finally:
        person.shell("fedctl demo --stop")
    assert not (person.home / ".local" / "state" / "fedctl").exists()
    person.shell("fedctl init")


def csv_source() -> str:
    (text,) = [block.text for block in blocks("toml") if 'kind = "csv"' in block.text]
    return text


def test_the_source_of_text_files(person: Workstation) -> None:
    days = person.directory / "health"
    write_days(days, seed=1)
    (person.work / "recorder.toml").write_text(csv_source().replace(DATA, str(days)))
    person.shell("fedctl init")
    person.shell(next(line.text for line in command_lines() if "model create health" in line.text))
    shown = person.shell("fedctl data check --source recorder.toml --model health")
    assert "schema fits health@1" in shown
    assert f"{DAYS} rows" in shown
    assert "anomalous" in shown


def test_the_source_of_a_signal(person: Workstation) -> None:
    (text,) = [block.text for block in blocks("toml") if 'kind = "sqlite"' in block.text]
    database = person.directory / "signal.db"
    write_signal(database)
    (person.work / "signal.toml").write_text(text.replace(SIGNAL, str(database)))
    person.shell("fedctl init")
    person.shell(next(line.text for line in command_lines() if "model create har" in line.text))
    shown = person.shell("fedctl data check --source signal.toml --model har")
    assert "schema fits har@1" in shown


def test_every_source_is_one_of_these() -> None:
    assert [re.findall('kind = "(.*?)"', block.text) for block in blocks("toml")] == [["csv"], ["sqlite"]]


def test_the_policy_is_taken(tmp_path: Path) -> None:
    """It measures versions; it neither trains nor gives sums, and keeps what there is about its data."""
    (block,) = blocks("json")
    with fleet(tmp_path, train=2, holdout=1) as small:
        for name in ("dev-2", "dev-3"):
            (small.agents[name].state / "policy.local.json").write_text(block.text)
        done = small.cli("round", "start", MODEL, "--deadline", "60s", "-o", "json")
        assert done.returncode == 0, done.stderr
        shown = json.loads(small.cli("round", "show", "1", "-o", "json").stdout)
        stages = {row["device"]: row["stage"] for row in shown["devices"]}
        assert stages == {"dev-1": "aggregated", "dev-2": "dropped", "dev-3": "evaluated"}
        assert "policy does not allow 'train'" in shown["devices"][1]["reason"]
        data = small.cli("data", "check", "dev-2", "--model", MODEL).stdout
        assert "its policy keeps times, labels and gaps to itself" in data


def write_days(directory: Path, *, seed: int) -> None:
    """A person's days until yesterday, as the README's source file describes them."""
    source = parse_source(csv_source().encode())
    rng = np.random.default_rng(seed)
    directory.mkdir()
    today = datetime.now(UTC).date()
    with (directory / "days.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([source.time, *source.features, source.label])
        for day in range(DAYS, 0, -1):
            ill = int(rng.random() < 0.3)
            cells = rng.normal(60, 4, len(source.features))
            cells[:3] += 6.0 * ill
            words = [*map(str, cells.round(1))]
            words[day % len(words)] = "-1" if day % 5 == 0 else ""
            writer.writerow([(today - timedelta(days=day)).isoformat(), *words, source.classes[ill]])


def write_signal(path: Path) -> None:
    """Six activities of one person at 50 Hz."""
    names = ["ax", "ay", "az", "gx", "gy", "gz", "tx", "ty", "tz"]
    rng = np.random.default_rng(1)
    start, step = time.time() - 86_400, 1 / 50
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        columns = ", ".join(["at REAL", "session INTEGER", *names, "activity INTEGER"])
        database.execute(f"CREATE TABLE samples ({columns})")
        for activity in range(6):
            values = rng.normal(activity, 1, (1280, len(names))).round(3).tolist()
            begin = start + 600 * activity
            rows = [(begin + i * step, activity, *cells, activity) for i, cells in enumerate(values)]
            database.executemany(f"INSERT INTO samples VALUES ({','.join('?' * 12)})", rows)  # noqa: S608


# ---------------------------------------------------------------------- the story


@dataclass(frozen=True, slots=True)
class Watch:
    """A login at an sshd, with a person's data in its home."""

    url: str
    host_key: str
    data: Path


@contextlib.contextmanager
def watch(public_key: str, *, seed: int) -> Iterator[Watch]:
    """A device as the README's admin finds it: a login that takes the admin's key, and data."""
    with ssh_bed() as bed:
        where = ("AuthorizedKeysFile .ssh/authorized_keys",)
        sshd = Sshd(bed.sshd.program, bed.directory / "device", directives=where)
        keys = bed.home / ".ssh"
        keys.mkdir(mode=0o700)
        (keys / "authorized_keys").write_text(public_key)
        write_days(bed.home / "health", seed=seed)
        for path in (keys, keys / "authorized_keys", bed.home / "health"):
            shutil.chown(path, bed.user, bed.user)
        sshd.start()
        try:
            url = f"ssh://{bed.user}@{sshd.address}:{sshd.port}"
            yield Watch(url, sshd.host_key, bed.home / "health")
        finally:
            sshd.stop()


@contextlib.contextmanager
def listening_watch(directory: Path, port: int) -> Iterator[TestAgent]:
    """An agent that somebody installed at a device without sshd."""
    agent = TestAgent("watch-03", directory / enrol.USER_STATE)
    sources = agent.state / "sources"
    sources.mkdir(parents=True)
    write_days(directory / "health", seed=3)
    (sources / "recorder.toml").write_text(csv_source().replace(DATA, str(directory / "health")))
    (agent.state / "agent.toml").write_text(f'https = "127.0.0.1:{port}"\n')
    keygen = [sys.executable, "-m", "fedctl_agent.main", "keygen", "--state-dir", str(agent.state)]
    subprocess.run(keygen, check=True, stdout=subprocess.DEVNULL)
    agent.start()
    try:
        yield agent
    finally:
        agent.kill()


class Story:
    """What is at hand when the commands run, and who types each of them where."""

    def __init__(self, workstation: Workstation, watches: Sequence[Watch], device: Path) -> None:
        self.workstation = workstation
        self.device = device  # the home directory at the device that listens for HTTPS
        first, second = watches
        for number, one in enumerate(watches, 1):
            name = "recorder.toml" if number == 1 else f"recorder-{number}.toml"
            (workstation.work / name).write_text(csv_source().replace(DATA, str(one.data)))
        known = fingerprint(second.host_key)
        rows = (
            "name,url,labels,note,source,placement,host_key",
            f"watch-01,{first.url},site=b,,recorder.toml,user,",
            f"watch-02,{second.url},ward=3;site=a,worn on the left,recorder-2.toml,user,{known}",
        )
        (workstation.work / "fleet.csv").write_text("\n".join([*rows, ""]))

    def run(self, line: CommandLine) -> None:
        """Run one command as the README has it: where it says, by whom it says."""
        where = f"README.md:{line.line}"
        if line.program == "fedctl-agent":
            self._at_the_device(line)
        elif line.program.endswith("/pip"):
            self.workstation.shell(line.text, where=ROOT)
        elif FIRST in line.text:
            shown = at_a_terminal(self.workstation, line.text)
            assert "is new. Trust it?" in shown, f"{where}: {shown}"
        else:
            self.workstation.shell(line.text)

    def _at_the_device(self, line: CommandLine) -> None:
        """A person there runs it, and carries the token to the workstation."""
        tools = self.workstation.home / ".local/share/fedctl-venv/bin"
        path = f"{tools}:{os.environ['PATH']}"
        token = self.workstation.shell(line.text, where=self.device, HOME=str(self.device), PATH=path)
        (self.workstation.work / "token.txt").write_text(token)


def fingerprint(host_key: str) -> str:
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", "-"], input=host_key, capture_output=True, text=True, check=True
    )
    return shown.stdout.split()[1]


def at_a_terminal(workstation: Workstation, text: str) -> str:
    """What a command line shows at a terminal, where its one question is answered by yes."""
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        ["sh", "-c", workstation.here(text)],
        cwd=workstation.work,
        env=workstation.environment,
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
    )
    os.close(end)
    shown, asked = b"", False
    try:
        with contextlib.suppress(OSError):  # the end of a terminal
            while select.select([terminal], [], [], PATIENCE_S)[0]:
                shown += os.read(terminal, 65536)
                if not asked and shown.rstrip().endswith(b"[y/N]:"):
                    asked = True
                    os.write(terminal, b"y\n")
        code = process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert code == 0, f"{text}: {code}\n{shown.decode()}"
    return shown.decode()


@pytest.fixture
def story(workstation: Workstation, tmp_path: Path) -> Iterator[Story]:
    if not system_tests_enabled():
        pytest.skip(f"needs root, test users and sshd; {HOW_TO_ENABLE}")
    if enrol.SYSTEM_STATE.exists():
        pytest.skip(f"there is an agent of this machine's own in {enrol.SYSTEM_STATE}")
    device, port = tmp_path / "watch-03", free_port("127.0.0.1")
    (workstation.home / ".ssh").mkdir(mode=0o700)
    public = make_key(workstation.home / ".ssh" / "id_ed25519").with_suffix(".pub").read_text()
    with watch(public, seed=1) as first, watch(public, seed=2) as second, listening_watch(device, port):
        workstation.stands_for = {FIRST: first.url, LISTENING: f"https://127.0.0.1:{port}"}
        yield Story(workstation, (first, second), device)


@pytest.mark.system
def test_the_story(story: Story) -> None:
    """All commands in their order; then cron's, and the selectors of the prose."""
    for line in command_lines():
        if line.text not in ELSEWHERE:
            story.run(line)
    here = story.workstation
    assert here.shell("command -v fedctl").strip() == f"{here.home}/.local/bin/fedctl"
    check_what_it_leaves(here)
    check_the_night(here)
    for code in prose_codes(section("Commands")):
        if code.startswith(("-l ", "'")):  # exit code 5 when nothing matches
            here.shell(f"fedctl devices list {code}")


def check_what_it_leaves(here: Workstation) -> None:
    devices = json.loads(here.shell("fedctl devices list -o json"))["devices"]
    assert [device["name"] for device in devices] == ["watch-01", "watch-02", "watch-03"]
    first, second, third = devices
    assert second["labels"] == {"ward": "3", "site": "a", "role": "holdout"}
    assert [device["state"] for device in devices] == ["enrolled", "maintenance", "enrolled"]
    assert (first["url"], third["url"]) == (here.here(FIRST), here.here(LISTENING))
    rounds = json.loads(here.shell("fedctl round list -o json"))["rounds"]
    assert {one["phase"] for one in rounds} == {"published"}
    assert (here.work / "health.safetensors").stat().st_size > 0
    completions = here.home / ".local/share/bash-completion/completions/fedctl"
    assert "complete -F" in completions.read_text()


def check_the_night(here: Workstation) -> None:
    """Cron starts commands with hardly any environment, and mails whatever they print."""
    for command in cron_commands():
        words = ["env", "-i", f"HOME={here.home}", "LOGNAME=admin", "SHELL=/bin/sh", "PATH=/usr/bin:/bin"]
        before = here.shell("fedctl round list -o name").split()
        assert here.shell(shlex.join([*words, "sh", "-c", f"({command}) 2>&1"])) == ""
        assert len(here.shell("fedctl round list -o name").split()) == len(before) + 1

"""Real agents that listen for HTTPS, from `fedctl-agent enrol` to a round."""

from __future__ import annotations

import os
import pty
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError, ExitCode, TrustError, UnreachableError, UsageError
from fedctl.core.home import Home
from fedctl.ops import devices
from fedctl.ops.devices import NewDevice
from fedctl.ops.fleet import init
from fedctl.ops.models import create
from fedctl.ops.roster import keep_roster
from fedctl.release.keys import load_root, operator_certificate_path
from fedctl.release.trust import sign_roster
from fedctl.store import Store
from fedctl_wire.signing import generate_key, public_key
from tests.fleet import MODEL, TestAgent, TestFleet, new_model, prepare
from tests.system import eventually, free_port


class HttpsAgent(TestAgent):
    """An agent with data that listens for HTTPS once `enrol` was called."""

    port: int

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        super().start()
        if (self.state / "agent.toml").exists():
            eventually(self._listens, "the agent listens for HTTPS")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def enrol(self) -> str:
        """Run `fedctl-agent enrol` at the device; returns the token that it prints."""
        program = [sys.executable, "-m", "fedctl_agent.main", "enrol", "--state-dir", str(self.state)]
        command = [*program, "--listen", f"127.0.0.1:{self.port}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "fedctl devices add" in done.stderr
        return done.stdout.strip()

    def renew(self) -> str:
        """Set the device up anew: other identity, no fleet."""
        self.kill()
        shutil.rmtree(self.state / "identity")
        token = self.enrol()
        self.start()
        return token


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[HttpsAgent]]:
    made = [HttpsAgent(f"w{number}", tmp_path / f"w{number}") for number in (1, 2)]
    try:
        for number, agent in enumerate(made):
            prepare(agent.state, rows=120, seed=number)
            agent.port = free_port("127.0.0.1")
            agent.start()
        yield made
    finally:
        for agent in made:
            agent.kill()


@pytest.fixture
def agent(agents: list[HttpsAgent]) -> HttpsAgent:
    return agents[0]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    init(made)
    return made


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    with Store.open(home) as opened:
        yield opened


def add(
    store: Store, home: Home, agent: HttpsAgent, token: str | None, *, dry_run: bool = False
) -> devices.AddResult:
    return devices.add(store, home, NewDevice(name=agent.name, url=agent.url), token=token, dry_run=dry_run)


def cli(fleet: TestFleet, *words: str, stdin: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        fleet.command(*words),
        env=fleet.environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def ping(store: Store, home: Home) -> list[devices.PingOutcome]:
    return list(devices.ping(store, home, store.devices()))


def test_from_the_token_to_rounds(store: Store, home: Home, agents: list[HttpsAgent]) -> None:
    fleet = TestFleet(home, {agent.name: agent for agent in agents})
    for agent, role in zip(agents, ("train", "holdout"), strict=True):
        words = ["devices", "add", agent.name, agent.url, "-l", f"role={role}", "--token-file", "-"]
        token = agent.enrol()
        added = cli(fleet, *words, stdin=token)
        assert added.returncode == 0, added.stderr
        assert token not in added.stdout + added.stderr
    outcomes = ping(store, home)
    assert [outcome.error for outcome in outcomes] == [None, None]
    create(store, home, new_model())
    pushed = fleet.cli("model", "push", MODEL, "w1")
    assert pushed.returncode == 0, pushed.stderr
    before = store.model(MODEL).latest_version
    done = fleet.cli("round", "start", MODEL, "--rounds", "2", "--deadline", "60")
    assert done.returncode == 0, done.stderr
    assert store.model(MODEL).published_version >= before + 2


def test_adding_again_needs_no_token_and_changes_nothing(store: Store, home: Home, agent: HttpsAgent) -> None:
    token = agent.enrol()
    assert add(store, home, agent, token, dry_run=True).steps
    assert store.devices() == ()
    first = add(store, home, agent, token)
    for again in (None, token):  # the token is used up; nobody asks for it
        result = add(store, home, agent, again)
        assert (result.changed, result.steps, result.device) == (False, (), first.device)


def test_the_token_names_the_device(store: Store, home: Home, agents: list[HttpsAgent]) -> None:
    """Whoever answers at the address of the device whose token was typed in gets nothing of it."""
    tokens = [agent.enrol() for agent in agents]
    with pytest.raises(TrustError, match="another key than its identity") as error:
        add(store, home, agents[0], tokens[1])
    assert error.value.exit_code == ExitCode.TRUST
    assert store.devices() == ()
    assert add(store, home, agents[0], tokens[0]).changed


def test_without_a_token(store: Store, home: Home, agent: HttpsAgent) -> None:
    with pytest.raises(UsageError, match="w1 needs a token") as error:
        add(store, home, agent, None)
    assert "fedctl-agent enrol" in error.value.hint
    with pytest.raises(UsageError, match="no enrolment token") as error:
        add(store, home, agent, "fedctl-secret")
    assert "secret" not in error.value.message + error.value.hint


def test_a_wrong_token_has_five_tries(store: Store, home: Home, agent: HttpsAgent) -> None:
    token = agent.enrol()
    word, _, pin = token.split("-")
    wrong = f"{word}-{'a' * 32}-{pin}"
    for left in range(4, -1, -1):
        with pytest.raises(TrustError, match=f"token is wrong; tries left: {left}") as error:
            add(store, home, agent, wrong)
        assert (error.value.exit_code, error.value.code) == (ExitCode.TRUST, "token")
    with pytest.raises(TrustError, match="token"):
        add(store, home, agent, token)
    assert store.devices() == ()
    assert add(store, home, agent, agent.enrol()).changed


def test_a_device_of_another_fleet_says_so(
    store: Store, home: Home, agent: HttpsAgent, tmp_path: Path
) -> None:
    token = agent.enrol()
    add(store, home, agent, token)
    other = Home(tmp_path / "other")
    init(other)
    with Store.open(other) as theirs:
        with pytest.raises(TrustError, match="enrolled in another fleet"):
            add(theirs, other, agent, token)
        assert theirs.devices() == ()
    assert ping(store, home)[0].error is None


def test_a_device_that_was_set_up_anew_wants_a_new_token(store: Store, home: Home, agent: HttpsAgent) -> None:
    old = add(store, home, agent, agent.enrol()).device
    token = agent.renew()
    (outcome,) = ping(store, home)
    assert isinstance(outcome.error, TrustError)
    assert "fedctl-agent enrol" in outcome.error.hint
    with pytest.raises(TrustError, match="another key than its identity"):
        add(store, home, agent, None)
    result = add(store, home, agent, token)
    assert result.changed
    assert old is not None
    assert result.device is not None
    assert result.device.identity_key != old.identity_key
    assert ping(store, home)[0].error is None


def test_a_device_that_lost_its_enrolment_wants_a_token(store: Store, home: Home, agent: HttpsAgent) -> None:
    add(store, home, agent, agent.enrol())
    agent.kill()
    (agent.state / "identity" / "root.json").unlink()
    agent.start()
    with pytest.raises(UsageError, match="w1 is not enrolled any more, so it wants a token"):
        add(store, home, agent, None)
    assert add(store, home, agent, agent.enrol()).changed
    assert ping(store, home)[0].error is None


def test_a_removed_device_comes_back_without_a_token(store: Store, home: Home, agent: HttpsAgent) -> None:
    """Its agent was not installed from here, so it still holds its enrolment."""
    add(store, home, agent, agent.enrol())
    (outcome,) = devices.remove(store, home, store.devices())
    assert outcome.error is None
    assert "as it is" in outcome.steps[0]
    assert add(store, home, agent, None).changed
    assert ping(store, home)[0].error is None


def test_a_row_that_a_crash_kept_from_being_written_is_made_up_for(
    store: Store, home: Home, agent: HttpsAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = agent.enrol()
    with monkeypatch.context() as patched:

        def full(*_: object, **__: object) -> None:
            raise ConfigError("the disk is full")

        patched.setattr(Store, "add_device", full)
        with pytest.raises(ConfigError):
            add(store, home, agent, token)
    assert store.devices() == ()
    assert add(store, home, agent, token).changed  # the same token, although it is used up there
    assert ping(store, home)[0].error is None


def test_an_agent_that_is_down(store: Store, home: Home, agent: HttpsAgent) -> None:
    add(store, home, agent, agent.enrol())
    agent.kill()
    (outcome,) = ping(store, home)
    assert isinstance(outcome.error, UnreachableError)
    assert outcome.error.code == "agent_down"
    agent.start()
    assert ping(store, home)[0].error is None


def test_a_revoked_operator_is_refused_by_every_device(store: Store, home: Home, agent: HttpsAgent) -> None:
    """A roster that lists another operator: whoever holds the old key and certificate is out."""
    add(store, home, agent, agent.enrol())
    fleet = store.fleet()
    revoking = sign_roster(
        fleet=fleet.uuid,
        serial=fleet.roster_serial + 1,
        issued_at="2026-01-01T00:00:00.000Z",
        operator_key=public_key(generate_key()),
        devices=[],
        root_key=load_root(home),
    )
    keep_roster(home, revoking)
    with store.transaction():
        store.set_roster_serial(fleet.roster_serial + 1)
    (outcome,) = ping(store, home)  # the last call as operator: it brings the roster
    assert outcome.roster_pushed
    (outcome,) = ping(store, home)
    assert isinstance(outcome.error, TrustError)
    assert "is not in this device's roster" in outcome.error.message
    assert outcome.error.exit_code == ExitCode.TRUST
    pinged = TestFleet(home, {}).cli("devices", "ping", "w1")
    assert pinged.returncode == ExitCode.TRUST, pinged.stderr
    assert "is not in this device's roster" in " ".join(pinged.stdout.split())


def test_a_home_without_the_operators_certificate_says_how_to_get_it(
    store: Store, home: Home, agent: HttpsAgent, tmp_path: Path
) -> None:
    add(store, home, agent, agent.enrol())
    root = tmp_path / "stick"
    (home.keys / "root").rename(root)
    operator_certificate_path(home).unlink()
    (outcome,) = ping(store, home)
    assert isinstance(outcome.error, ConfigError)
    assert "`fedctl init` makes it" in outcome.error.hint
    init(home, root_key=root)
    assert ping(store, home)[0].error is None


def test_at_a_terminal_the_token_is_asked_for_once_and_not_shown(home: Home, agent: HttpsAgent) -> None:
    fleet = TestFleet(home, {})
    token = agent.enrol()
    shown = at_terminal(fleet, "devices", "add", agent.name, agent.url, answer=token)
    assert "Token of w1" in shown
    assert "w1 is enrolled" in shown
    assert token not in shown
    again = at_terminal(fleet, "devices", "add", agent.name, f"{agent.url}/", answer=None)  # spelt otherwise
    assert "enrolled already" in again
    assert "Token" not in again


def at_terminal(fleet: TestFleet, *words: str, answer: str | None) -> str:
    """Run a command at a terminal, type the answer once it asks, and return what the screen showed."""
    screen, terminal = pty.openpty()
    command, environment = fleet.command(*words), fleet.environment()
    process = subprocess.Popen(
        command, env=environment, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    shown = b""
    try:
        while select.select([screen], [], [], 20)[0]:
            try:
                shown += os.read(screen, 4096)
            except OSError:  # the end of a terminal
                break
            if answer is not None and shown.endswith(b"): "):  # the echo is off from here on
                os.write(screen, answer.encode() + b"\n")
                answer = None
    finally:
        process.kill()
        process.wait()
        os.close(screen)
    return shown.decode()

"""Devices behind a jump host: a second sshd, whose one connection all of them share."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedctl.core.errors import FedctlError, TrustError, UnreachableError
from fedctl.transport import AgentClient, Endpoint, connect, open_admin, sweep
from fedctl.transport.jump import JUMP_HOSTS, Hop, Route
from tests.fakes.agent_server import FakeAgent
from tests.system import SshBed, Sshd, make_key

pytestmark = pytest.mark.system


class Clinic:
    """A jump host `gate` in front of the bed's server `watch`, and a person's configuration for both."""

    def __init__(self, bed: SshBed, directory: Path, gate: Sshd) -> None:
        self.bed = bed
        self.gate = gate
        self.config = directory / "config"
        self.known_hosts = directory / "known_hosts"
        self.key = make_key(directory / "person")
        self.admit(self.key)
        self.known_hosts.write_text(f"[{gate.address}]:{gate.port} {gate.host_key}\n")
        self.configure()

    def admit(self, key: Path, options: str = "") -> None:
        """Let a key in at the jump host."""
        with self.gate.authorized_keys.open("a") as lines:
            lines.write(f"{options} {key.with_suffix('.pub').read_text()}".lstrip())

    def configure(self, *lines: str, jump: str = "gate") -> None:
        common = [
            f"UserKnownHostsFile {self.known_hosts}",
            "GlobalKnownHostsFile none",
            f"User {self.bed.user}",
        ]
        common += [f"IdentityFile {self.key}", "IdentitiesOnly yes", "IdentityAgent none"]
        gate = [f"HostName {self.gate.address}", f"Port {self.gate.port}"]
        watch = [f"HostName {self.bed.sshd.address}", f"Port {self.bed.sshd.port}", f"ProxyJump {jump}"]
        text = ["Host gate", *gate, "Host watch", *watch, *lines, "Host *", *common]
        self.config.write_text("\n".join(text) + "\n")

    def route(self, *hops: str, host_key: str = "") -> Route:
        return Route(tuple(Hop(f"ssh://{hop}", host_key) for hop in hops or ("gate",)), self.config)

    def client(self, login_key: Path, route: Route | None = None, *, name: str = "watch-1") -> AgentClient:
        facts = (route or self.route()).facts()
        keys = {"host_key": self.bed.host_key, "login_key": login_key}
        return connect(device=name, url=self.bed.url, facts=facts, timeout_s=10, **keys)  # type: ignore[arg-type]

    def logins(self) -> int:
        """How many connections the jump host has accepted."""
        return len(re.findall(r"Accepted publickey", self.gate.log))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as undo:
        undo.callback(JUMP_HOSTS.close)
        yield undo


@pytest.fixture
def clinic(bed: SshBed, stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clinic:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return Clinic(bed, tmp_path, jump_host(bed, stack))


def jump_host(bed: SshBed, stack: ExitStack, *directives: str, address: str = "127.0.0.5") -> Sshd:
    gate = Sshd(bed.sshd.program, bed.new_directory("gate") / "sshd", address=address, directives=directives)
    stack.callback(gate.stop)
    gate.start()
    return gate


@pytest.fixture
def login_key(bed: SshBed, agent: FakeAgent) -> Path:
    """The fleet's, which the device's restricted line lets in."""
    return bed.authorize(bed.bridge_command(agent.socket_path))


def test_a_device_is_reached_and_keeps_its_own_pinned_key(clinic: Clinic, login_key: Path) -> None:
    with clinic.client(login_key) as client:
        assert client.health().boot_id == "boot-1"
    facts = clinic.route().facts()
    assert Route.from_facts(facts) == clinic.route()
    other = clinic.gate.host_key  # what a jump host that listens in would show
    with (
        connect(device="w", url=clinic.bed.url, host_key=other, login_key=login_key, facts=facts) as client,
        pytest.raises(TrustError, match="another host key than when it was enrolled"),
    ):
        client.health()


def test_all_devices_share_one_connection_to_the_jump_host(clinic: Clinic, login_key: Path) -> None:
    def ping(name: str) -> str:
        with clinic.client(login_key, name=name) as client:
            return client.health().boot_id

    names = [f"watch-{number}" for number in range(30)]
    outcomes = dict(sweep(names, ping))
    assert set(outcomes.values()) == {"boot-1"}
    assert clinic.logins() == 1


def test_a_lost_jump_host_is_logged_in_to_again(clinic: Clinic, login_key: Path) -> None:
    with clinic.client(login_key) as client:
        client.health()
        for process in clinic.gate.sessions():
            process.kill()
        assert client.health().boot_id == "boot-1"
    assert clinic.logins() == 2


def test_the_person_s_login_goes_through_and_is_remembered(clinic: Clinic, login_key: Path) -> None:
    with clinic.bed.sshd.authorized_keys.open("a") as lines:
        lines.write(clinic.key.with_suffix(".pub").read_text())
    watch = Endpoint.parse("ssh://watch")
    with open_admin(watch, ssh_config=clinic.config, pinned=clinic.bed.host_key) as session:
        assert session.run("echo hello").stdout == b"hello\n"
        assert session.endpoint.url == clinic.bed.url
        assert session.route == clinic.route(host_key=clinic.gate.host_key)
    with clinic.client(login_key, session.route) as client:
        client.health()
    assert clinic.logins() == 1


def test_a_chain_of_jump_hosts(clinic: Clinic, stack: ExitStack, login_key: Path) -> None:
    """`second` is only known to go through `gate`, so its own ProxyJump comes first."""
    second = jump_host(clinic.bed, stack, address="127.0.0.6")
    second.authorized_keys.write_text(clinic.gate.authorized_keys.read_text())
    with clinic.known_hosts.open("a") as lines:
        lines.write(f"[{second.address}]:{second.port} {second.host_key}\n")
    where = [f"HostName {second.address}", f"Port {second.port}", "ProxyJump gate"]
    clinic.configure("Host second", *where, jump="second")
    with clinic.bed.sshd.authorized_keys.open("a") as lines:
        lines.write(clinic.key.with_suffix(".pub").read_text())
    watch = Endpoint.parse("ssh://watch")
    with open_admin(watch, ssh_config=clinic.config, pinned=clinic.bed.host_key) as session:
        assert [hop.name for hop in session.route.hops] == ["gate", "second"]
    with clinic.client(login_key, session.route) as client:
        client.health()
    assert clinic.logins() == 1
    assert "Accepted publickey" in second.log


# ------------------------------------------------------------------ what goes wrong at the jump host


def refused(clinic: Clinic, login_key: Path, route: Route | None = None) -> FedctlError:
    with clinic.client(login_key, route) as client, pytest.raises(FedctlError) as caught:
        client.health()
    assert caught.value.subject == "watch-1"
    assert caught.value.message.startswith("device watch-1 is behind gate: ")
    return caught.value


def test_its_key_must_be_known(clinic: Clinic, login_key: Path) -> None:
    clinic.known_hosts.write_text("")
    error = refused(clinic, login_key)
    assert isinstance(error, TrustError)
    assert error.code == "host_key"
    assert error.hint.endswith(f"ssh -F {clinic.config} gate")


def test_the_key_that_was_accepted_at_enrolment_will_do(clinic: Clinic, login_key: Path) -> None:
    clinic.known_hosts.write_text("")
    with clinic.client(login_key, clinic.route(host_key=clinic.gate.host_key)) as client:
        client.health()


def test_its_changed_key_is_refused(clinic: Clinic, login_key: Path) -> None:
    clinic.known_hosts.write_text(f"[{clinic.gate.address}]:{clinic.gate.port} {clinic.bed.host_key}\n")
    error = refused(clinic, login_key, clinic.route(host_key=clinic.gate.host_key))
    assert "has changed" in error.message


def test_many_devices_make_one_attempt_at_a_login_that_is_refused(clinic: Clinic, login_key: Path) -> None:
    clinic.gate.authorized_keys.write_text("")

    def ping(name: str) -> None:
        with clinic.client(login_key, name=name) as client:
            client.health()

    names = [f"watch-{number}" for number in range(20)]
    outcomes = dict(sweep(names, ping))
    assert {getattr(outcome, "code", None) for outcome in outcomes.values()} == {"login"}
    assert all(name in str(outcome) for name, outcome in outcomes.items())
    assert len(re.findall(r"Connection from", clinic.gate.log)) <= 2  # one is the bed's own look


def test_the_fleet_s_login_key_may_be_the_jump_host_s_too(clinic: Clinic, login_key: Path) -> None:
    """For cron, where no person's key is at hand: restricted to forwarding."""
    clinic.gate.authorized_keys.write_text("")
    clinic.admit(login_key, "restrict,port-forwarding")
    with clinic.client(login_key) as client:
        client.health()


@pytest.mark.parametrize("directive", ["AllowTcpForwarding no", "DisableForwarding yes", "PermitOpen none"])
def test_a_jump_host_that_forbids_forwarding(
    bed: SshBed, stack: ExitStack, tmp_path: Path, login_key: Path, directive: str
) -> None:
    clinic = Clinic(bed, tmp_path, jump_host(bed, stack, directive, address="127.0.0.7"))
    error = refused(clinic, login_key)
    assert isinstance(error, TrustError)
    assert error.code == "forwarding"
    assert "AllowTcpForwarding" in error.hint


def test_a_jump_host_that_is_down(clinic: Clinic, login_key: Path) -> None:
    clinic.gate.stop()
    error = refused(clinic, login_key)
    assert isinstance(error, UnreachableError)
    assert "jump host gate could not be reached" in error.message


def test_a_device_that_is_down_behind_it(clinic: Clinic, login_key: Path) -> None:
    keys = {"host_key": clinic.bed.host_key, "login_key": login_key, "facts": clinic.route().facts()}
    with (
        connect(device="watch-1", url="ssh://127.0.0.4:1", **keys) as client,  # type: ignore[arg-type]
        pytest.raises(UnreachableError, match=r"gate cannot reach 127\.0\.0\.4 port 1: nobody answers"),
    ):
        client.health()


def test_a_device_that_is_dark_costs_its_neighbours_nothing(clinic: Clinic, login_key: Path) -> None:
    """Something accepts the connection and never speaks; another device is asked meanwhile."""
    import socket

    with socket.create_server(("127.0.0.8", 0)) as listener:
        port = listener.getsockname()[1]
        keys = {"host_key": clinic.bed.host_key, "login_key": login_key, "facts": clinic.route().facts()}
        dark = connect(device="dark", url=f"ssh://a@127.0.0.8:{port}", timeout_s=3, **keys)  # type: ignore[arg-type]
        ended: list[BaseException] = []

        def ask() -> None:
            try:
                dark.health()
            except UnreachableError as error:
                ended.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        with clinic.client(login_key) as client:
            client.health()
            thread.join()
            client.health()
        dark.close()
    assert "dark" in str(ended[0])
    assert clinic.logins() == 1

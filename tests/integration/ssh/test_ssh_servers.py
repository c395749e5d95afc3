"""Servers as people have them: certificates, IPv6, Dropbear, and every option that takes something away."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedctl.core.errors import DeviceError, TrustError, UnreachableError
from fedctl.ops.enrolment.ondevice import probe
from fedctl.ops.enrolment.shell import DeviceShell
from fedctl.transport import AdminSession, Endpoint, connect, open_admin, sweep
from fedctl.transport.sshlink import fingerprint
from tests.fakes.agent_server import FakeAgent
from tests.system import Dropbear, SshBed, Sshd, eventually, make_key

pytestmark = pytest.mark.system

Server = Callable[..., Sshd]


@pytest.fixture
def server(bed: SshBed) -> Iterator[Server]:
    """Starts an sshd with such directives; the user's authorized_keys are the bed's."""
    with ExitStack() as undo:

        def start(*directives: str, address: str = "127.0.0.10") -> Sshd:
            directory = bed.new_directory("server") / "sshd"
            sshd = Sshd(bed.sshd.program, directory, address=address, directives=directives)
            undo.callback(sshd.stop)
            shutil.copy(bed.sshd.authorized_keys, sshd.authorized_keys)
            sshd.start()
            return sshd

        yield start


@pytest.fixture
def config(bed: SshBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person with one key, which the bed lets in."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return person(tmp_path, bed.authorize(None))


def person(directory: Path, key: Path, *lines: str) -> Path:
    path = directory / "config"
    known = directory / "known_hosts"
    text = [f"IdentityFile {key}", "IdentitiesOnly yes", f"UserKnownHostsFile {known}", *lines]
    path.write_text("\n".join([*text, "GlobalKnownHostsFile none"]) + "\n")
    return path


def url(bed: SshBed, sshd: Sshd, *, user: str | None = None) -> str:
    host = f"[{sshd.address}]" if ":" in sshd.address else sshd.address
    return f"ssh://{user or bed.user}@{host}:{sshd.port}"


def log_in(bed: SshBed, sshd: Sshd, config: Path, **options: str) -> AdminSession:
    where = Endpoint.parse(url(bed, sshd, **options))
    return open_admin(where, ssh_config=config, pinned=sshd.host_key)


def runs(session: AdminSession) -> bool:
    return session.run("echo it runs").stdout.endswith(b"it runs\n")


# ------------------------------------------------------------------ certificates


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return make_key(tmp_path / "authority")


def certify(authority: Path, public: Path, *words: str) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", *words, str(public)],
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("place", ["beside the key", "CertificateFile"])
@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_a_person_s_certificate(
    bed: SshBed, server: Server, authority: Path, tmp_path: Path, place: str, kind: str
) -> None:
    """The server knows only the authority, not the key."""
    key = tmp_path / "certified"
    words = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(key)]
    subprocess.run(words, check=True, capture_output=True)
    certify(authority, key.with_suffix(".pub"), "-n", bed.user)
    lines = ["IdentityAgent none"]
    if place == "CertificateFile":
        moved = shutil.move(tmp_path / "certified-cert.pub", tmp_path / "my.crt")
        lines.append(f"CertificateFile {moved}")
    sshd = server(f"TrustedUserCAKeys {authority.with_suffix('.pub')}")
    with log_in(bed, sshd, person(tmp_path, key, *lines)) as session:
        assert runs(session)


def test_a_person_s_certificate_in_the_ssh_agent(
    bed: SshBed, server: Server, authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path / "certified")
    certify(authority, key.with_suffix(".pub"), "-n", bed.user)
    where = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(where)], stdout=subprocess.DEVNULL)
    try:
        eventually(where.exists, "the ssh-agent listens")
        monkeypatch.setenv("SSH_AUTH_SOCK", str(where))
        subprocess.run(["ssh-add", "-q", str(key)], check=True, capture_output=True)
        (tmp_path / "certified-cert.pub").unlink()
        key.unlink()
        sshd = server(f"TrustedUserCAKeys {authority.with_suffix('.pub')}")
        with log_in(bed, sshd, person(tmp_path, key)) as session:
            assert runs(session)
    finally:
        agent.terminate()
        agent.wait()


def test_a_certificate_that_is_none_is_named(
    bed: SshBed, server: Server, tmp_path: Path, config: Path
) -> None:
    stranger = make_key(tmp_path / "stranger")
    person(tmp_path, stranger, "IdentityAgent none", f"CertificateFile {stranger}.pub")
    with pytest.raises(TrustError, match=r"stranger\.pub cannot be used: it is a plain key"):
        log_in(bed, server(), config)


def test_a_host_known_by_its_certificate_is_named(
    bed: SshBed, server: Server, config: Path, tmp_path: Path, authority: Path
) -> None:
    sshd = server()
    name = f"[{sshd.address}]:{sshd.port}"
    line = f"@cert-authority {name} {authority.with_suffix('.pub').read_text()}"
    (tmp_path / "known_hosts").write_text(line)
    where = Endpoint.parse(url(bed, sshd))
    with pytest.raises(TrustError, match="only a @cert-authority") as caught:
        open_admin(where, ssh_config=config)
    assert fingerprint(sshd.host_key) in caught.value.hint


# ------------------------------------------------------------------ addresses


def test_ipv6(bed: SshBed, server: Server, config: Path, agent: FakeAgent, tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on loopback here")
    login_key = bed.authorize(bed.bridge_command(agent.socket_path))
    sshd = server(address="::1")
    (tmp_path / "known_hosts").write_text(f"[::1]:{sshd.port} {sshd.host_key}\n")
    with open_admin(Endpoint.parse(url(bed, sshd)), ssh_config=config) as session:
        assert runs(session)
        assert session.endpoint.url == url(bed, sshd)
        found = session.endpoint.url
    with connect(device="d", url=found, host_key=sshd.host_key, login_key=login_key) as client:
        assert client.health().boot_id == "boot-1"


# ------------------------------------------------------------------ servers that forbid something


@pytest.mark.parametrize(
    "directive",
    ["DisableForwarding yes", "PermitTTY no", "MaxSessions 1", "PermitUserRC no", "PermitOpen none"],
)
def test_what_is_not_needed_may_be_forbidden(
    bed: SshBed, server: Server, config: Path, agent: FakeAgent, directive: str
) -> None:
    login_key = bed.authorize(bed.bridge_command(agent.socket_path))
    sshd = server(directive)
    with log_in(bed, sshd, config) as session:
        assert all(runs(session) for _ in range(5))
    where = {"url": url(bed, sshd), "host_key": sshd.host_key}
    with connect(device="d", login_key=login_key, **where) as client:
        for _ in range(3):
            assert client.health().boot_id == "boot-1"
            agent.answers["/identity"] = (200, {"connection": "close"}, b"no JSON")
            with pytest.raises(DeviceError):
                client.identity()  # its stream is given up, and the next one opened at once


@pytest.mark.parametrize(
    ("directive", "words", "hint"),
    [
        ("ForceCommand internal-sftp", "ForceCommand internal-sftp", "exempt it"),
        ("ForceCommand echo welcome to the menu", "prints 'welcome to the menu'", "has a ForceCommand"),
        ("ForceCommand /bin/false", "ends with exit code 1 and prints nothing", "ForceCommand"),
        ("MaxSessions 0", "opens no session", "MaxSessions 0"),
    ],
)
def test_a_login_that_may_run_no_commands(
    bed: SshBed, server: Server, config: Path, directive: str, words: str, hint: str
) -> None:
    with log_in(bed, server(directive), config) as session, pytest.raises(DeviceError) as caught:
        DeviceShell(session, "watch-1").call(probe, "probe", distributions=[])
    assert caught.value.code == "no_commands"
    assert f"{bed.user} may not run commands" in caught.value.message
    assert words in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("shell", "words"), [("/usr/sbin/nologin", "shell is nologin"), ("/bin/false", "prints nothing")]
)
def test_an_account_without_a_shell(
    bed: SshBed, server: Server, config: Path, shell: str, words: str
) -> None:
    if not Path(shell).exists():
        pytest.skip(f"no {shell} here")
    sshd = server()
    subprocess.run(["usermod", "-s", shell, bed.user], check=True)
    try:
        with log_in(bed, sshd, config) as session, pytest.raises(DeviceError) as caught:
            DeviceShell(session, "watch-1").call(probe, "probe", distributions=[])
    finally:
        subprocess.run(["usermod", "-s", "/bin/bash", bed.user], check=True)
    assert caught.value.code == "no_commands"
    assert words in caught.value.message
    assert "shell" in caught.value.hint


@pytest.mark.parametrize(
    ("directive", "words"),
    [
        ("PubkeyAuthentication no", "takes no keys"),
        ("AuthenticationMethods publickey,password", "asks for more"),
        ("DenyUsers *", "1 of your keys refused"),
    ],
)
def test_a_server_that_lets_nobody_in_by_a_key_alone(
    bed: SshBed, server: Server, config: Path, directive: str, words: str
) -> None:
    sshd = server(directive, "PasswordAuthentication yes")
    with pytest.raises(TrustError, match=words) as caught:
        log_in(bed, sshd, config)
    assert caught.value.code == "login"
    assert caught.value.hint


def test_root_where_sshd_forbids_it(bed: SshBed, server: Server, config: Path) -> None:
    with pytest.raises(TrustError) as caught:
        log_in(bed, server("PermitRootLogin no"), config, user="root")
    assert "PermitRootLogin" in caught.value.hint


# ------------------------------------------------------------------ many at once


def test_many_logins_at_once_stay_below_max_startups(bed: SshBed, server: Server, agent: FakeAgent) -> None:
    """By default sshd refuses some from the tenth unfinished login on; this one refuses all of those.

    It may count a login for a moment longer than the client does: what it drops then is tried again.
    """
    login_key = bed.authorize(bed.bridge_command(agent.socket_path))
    sshd = server("MaxStartups 10:100:10")
    where = {"url": url(bed, sshd), "host_key": sshd.host_key}

    def ping(name: str) -> str:
        with connect(device=name, login_key=login_key, **where) as client:
            return client.health().boot_id

    outcomes = dict(sweep([f"watch-{number}" for number in range(40)], ping))
    assert set(outcomes.values()) == {"boot-1"}


def test_a_server_that_drops_a_connection_is_asked_again(
    bed: SshBed, server: Server, agent: FakeAgent
) -> None:
    """Somebody else keeps its only place for unfinished logins busy for a moment."""
    login_key = bed.authorize(bed.bridge_command(agent.socket_path))
    sshd = server("MaxStartups 1:100:1")
    with socket.create_connection((sshd.address, sshd.port)) as other:
        other.recv(1)  # it has the place
        timer = threading.Timer(0.3, other.shutdown, [socket.SHUT_RDWR])
        timer.start()
        where = {"url": url(bed, sshd), "host_key": sshd.host_key}
        with connect(device="d", login_key=login_key, **where) as client:
            assert client.health().boot_id == "boot-1"
        timer.join()
    assert "MaxStartups" in sshd.log


def test_no_more_than_eight_handshakes_are_unfinished(bed: SshBed, tmp_path: Path) -> None:
    """A server that never says anything: how many connections does it get?"""
    with socket.create_server(("127.0.0.11", 0), backlog=64) as listener:
        port = listener.getsockname()[1]
        taken: list[socket.socket] = []
        ended: list[object] = []

        def take() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take)
        thread.start()
        key = make_key(tmp_path / "login")

        def ping(name: str) -> None:
            where = f"ssh://a@127.0.0.11:{port}"
            with connect(
                device=name, url=where, host_key="ssh-ed25519 AAAA", login_key=key, timeout_s=2
            ) as c:
                c.health()

        outcomes = sweep([f"watch-{number}" for number in range(30)], ping)
        asked = threading.Thread(target=lambda: ended.extend(outcome for _, outcome in outcomes))
        asked.start()
        eventually(lambda: len(taken) >= 8, "eight connections")
        time.sleep(0.3)  # for the ninth, if there were one
        at_once = len(taken)
        asked.join()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for link in taken:
            link.close()
    assert at_once == 8
    assert len(ended) == 30
    assert all(isinstance(outcome, UnreachableError) for outcome in ended)


# ------------------------------------------------------------------ Dropbear


@pytest.fixture
def dropbear(bed: SshBed) -> Iterator[Callable[..., Dropbear]]:
    with ExitStack() as undo:
        keys = bed.home / ".ssh"
        undo.callback(shutil.rmtree, keys)

        def start(*options: str, authorized: str) -> Dropbear:
            keys.mkdir(mode=0o700)
            (keys / "authorized_keys").write_text(authorized)
            (keys / "authorized_keys").chmod(0o600)
            for path in (keys, keys / "authorized_keys"):
                shutil.chown(path, bed.user, bed.user)
            directory = bed.new_directory("dropbear") / "server"
            made = Dropbear(directory, bed.home, address="127.0.0.12", options=options)
            undo.callback(made.stop)
            made.start()
            return made

        yield start


@pytest.mark.parametrize("options", [(), ("-j", "-k"), ("-w", "-T", "1")], ids=str)
def test_dropbear(
    bed: SshBed,
    config: Path,
    agent: FakeAgent,
    dropbear: Callable[..., Dropbear],
    options: tuple[str, ...],
) -> None:
    launcher = agent.socket_path.with_name("launcher")  # a command with quotes inside is not for Dropbear
    launcher.write_text(f"#!/bin/sh\nexec {bed.bridge_command(agent.socket_path)}\n")
    launcher.chmod(0o755)
    login_key = bed.authorize(str(launcher))
    sshd = dropbear(*options, authorized=bed.sshd.authorized_keys.read_text())
    with log_in(bed, sshd, config) as session:
        assert session.host_key == sshd.host_key
        assert runs(session)
        assert session.run("cat", stdin=bytes(3_000_000)).stdout == bytes(3_000_000)
        assert DeviceShell(session, "watch-1").call(probe, "probe", distributions=[])["user"] == bed.user
    where = {"url": url(bed, sshd), "host_key": sshd.host_key}
    with connect(device="d", login_key=login_key, **where) as client:
        for _ in range(3):
            assert client.health().boot_id == "boot-1"
    assert re.search("Pubkey auth succeeded", sshd.log)

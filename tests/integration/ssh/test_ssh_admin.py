"""Logging in as the person: their configuration, keys and known_hosts, on a real sshd."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError, DeviceError, TrustError, UnreachableError, UsageError
from fedctl.transport import AdminSession, Endpoint, open_admin
from fedctl.transport.sshlink import fingerprint
from tests.system import SshBed, make_key

pytestmark = pytest.mark.system


class Person:
    """Somebody's OpenSSH configuration, with an alias `watch` for the bed."""

    def __init__(self, bed: SshBed, directory: Path) -> None:
        self.bed = bed
        self.config = directory / "config"
        self.known_hosts = directory / "known_hosts"
        self.key = bed.authorize(None)
        self.known_hosts.write_text(f"[{bed.sshd.address}]:{bed.sshd.port} {bed.host_key}\n")
        self.configure()

    def configure(self, *lines: str, key: Path | None = None) -> None:
        self.config.write_text(
            "\n".join(
                [
                    "Host watch",
                    f"HostName {self.bed.sshd.address}",
                    f"Port {self.bed.sshd.port}",
                    f"User {self.bed.user}",
                    f"IdentityFile {key or self.key}",
                    "IdentitiesOnly yes",
                    f"UserKnownHostsFile {self.known_hosts}",
                    "GlobalKnownHostsFile none",
                    *lines,
                ]
            )
            + "\n"
        )

    def log_in(self, **options: object) -> AdminSession:
        return open_admin(Endpoint.parse("ssh://watch"), ssh_config=self.config, **options)  # type: ignore[arg-type]


@pytest.fixture
def person(bed: SshBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Person:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return Person(bed, tmp_path)


@pytest.fixture
def session(person: Person) -> Iterator[AdminSession]:
    with person.log_in() as opened:
        yield opened


def test_the_session_knows_what_to_pin(bed: SshBed, session: AdminSession) -> None:
    assert session.host_key == bed.host_key
    assert session.endpoint == Endpoint.parse(bed.url)
    assert session.notes == ()


def test_commands_run_as_the_login(bed: SshBed, session: AdminSession) -> None:
    done = session.run("id -un; echo oops >&2; exit 7")
    assert (done.code, done.stdout, done.stderr) == (7, f"{bed.user}\n".encode(), b"oops\n")
    assert session.run("echo again").stdout == b"again\n"


def test_input_and_output_larger_than_every_window(session: AdminSession) -> None:
    data = os.urandom(5_000_000)
    assert session.run("cat", stdin=data).stdout == data


def test_both_outputs_at_once(session: AdminSession) -> None:
    done = session.run("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2")
    assert (len(done.stdout), len(done.stderr)) == (3_000_000, 3_000_000)


def test_a_command_that_does_not_read_its_input(session: AdminSession) -> None:
    assert session.run("exit 4", stdin=bytes(10_000_000)).code == 4


def test_a_command_that_a_signal_ends(session: AdminSession) -> None:
    assert session.run("kill -9 $$").code == -1


def test_a_command_that_hangs(session: AdminSession) -> None:
    begin = time.monotonic()
    with pytest.raises(UnreachableError, match="did not end within"):
        session.run("sleep 60", timeout_s=0.3)
    assert time.monotonic() - begin < 30
    assert session.run("echo alive").stdout == b"alive\n"


def test_a_command_that_prints_without_end(session: AdminSession) -> None:
    with pytest.raises(DeviceError, match="printed more than"):
        session.run("cat /dev/zero")


def test_a_connection_that_breaks_off(bed: SshBed, session: AdminSession) -> None:
    for process in bed.sshd.sessions():
        process.kill()
    with pytest.raises(UnreachableError, match="broke off"):
        session.run("echo")


# ------------------------------------------------------------------ the host key


def test_an_unknown_host_key_is_asked_about(person: Person) -> None:
    person.known_hosts.unlink()
    asked: list[str] = []

    def yes(question: str) -> bool:
        asked.append(question)
        return True

    with person.log_in(ask=yes) as session:
        assert session.run("true").code == 0
    assert fingerprint(person.bed.host_key) in asked[0]


def test_an_unknown_host_key_without_a_terminal(person: Person) -> None:
    person.known_hosts.unlink()
    with pytest.raises(TrustError) as caught:
        person.log_in()
    option = re.search(r"--accept-host-key (SHA256:\S+)", caught.value.hint)
    assert option is not None
    with person.log_in(accept_host_key=option[1]) as session:
        assert session.host_key == person.bed.host_key


def test_a_changed_host_key(person: Person, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text()
    person.known_hosts.write_text(f"[{person.bed.sshd.address}]:{person.bed.sshd.port} {other}")
    with pytest.raises(TrustError, match="has changed"):
        person.log_in(ask=lambda _: True)


def test_another_fingerprint_than_the_accepted_one(person: Person) -> None:
    with pytest.raises(TrustError, match="not the accepted"):
        person.log_in(accept_host_key="SHA256:" + "A" * 43)


# ------------------------------------------------------------------ the person's keys


def test_a_key_that_is_not_let_in(person: Person, tmp_path: Path) -> None:
    person.configure(key=make_key(tmp_path / "stranger"))
    with pytest.raises(TrustError, match="1 of your keys refused") as caught:
        person.log_in()
    assert caught.value.code == "login"
    assert f"`ssh -F {person.config} watch`" in caught.value.hint


def test_no_key_at_all(person: Person, tmp_path: Path) -> None:
    person.configure(key=tmp_path / "absent")
    with pytest.raises(TrustError, match="none of your keys was offered"):
        person.log_in()


def test_a_file_that_is_no_key_is_named(person: Person, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("no key")
    person.configure(key=broken)
    with pytest.raises(TrustError, match=f"{broken} cannot be used"):
        person.log_in()


def test_an_encrypted_key_needs_the_ssh_agent(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    key = person.bed.authorize(None, passphrase="secret")
    person.configure(key=key)
    with pytest.raises(TrustError, match=f"{key} is encrypted and no ssh-agent holds it") as caught:
        person.log_in()
    assert caught.value.hint == f"unlock it first: ssh-add {key}"
    with ssh_agent(key, "secret", person.known_hosts.parent, monkeypatch), person.log_in() as session:
        assert session.run("true").code == 0


def test_the_agent_s_other_keys_are_tried(
    person: Person, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = person.bed.authorize(None, passphrase="secret")
    person.configure("IdentitiesOnly no", key=tmp_path / "absent")
    person.config.write_text(person.config.read_text().replace("IdentitiesOnly yes\n", ""))
    with ssh_agent(key, "secret", tmp_path, monkeypatch), person.log_in() as session:
        assert session.run("true").code == 0


def test_another_ssh_agent_than_the_environment_s(
    person: Person, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The encrypted key's public half is in no file of its own: it is read from the private one."""
    key = person.bed.authorize(None, passphrase="secret")
    key.with_suffix(".pub").unlink()
    with ssh_agent(key, "secret", tmp_path, monkeypatch):
        monkeypatch.delenv("SSH_AUTH_SOCK")
        person.configure(f"IdentityAgent {key.with_suffix('.agent')}", key=key)
        with person.log_in() as session:
            assert session.run("true").code == 0
        monkeypatch.setenv("SSH_AUTH_SOCK", "")
    with pytest.raises(TrustError, match=r"the ssh-agent .* does not answer"):
        person.log_in()


def test_an_identity_file_may_be_the_public_half(
    person: Person, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = person.bed.authorize(None, passphrase="secret")
    with ssh_agent(key, "secret", tmp_path, monkeypatch):
        public = key.rename(tmp_path / "elsewhere") and key.with_suffix(".pub")
        person.configure(key=public)
        with person.log_in() as session:
            assert session.run("true").code == 0


class ssh_agent:  # noqa: N801 - a context manager
    """A running ssh-agent that holds one key."""

    def __init__(self, key: Path, passphrase: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._key, self._passphrase, self._monkeypatch = key, passphrase, monkeypatch
        self._directory = directory

    def __enter__(self) -> None:
        socket = self._key.with_suffix(".agent")
        self._process = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
        while not socket.exists():
            assert self._process.poll() is None
            time.sleep(0.01)
        self._monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        askpass = self._directory / "askpass"
        askpass.write_text(f"#!/bin/sh\necho {self._passphrase}\n")
        askpass.chmod(0o700)
        environment = {**os.environ, "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force"}
        subprocess.run(["ssh-add", "-q", str(self._key)], env=environment, check=True, capture_output=True)

    def __exit__(self, *_: object) -> None:
        self._monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        self._process.terminate()
        self._process.wait()


# ------------------------------------------------------------------ what is not possible


def test_a_unix_socket_has_no_login(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no ssh:// address"):
        open_admin(Endpoint.parse(f"unix://{tmp_path}/s"))


def test_a_proxy_command_is_named(person: Person) -> None:
    person.configure("ProxyCommand nc %h %p")
    with pytest.raises(ConfigError, match="proxycommand nc"):
        person.log_in()


def test_nobody_listens(person: Person) -> None:
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.4"):
        open_admin(Endpoint.parse("ssh://127.0.0.4:1"), ssh_config=person.config)


def test_a_name_that_does_not_resolve(person: Person) -> None:
    with pytest.raises(UnreachableError, match=r"watch\.invalid"):
        open_admin(Endpoint.parse("ssh://watch.invalid"), ssh_config=person.config)

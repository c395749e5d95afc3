"""Host aliases of the OpenSSH configuration, read by `ssh -G` and without it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedctl.core.errors import ConfigError
from fedctl.transport.base import Endpoint
from fedctl.transport.jump import route_to
from fedctl.transport.sshconfig import resolve

CONFIG = """
Host watch-*
  HostName 192.0.2.41
  User pi
  Port 2222
  IdentityFile ~/.ssh/id_%h
  IdentityFile /keys/second
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile /tmp/known-a /tmp/known-b
Host named
  HostName 192.0.2.43
  HostKeyAlias Watch.Example
  IdentityAgent /run/other-agent
  KnownHostsCommand /usr/bin/known %h
Host behind
  ProxyJump bastion,ops@Gate:2200,[2001:db8::9]:22
Host circle
  ProxyJump round
Host round
  ProxyJump circle
Host tunnelled
  ProxyCommand nc %h %p
"""


@pytest.fixture(params=["ssh -G", "own reader"])
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "own reader":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif shutil.which("ssh") is None:
        pytest.skip("OpenSSH's ssh is not installed")
    path = tmp_path / "config"
    path.write_text(CONFIG)
    return path


def test_an_alias_is_resolved(config: Path) -> None:
    target = resolve(Endpoint.parse("ssh://watch-7"), config=config)
    assert (target.hostname, target.port, target.user) == ("192.0.2.41", 2222, "pi")
    assert target.identity_files == (Path("~/.ssh/id_192.0.2.41").expanduser(), Path("/keys/second"))
    assert target.identities_only
    assert not target.use_agent
    assert target.known_hosts[:2] == (Path("/tmp/known-a"), Path("/tmp/known-b"))
    assert target.known_as == "192.0.2.41"
    assert target.notes == ()


def test_the_url_wins_over_the_configuration(config: Path) -> None:
    target = resolve(Endpoint.parse("ssh://root@watch-7:22"), config=config)
    assert (target.user, target.port) == ("root", 22)


def test_a_host_that_is_not_mentioned(config: Path) -> None:
    target = resolve(Endpoint.parse("ssh://192.0.2.9"), config=config)
    assert (target.hostname, target.port, target.known_as) == ("192.0.2.9", 22, "192.0.2.9")
    assert target.use_agent
    assert Path("~/.ssh/id_ed25519").expanduser() in target.identity_files
    assert Path("~/.ssh/known_hosts").expanduser() in target.known_hosts


def test_what_is_not_followed_is_named(config: Path) -> None:
    target = resolve(Endpoint.parse("ssh://named"), config=config)
    assert target.known_as == "watch.example"
    assert target.agent_socket == Path("/run/other-agent")
    assert [note for note in target.notes if "KnownHostsCommand" in note]


def test_a_proxy_command_is_refused_and_named(config: Path) -> None:
    with pytest.raises(ConfigError, match="proxycommand nc") as caught:
        resolve(Endpoint.parse("ssh://tunnelled"), config=config)
    assert "tunnelled" in caught.value.message
    assert "ProxyJump" in caught.value.hint


def test_jump_hosts_are_named_in_order(config: Path) -> None:
    target = resolve(Endpoint.parse("ssh://behind"), config=config)
    assert [hop.url for hop in target.jump] == [
        "ssh://bastion",
        "ssh://ops@Gate:2200",
        "ssh://[2001:db8::9]:22",
    ]
    assert resolve(Endpoint.parse("ssh://watch-7"), config=config).jump == ()


def test_a_jump_host_that_needs_itself(config: Path) -> None:
    with pytest.raises(ConfigError, match="in a circle"):
        route_to(resolve(Endpoint.parse("ssh://circle"), config=config), config)


def test_certificates_are_found(config: Path) -> None:
    config.write_text("Host watch\n  CertificateFile /keys/%r-cert.pub\n  User pi\n")
    assert resolve(Endpoint.parse("ssh://watch"), config=config).certificates == (Path("/keys/pi-cert.pub"),)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-file cannot be read"):
        resolve(Endpoint.parse("ssh://watch"), config=tmp_path / "no-such-file")


def test_a_configuration_that_is_not_understood(config: Path) -> None:
    config.write_text("Match nonsense\n")
    with pytest.raises(ConfigError):
        resolve(Endpoint.parse("ssh://watch"), config=config)


def test_include_is_followed_or_named(config: Path, tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host included\n  HostName 192.0.2.77\n")
    config.write_text(f"Include {tmp_path}/more\n")
    target = resolve(Endpoint.parse("ssh://included"), config=config)
    followed = target.hostname == "192.0.2.77"
    assert followed != any("Include" in note for note in target.notes)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ssh://watch", "ssh -F {config} watch"),
        ("ssh://pi@192.0.2.41:2222", "ssh -F {config} -p 2222 pi@192.0.2.41"),
    ],
)
def test_the_same_login_by_openssh(config: Path, url: str, words: str) -> None:
    assert resolve(Endpoint.parse(url), config=config).login == words.format(config=config)


@pytest.mark.usefixtures("config")
def test_the_same_login_by_openssh_without_another_configuration() -> None:
    assert resolve(Endpoint.parse("ssh://pi@192.0.2.41")).login == "ssh pi@192.0.2.41"

"""What the user's OpenSSH configuration says about a host, so that an alias works here as it does there.

`ssh -G` answers where OpenSSH is installed, with Include, Match and the rest. Otherwise paramiko's reader
does, which knows no Include: what could not be followed is named in `notes`. ProxyCommand is refused, not
ignored; ProxyJump is what `fedctl.transport.jump` follows.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedctl.core.errors import ConfigError, UsageError, reason_of
from fedctl.transport.base import Endpoint

_SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
_DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
_DEFAULT_KNOWN_HOSTS = "~/.ssh/known_hosts ~/.ssh/known_hosts2"
_GLOBAL_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"
_TOKEN = re.compile(r"%(.)")
_RESOLVE_S = 20  # `ssh -G` may look up names and run Match exec

Options = Mapping[str, list[str]]


@dataclass(frozen=True, slots=True)
class SshTarget:
    """A host as the configuration resolves it."""

    hostname: str
    port: int
    user: str
    known_as: str  # the name under which known_hosts lists it
    identity_files: tuple[Path, ...]  # in the order to try; they need not exist
    identities_only: bool  # an ssh-agent's other keys are not tried
    certificates: tuple[Path, ...]  # of the person, for keys of any of these files
    use_agent: bool
    agent_socket: Path | None  # another ssh-agent than SSH_AUTH_SOCK's
    known_hosts: tuple[Path, ...]
    jump: tuple[Endpoint, ...]  # the hosts to go through, nearest first; they may be aliases
    notes: tuple[str, ...]  # what of the configuration is not followed
    login: str  # words that log in by OpenSSH in the same way, for a hint: `ssh -F FILE -p 2222 pi@watch`


def resolve(endpoint: Endpoint, *, config: Path | None = None) -> SshTarget:
    """Look a host up in the user's configuration, or in `config` instead.

    Raises:
        ConfigError: The configuration cannot be read, or asks for ProxyCommand.
    """
    if config is not None and not config.is_file():
        raise ConfigError(f"SSH configuration {config} cannot be read", subject=str(config))
    if shutil.which("ssh"):
        options, notes = _ask_openssh(endpoint, config), list[str]()
    else:
        options, notes = _read_ourselves(endpoint, config)
    return _target(endpoint, options, notes, login=_login_words(endpoint, config))


def _login_words(endpoint: Endpoint, config: Path | None) -> str:
    who = f"{endpoint.user}@{endpoint.host}" if endpoint.user else endpoint.host
    file = [] if config is None else ["-F", str(config)]
    port = [] if endpoint.port is None else ["-p", str(endpoint.port)]
    return shlex.join(["ssh", *file, *port, who])


def _ask_openssh(endpoint: Endpoint, config: Path | None) -> Options:
    command = ["ssh", "-G"]
    command += ["-F", str(config)] if config is not None else []
    command += ["-l", endpoint.user] if endpoint.user else []
    command += ["-p", str(endpoint.port)] if endpoint.port else []
    try:
        done = subprocess.run(
            [*command, "--", endpoint.host],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_RESOLVE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = reason_of(error) if isinstance(error, OSError) else f"no answer within {_RESOLVE_S} s"
        raise ConfigError(f"ssh -G {endpoint.host} failed: {reason}", subject=endpoint.host) from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(f"ssh -G {endpoint.host} failed: {reason}", subject=endpoint.host)
    options: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        options.setdefault(keyword.lower(), []).append(value)
    return options


def _read_ourselves(endpoint: Endpoint, config: Path | None) -> tuple[Options, list[str]]:
    import paramiko

    paths = [Path("~/.ssh/config").expanduser(), _SYSTEM_CONFIG] if config is None else [config]
    notes, texts = [], []
    for path in paths:
        try:
            text = path.read_text(errors="replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {reason_of(error)}", subject=str(path)) from error
        if re.search(r"^\s*include\b", text, re.IGNORECASE | re.MULTILINE):
            notes.append(f"Include in {path} is not followed, because OpenSSH's ssh is not installed here")
        texts.append(text)
    try:
        found: dict[str, Any] = paramiko.SSHConfig.from_text("\nHost *\n".join(texts)).lookup(endpoint.host)
    except Exception as error:  # its reader lets ImportError and ValueError out beside its own
        raise ConfigError(f"SSH configuration is not understood: {error}", subject=endpoint.host) from error
    options = {key: value if isinstance(value, list) else [value] for key, value in found.items()}
    return options, notes


def _target(endpoint: Endpoint, options: Options, notes: list[str], *, login: str) -> SshTarget:
    command = _one(options, "proxycommand", "none")
    if command.lower() != "none":
        raise ConfigError(
            f"the SSH configuration of {endpoint.host} asks for proxycommand {command}, "
            "which fedctl does not run",
            hint="say it as ProxyJump HOST, or use an address that this machine reaches directly",
            subject=endpoint.host,
            code="proxy_command",
        )
    hostname = _one(options, "hostname", endpoint.host)
    port = endpoint.port or int(_one(options, "port", "22"))
    user = endpoint.user or _one(options, "user", getpass.getuser())
    tokens = {"h": hostname, "p": str(port), "r": user, "n": endpoint.host, "u": getpass.getuser()}
    tokens |= {"d": str(Path.home()), "k": _one(options, "hostkeyalias", endpoint.host), "%": "%"}
    agent = _one(options, "identityagent", "SSH_AUTH_SOCK")
    other_agent = agent not in {"none", "SSH_AUTH_SOCK", "$SSH_AUTH_SOCK"}
    if "knownhostscommand" in options:
        notes.append("KnownHostsCommand is not run, only the files of known hosts are read")
    known = [
        *_one(options, "userknownhostsfile", _DEFAULT_KNOWN_HOSTS).split(),
        *_one(options, "globalknownhostsfile", _GLOBAL_KNOWN_HOSTS).split(),
    ]
    return SshTarget(
        hostname=hostname,
        port=port,
        user=user,
        known_as=_one(options, "hostkeyalias", hostname).lower(),
        identity_files=_paths(options.get("identityfile", list(_DEFAULT_KEYS)), tokens),
        identities_only=_one(options, "identitiesonly", "no") == "yes",
        certificates=_paths(options.get("certificatefile", []), tokens),
        use_agent=agent != "none",
        agent_socket=_paths([_variable(agent)], tokens)[0] if other_agent else None,
        known_hosts=_paths(known, tokens),
        jump=_jump(_one(options, "proxyjump", "none"), endpoint.host),
        notes=tuple(notes),
        login=login,
    )


def _jump(words: str, host: str) -> tuple[Endpoint, ...]:
    """The hosts of `ProxyJump a,user@b:port,ssh://c`."""
    if words.lower() == "none":
        return ()
    hosts = [word if "://" in word else f"ssh://{word}" for word in words.replace(",", " ").split()]
    try:
        return tuple(Endpoint.parse(host) for host in hosts)
    except UsageError as error:
        raise ConfigError(
            f"the SSH configuration of {host} has a ProxyJump that is not understood: {words}", subject=host
        ) from error


def _variable(text: str) -> str:
    """IdentityAgent may name an environment variable: `$MY_AGENT`."""
    return os.environ.get(text[1:], text) if text.startswith("$") else text


def _one(options: Options, keyword: str, default: str) -> str:
    values = options.get(keyword)
    return values[0].strip('"') if values else default


def _paths(values: list[str], tokens: Mapping[str, str]) -> tuple[Path, ...]:
    texts = [_TOKEN.sub(lambda m: tokens.get(m[1], m[0]), text.strip('"')) for text in values]
    return tuple(Path(text).expanduser() for text in texts if text and text != "none")

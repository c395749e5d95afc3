"""Arguments and options that several commands of `fedctl devices` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedctl.cli.options import confirm, prompts

if TYPE_CHECKING:
    from fedctl.cli.progress import Watcher
    from fedctl.ops.devices import AdminLogin

Name = Annotated[str, typer.Argument(metavar="NAME", help="The device's name in the fleet.")]
SshConfig = Annotated[
    Path | None, typer.Option("-F", "--ssh-config", metavar="FILE", help="Your OpenSSH configuration to use.")
]
HostKey = Annotated[
    str | None,
    typer.Option("--accept-host-key", metavar="SHA256:…", help="Trust an unknown SSH host key like this."),
]
Via = Annotated[
    str | None,
    typer.Option("--via", metavar="URL", help="Log in here instead, e.g. ssh://root@HOST; one device."),
]


def admin_login(
    ssh_config: Path | None, accept_host_key: str | None, watcher: Watcher, *, via: str | None = None
) -> AdminLogin:
    """How the person at the terminal logs in on devices; asked about host keys where there is one."""
    from fedctl.ops.devices import AdminLogin

    def ask(question: str) -> bool:
        with watcher.silenced():
            return confirm(question)

    asker = ask if prompts() else None
    return AdminLogin(ssh_config=ssh_config, via=via, accept_host_key=accept_host_key, ask=asker)

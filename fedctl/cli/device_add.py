"""`fedctl devices add`: one device by its address, or many from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedctl.cli import device_views as views
from fedctl.cli.command import Verb, session_of
from fedctl.cli.device_options import HostKey, SshConfig, admin_login
from fedctl.cli.options import BOTH_WHEELS, RootKey, home, writing
from fedctl.cli.output import View


def add(  # noqa: PLR0913 - one parameter an option
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device's name in the fleet.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="ssh://[user@]host[:port] or unix://PATH.")],
    *,
    label: Annotated[
        list[str] | None, typer.Option("-l", "--label", metavar="KEY=VALUE", help="A label to give it.")
    ] = None,
    note: Annotated[
        str | None, typer.Option("--note", metavar="TEXT", help="A line about it, for people.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--source", metavar="FILE", help="TOML saying where its data is; copied.")
    ] = None,
    wheels: Annotated[
        Path | None, typer.Option("--wheels", metavar="DIR", help="Take wheels from here, not an index.")
    ] = None,
    accept_host_key: HostKey = None,
    ssh_config: SshConfig = None,
    root_key: RootKey = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> View:
    """Install the agent on devices, enrol them and start them.

    Run again, it changes only what is missing. With unix://PATH it enrols an agent that runs already.
    Exit code 10: the device cannot carry an agent.
    """
    from fedctl.cli.progress import Watcher
    from fedctl.core.selector import parse_label_changes
    from fedctl.ops import devices, fleet

    labels = {key: value for key, value in parse_label_changes(label or ()).items() if value is not None}
    wanted = devices.NewDevice(name=name, url=url, labels=labels, source=source, note=note)
    with writing() as store, Watcher(quiet=session_of(ctx).quiet) as watcher:
        if fleet.both_wheels_installed():
            watcher.note(BOTH_WHEELS)
        result = devices.add(
            store,
            home(),
            wanted,
            admin=admin_login(ssh_config, accept_host_key, watcher),
            root_key=root_key,
            wheels=wheels,
            dry_run=dry_run,
            observer=watcher,
        )
    return views.added(result)


verb = Verb(
    "add",
    add,
    examples="""
    fedctl devices add watch-01 ssh://pi@192.0.2.41
    fedctl devices add watch-01 ssh://pi@192.0.2.41 -l ward=3 --note 'on loan'
    fedctl devices add watch-02 ssh://pi@192.0.2.42:2222 --source recorder.toml
    fedctl devices add watch-03 ssh://pi@192.0.2.43 --dry-run
    fedctl devices add local unix:///run/fedctl-agent/agent.sock
    """,
)
